"""Trains a search's best configurations again, chooses one, and tests it once."""
