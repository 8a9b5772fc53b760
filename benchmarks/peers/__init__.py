"""Comparison with other frameworks that are installed."""
