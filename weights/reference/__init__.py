"""The comparison with transformers: the reference model, the runs, and the differences between the logits."""
