"""What each architecture costs, in tables: formulas from the specs, and measurements on this machine."""
