"""File formats of the field: what leaves this project, and what comes in."""
