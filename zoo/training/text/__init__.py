"""Text to tokens: which files are read and held out, tokenizers, and the token file that batches are drawn from."""
