"""The speed of training: the arithmetic rate of the device, the reference of MFU, and the number of steps that fit into
a time."""

from collections.abc import Callable
from functools import partial
from time import perf_counter

import torch

from zoo.errors import UsageError
from zoo.model.decoder import Decoder

SIDES = (256, 512, 1024, 2048, 4096, 8192)  # sides of square matrices; the largest that takes at most
MAX_PRODUCT_SECONDS = 0.05
EVALUATIONS = 10  # default for a run, after the one before its first step
EVALUATION_SHARE = 0.2  # maximum share of the time
PRODUCTS = 4  # timed products per size; the fastest counts


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Measures the FLOPs per second of the fastest square matrix product on a device, in about half a second."""
    rate = 0.0
    for side in SIDES:
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        fastest = min(seconds(partial(torch.matmul, a, b), device) for _ in range(PRODUCTS))
        rate = max(rate, 2 * side**3 / fastest)
        if 8 * fastest > MAX_PRODUCT_SECONDS:  # the next side takes 8 x as long
            break
    return rate


def training_flops_per_token(spec: Decoder, context: int) -> float:
    """Returns the FLOPs of training per token of sequences of `context` tokens: three times those of the forward pass.

    The backward pass computes a product for the input and one for the weight of each. Recomputation to save memory is
    not counted (Chowdhery et al., PaLM, appendix B).
    """
    return 3 * spec.flops(0, context) / context


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Returns the seconds that a call takes on a device."""
    began = perf_counter()
    run()
    if device.type in ("cuda", "mps", "xpu"):
        getattr(torch, device.type).synchronize()
    return perf_counter() - began


def steps_within(budget: float, step: float, evaluation: float, every: int | None) -> tuple[int, int]:
    """Returns the number of steps that fit into `budget` seconds, and the number of steps between two evaluations.

    A step takes `step` seconds and an evaluation `evaluation` seconds; one evaluation comes before the first step.
    `every` sets the steps between two evaluations. If it is None there are EVALUATIONS, or fewer that take
    EVALUATION_SHARE of the time. Raises UsageError if there is no time for one step.
    """
    evaluations = max(1, min(EVALUATIONS, int(EVALUATION_SHARE * budget / evaluation)))
    reserved = evaluation * (1 + (evaluations if every is None else 0))
    left, each = budget - reserved, step + (evaluation / every if every else 0.0)
    if left < each:
        raise UsageError(
            f"the time is too short: {max(budget, 0):.1f} s are left after preparing, a step takes {step:.2g} s and an "
            f"evaluation {evaluation:.2g} s; give more --minutes, or --tokens"
        )
    steps = int(left / each)
    return steps, every or max(1, round(steps / evaluations))
