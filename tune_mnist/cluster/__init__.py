"""The Ray cluster on which trials run."""
