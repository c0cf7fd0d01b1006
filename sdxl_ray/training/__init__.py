"""One training run: the loop, and everything that it needs on one rank."""
