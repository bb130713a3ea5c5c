"""Five ways to search the blog's space, each a short program: what a user would write."""
