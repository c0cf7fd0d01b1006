"""The commands, one file each: a function `run` that typer reads, and `EXAMPLES` that `--help` ends with.

Nothing heavy is imported before a command runs, so that `--help` and typing errors answer at once.
"""
