"""Whole models: the decoder's spec and module, generation, compilation, CUDA graphs, tensor parallelism."""
