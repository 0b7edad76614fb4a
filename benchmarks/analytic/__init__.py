"""Figures that follow from the specs alone: parameters, KV cache, FLOPs, rooflines. Nothing is built or timed."""
