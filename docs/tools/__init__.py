"""Writers of the generated parts of docs/, outside the wheel: measured tables, and the schema of `--json`."""
