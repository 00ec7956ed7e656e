"""What class-incremental methods on a frozen image backbone share."""
