"""Hyperparameter search with Ray Tune and Optuna, judged on held-out images."""
