"""Learning of models at an equal budget: tasks, stored runs, learning rates, intervals."""
