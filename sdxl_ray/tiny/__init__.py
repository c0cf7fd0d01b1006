"""The embedded base: a complete SDXL small enough for a laptop without a GPU, and the subjects to tune it on."""
