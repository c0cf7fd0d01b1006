"""What people look at: quantities as text, tables, live progress. Everything here is fed plain rows."""
