"""What blocks compute with: attention, linear layers, caches, positions and masks, and the choice of kernels."""
