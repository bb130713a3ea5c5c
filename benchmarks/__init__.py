"""Measures this project beside what a user would take instead. See `python -m benchmarks --help`."""
