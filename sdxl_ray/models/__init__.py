"""The base model in one process: files, weights, pipeline, adapters."""
