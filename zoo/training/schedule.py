"""The learning rate of each step: warm-up, then a cosine, or a constant rate with a decay at the end (WSD)."""

import math
from typing import Literal, get_args

from zoo.errors import UsageError, unknown

Shape = Literal["cosine", "wsd"]
SHAPES: tuple[str, ...] = get_args(Shape)
DECAY_SHARE = 0.2  # share of the steps, at the end of "wsd"


def warmup_steps(warmup: float, steps: int) -> int:
    """Returns the number of warm-up steps: `warmup` itself, or that share of `steps` if it is below 1. Raises
    UsageError for one that is negative or above the steps."""
    if not 0 <= warmup <= max(steps, 1):
        raise UsageError(f"the warm-up must be a share below 1 or from 1 to {steps} steps, got {warmup:g}")
    return math.ceil(warmup * steps) if warmup < 1 else int(warmup)


def learning_rate(
    step: int, steps: int, peak: float, warmup: float = 0.1, shape: str = "cosine", final: float = 0.1
) -> float:
    """Returns the learning rate of `step`, from 0 to `steps` - 1.

    It rises linearly to `peak` over the warm-up (see `warmup_steps`) and ends at `final` * `peak` in the last step.
    "cosine" falls along half a cosine (Loshchilov and Hutter, SGDR, section 3, without restarts). "wsd" stays at the
    peak and falls linearly in the last DECAY_SHARE of the steps (Hu et al., MiniCPM, section 4). Raises UsageError for
    another shape.
    """
    if shape not in SHAPES:
        raise unknown("schedule", shape, SHAPES)
    rising = warmup_steps(warmup, steps)
    if step < rising:
        return peak * (step + 1) / rising
    falling = steps - rising if shape == "cosine" else min(steps - rising, math.ceil(DECAY_SHARE * steps))
    done = max(step - (steps - falling) + 1, 0) / falling  # above 0 in the first falling step, 1 in the last one
    share = (1 + math.cos(math.pi * done)) / 2 if shape == "cosine" else 1 - done
    return peak * (final + (1 - final) * share)
