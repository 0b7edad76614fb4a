"""Learning of models at an equal budget: tasks, runs that are kept, learning rates, intervals."""
