"""From image files to batches: reading, buckets, sampling, latents, caches."""
