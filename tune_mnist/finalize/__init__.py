"""A winner that can be trusted."""
