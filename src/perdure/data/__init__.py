"""Disk layouts to Examples: one file per data set."""
