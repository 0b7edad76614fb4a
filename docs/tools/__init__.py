"""Generators for parts of docs/: measured tables, and the schema of `--json`. The wheel does not contain them."""
