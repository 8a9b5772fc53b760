"""Other frameworks beside rayfl, where they are installed."""
