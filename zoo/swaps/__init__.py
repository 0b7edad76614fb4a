"""Editing specs: the grammar of --swap, one block rebuilt as another, borrowed blocks, tiny models, scaled models."""
