"""Published configs and checkpoints: reading config.json strictly, writing it, and the names and layouts of tensors."""
