"""Shows each trial of a search as a run in MLflow or Weights & Biases."""
