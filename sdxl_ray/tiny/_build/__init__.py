"""How the embedded base is trained from drawings: the stages of `python -m sdxl_ray.tiny._build.build`."""
