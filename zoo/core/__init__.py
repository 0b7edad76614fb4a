"""Operations that blocks share: attention, linear layers, caches, positions and masks, and the choice of kernels."""
