"""Training a model: batches, losses, the loop, its checkpoints. It knows no released files."""
