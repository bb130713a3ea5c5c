"""Five ways to search the space `blog`, each a short program that a user might write."""
