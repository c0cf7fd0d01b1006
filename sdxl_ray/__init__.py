"""Tune Stable Diffusion XL on Ray and prove what it bought: train, evaluate, search, serve, compare."""

__version__ = "0.1.0"
