"""The maths in one process: data, models, tuning, loss and loop. Nothing in here knows a cluster."""
