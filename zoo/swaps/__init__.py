"""Changes specs: parses --swap, replaces blocks by blocks of other kinds, borrows blocks from released models, and
makes tiny and scaled-down models. Also states in words how two specs differ."""
