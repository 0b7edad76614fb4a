"""python -m zoo.train NAME: train a model on text."""
