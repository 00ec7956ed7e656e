"""From data to data, before a run: what is made here are files, not methods."""
