"""The comparison with transformers: the reference model, the runs, and what differs between the logits."""
