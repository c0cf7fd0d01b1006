"""The deployment that holds weights, and the messages between it and the HTTP side."""
