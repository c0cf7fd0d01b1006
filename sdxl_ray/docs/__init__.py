"""Pages about the project, shipped with the package. `python -m sdxl_ray.docs` prints the settings references."""
