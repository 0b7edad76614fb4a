"""Measurements on this machine: timing, ceilings, throughput, loading, blocks and latent attention."""
