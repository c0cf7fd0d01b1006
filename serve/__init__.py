"""Base and tuned pipelines side by side behind HTTP, on Ray Serve, and the load test that compares them."""
