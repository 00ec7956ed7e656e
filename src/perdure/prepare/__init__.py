"""Data to data, before a run: not methods."""
