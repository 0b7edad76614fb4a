"""Published configs and checkpoints: reads and writes config.json, and maps the names and layouts of tensors."""
