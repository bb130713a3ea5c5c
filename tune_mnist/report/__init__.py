"""What a run teaches, as one page and as pictures."""
