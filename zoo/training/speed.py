"""How fast a model trains: the arithmetic rate of the device, of which training uses a share (MFU), and how many steps
fit into a time."""

from collections.abc import Callable
from time import perf_counter

import torch

from zoo.errors import UsageError
from zoo.model.decoder import Decoder

SIDES = (256, 512, 1024, 2048, 4096, 8192)  # of square matrices; the largest whose product takes at most
MAX_PRODUCT_SECONDS = 0.05
PRODUCTS = 4  # timed of each size; the fastest counts


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOPs per second of the fastest square matrix product on a device, measured in about half a second."""
    rate = 0.0
    for side in SIDES:
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        fastest = min(seconds(lambda a=a, b=b: torch.matmul(a, b), device) for _ in range(PRODUCTS))
        rate = max(rate, 2 * side**3 / fastest)
        if 8 * fastest > MAX_PRODUCT_SECONDS:  # the next side takes 8 x as long
            break
    return rate


def training_flops_per_token(spec: Decoder, context: int) -> float:
    """FLOPs of training per token of sequences of `context` tokens: three times those of the forward pass, since the
    backward pass computes a product for the input and one for the weight of each. What is computed again to save
    memory is not counted (Chowdhery et al., PaLM, appendix B)."""
    return 3 * spec.flops(0, context) / context


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """The time that a call takes on a device."""
    began = perf_counter()
    run()
    if device.type in ("cuda", "mps", "xpu"):
        getattr(torch, device.type).synchronize()
    return perf_counter() - began


def steps_within(budget: float, step: float, evaluation: float, every: int | None, evaluations: int) -> int:
    """How many steps of `step` seconds fit into `budget` seconds beside evaluations of `evaluation` seconds: one `every`
    so many steps, or, if that is None, so many in all. Raises UsageError if there is no time for one step."""
    left, each = (budget - evaluations * evaluation, step) if every is None else (budget, step + evaluation / every)
    if left < each:
        raise UsageError(
            f"the time is too short: {max(budget, 0):.1f} s are left after preparing, a step takes {step:.2g} s and an "
            f"evaluation {evaluation:.2g} s; give more --minutes, or --tokens"
        )
    return int(left / each)
