"""Training: text to tokens, batches, the loop, its checkpoints. It learns a model and knows no released files."""
