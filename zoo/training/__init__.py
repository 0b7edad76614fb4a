"""Training a model: batches, losses, the loop, its checkpoints. Nothing here depends on released files."""
