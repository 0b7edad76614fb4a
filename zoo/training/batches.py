"""A batch of training: tokens, and the token that follows each of them."""

from typing import NamedTuple

from torch import Tensor

from zoo.training.losses import IGNORED


class Batch(NamedTuple):
    """The sequences of one step. `inputs` (b, t) int64 are token ids. `targets` (b, t) int64 are the ids to predict
    after each of them, IGNORED where nothing is scored."""

    inputs: Tensor
    targets: Tensor

    def scored(self) -> Tensor:
        """Returns the number of scored targets, on the batch's device."""
        return (self.targets != IGNORED).sum()

    def split(self, pieces: int) -> list["Batch"]:
        """Divides the sequences into `pieces` batches of nearly equal size, for gradient accumulation."""
        inputs, targets = self.inputs.tensor_split(pieces), self.targets.tensor_split(pieces)
        return [Batch(*both) for both in zip(inputs, targets, strict=True)]
