"""What this machine, a cluster or a manifest can do, and what is unsafe about it."""
