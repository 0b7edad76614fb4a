"""Text to tokens: training and held-out files, tokenizers, and the token file that batches are drawn from."""
