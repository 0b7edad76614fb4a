"""Building a model and checking it: its parameters and cache have the sizes that the formulas give, and decoding with
the cache gives the logits of one forward pass."""

from dataclasses import dataclass
from time import perf_counter

import torch

from zoo.catalog import build
from zoo.core.devices import free_memory
from zoo.errors import NotAvailable
from zoo.model.decoder import Decoder
from zoo.model.module import Model
from zoo.swaps.tiny import MIN_STEP
from zoo.units import dtype_name, format_bytes, format_count

TOKENS_PAST_WINDOW, PREFILL_CHUNKS, DECODE_STEPS = 50, 3, 16  # chunks that are no multiple of a window
MAX_WINDOW_TOKENS = 4096  # a longer window is not filled: this is a check, not a benchmark
# Relative to the largest logit, which is small in a fresh model. Fresh tiny models stay below a third of these.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 1e-2}
TOLERANCE_BRANCHES = 8  # up to which it holds in 16 bits, too; beyond, it grows with the square root of their number


@dataclass(frozen=True)
class BuildCheck:
    """A built module: its parameters counted, and by the spec's formula."""

    device: str
    dtype: str
    seconds: float
    parameters: int
    formula: int


@dataclass(frozen=True)
class DecodeCheck:
    """One forward pass over `tokens` tokens, against prefill in `chunks` and then `steps` of one token over a cache.
    `bound` is None where the difference is not judged; `not_judged` says why. Cache sizes are bytes, as allocated and
    by the formula."""

    seed: int
    tokens: int
    chunks: tuple[int, ...]
    steps: int
    largest_logit: float
    largest_difference: float
    bound: float | None
    cache_bytes: int
    cache_formula: int
    not_judged: str | None = None


def check_build(spec: Decoder, device: torch.device, dtype: torch.dtype, seed: int) -> tuple[Model, BuildCheck]:
    """Build the model and count its parameters. Call `require_free_memory` first."""
    start = perf_counter()
    model = build(spec, device=device, dtype=dtype, seed=seed)
    seconds = perf_counter() - start
    parameters = sum(each.numel() for each in model.parameters())
    return model, BuildCheck(str(device), dtype_name(dtype), seconds, parameters, spec.params())


@torch.no_grad()
def check_decoding(model: Model, dtype: torch.dtype, seed: int) -> DecodeCheck:
    """Run the model on random tokens, in one forward pass and over a cache."""
    spec, device, total = model.spec, model.embed.weight.device, tokens_needed(model.spec)
    chunks = tuple(len(part) for part in torch.arange(total - DECODE_STEPS).chunk(PREFILL_CHUNKS))
    tokens = torch.randint(spec.vocab, (1, total), generator=torch.Generator().manual_seed(seed)).to(device)
    logits, cache = model(tokens), model.new_cache(1, total)
    lengths = [*chunks, *[1] * DECODE_STEPS]
    pairs = zip(tokens.split(lengths, 1), logits.split(lengths, 1), strict=True)
    differences = [(model(part, cache).float() - expected.float()).abs().max() for part, expected in pairs]
    largest = logits.abs().max().item()
    not_judged = None
    if dtype.itemsize < 4 and any(node.role == "router" for node in spec.walk()):
        not_judged = "in this dtype, rounding may change a router's choice"  # and the rest of the sequence with it
    # Nemotron 3's prefill has no shorter time steps than this, its single tokens do.
    if any((getattr(node, "min_step", None) or 0) > MIN_STEP for node in spec.walk()):
        not_judged = "this model computes a single token otherwise than several"
    bound = None if not_judged else TOLERANCE[dtype] * _depth_factor(spec, dtype) * largest
    largest_difference, formula = torch.stack(differences).max().item(), spec.kv_bytes(total, dtype=dtype)
    return DecodeCheck(
        seed, total, chunks, DECODE_STEPS, largest, largest_difference, bound, cache.nbytes, formula, not_judged
    )


def _depth_factor(spec: Decoder, dtype: torch.dtype) -> float:
    """How many times the tolerance a deep model has in 16 bits: what branches add to the residual stream is rounded
    there, and these errors add up as the steps of a random walk do."""
    branches = sum(len(list(layer.branches())) for layer in spec.layers)
    return 1.0 if dtype.itemsize >= 4 else max(1.0, (branches / TOLERANCE_BRANCHES) ** 0.5)


def failures(built: BuildCheck, decoded: DecodeCheck | None) -> list[str]:
    """A line for each check that failed."""
    found = []
    if built.parameters != built.formula:
        found.append(f"{built.parameters:,} parameters were built, and the formula says {built.formula:,}")
    if decoded and decoded.cache_bytes != decoded.cache_formula:
        found.append(f"the cache has {decoded.cache_bytes:,} bytes, and the formula says {decoded.cache_formula:,}")
    if decoded and decoded.bound is not None and not decoded.largest_difference <= decoded.bound:  # also for NaN
        difference = f"by {decoded.largest_difference:.1e}, above {decoded.bound:.1e}"
        found.append(f"decoding over the cache differs from the forward {difference}")
    return found


def tokens_needed(spec: Decoder) -> int:
    """Tokens that the check of decoding runs: some beyond every window."""
    widest = max(layer.cache_spec().reach.limit or 0 for layer in spec.layers)
    return min(widest, MAX_WINDOW_TOKENS) + TOKENS_PAST_WINDOW


def require_free_memory(spec: Decoder, device: torch.device, dtype: torch.dtype) -> None:
    """Raise NotAvailable unless the checks' weights, cache and logits fit the device's free memory."""
    free, tokens = free_memory(device), tokens_needed(spec)
    weights = spec.params() * dtype.itemsize
    rest = spec.kv_bytes(tokens, dtype=dtype) + 2 * tokens * spec.vocab * dtype.itemsize
    if free is None or weights + rest <= free:
        return
    halve = " --dtype bfloat16 halves it," if dtype.itemsize > 2 else ""
    raise NotAvailable(
        f"{format_count(spec.params())} parameters in {dtype_name(dtype)} need {format_bytes(weights + rest)} on "
        f"{device} (weights {format_bytes(weights)}, cache and logits {format_bytes(rest)}), and {format_bytes(free)} "
        f"is free;{halve} --tiny builds the same composition at toy widths"
    )
