"""Edits specs: the grammar of --swap, blocks rebuilt as other kinds, borrowed blocks, tiny models, scaled models."""
