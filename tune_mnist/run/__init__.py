"""What a run leaves behind, and the truth about it."""
