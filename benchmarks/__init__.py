"""Compares this project with what a user might use instead. See `python -m benchmarks --help`."""
