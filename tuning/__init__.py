"""Sweeps over experiments with Ray Tune."""
