"""Hyperparameter search for one PyTorch training loop: Ray Tune, Optuna and ASHA."""
