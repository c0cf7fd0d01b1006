"""How things are told on a terminal and in tables: quantities as text, tables, live progress."""
