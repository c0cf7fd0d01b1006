"""Output for terminals: quantities as text, tables, live progress."""
