"""The worked example: a small CNN on MNIST."""
