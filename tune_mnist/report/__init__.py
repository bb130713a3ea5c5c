"""What a run has learned, as one page and as pictures."""
