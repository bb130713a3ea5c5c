"""What drives the trials of a search."""
