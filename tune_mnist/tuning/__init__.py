"""Runs the trials of a search."""
