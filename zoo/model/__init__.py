"""Layers put together and run: the decoder, generation, compilation, CUDA graphs."""
