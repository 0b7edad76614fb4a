"""Specs edited: the grammar of --swap, one block rebuilt as another, tiny forms."""
