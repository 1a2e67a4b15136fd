"""The command line's arguments: options from what was typed, the environment and a config file, each with its origin.

In: an options class, words, variables, `toolkit.toml`. Out: values by name, as typer has parsed them, and where each is
from. Start with `parser.py`; `config.py` reads the file, `origins.py` says what counts.
"""
