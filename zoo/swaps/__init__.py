"""Editing specs: the grammar of --swap, one block rebuilt as another, tiny models, scaled models."""
