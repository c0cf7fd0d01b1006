"""The embedded base's card: what it can do, measured, and the page that says so.

python -m sdxl_ray.tiny._build.card            # measures everything (about 25 min on two cores), writes scores and card
"""
