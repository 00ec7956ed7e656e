"""Data sets to Tasks in order: one file per stream."""
