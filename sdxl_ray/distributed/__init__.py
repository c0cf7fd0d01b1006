"""The cluster: Ray Train and DeepSpeed around the single-process maths of `core`. It holds no maths of its own."""
