"""Rows about the KV cache: exact bytes, the usual formula, the context that fits, and where two caches cross."""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch

from benchmarks.analytic import growth
from benchmarks.analytic.models import Model, Row, about
from zoo.blocks import GQA, MLA
from zoo.model.decoder import Decoder
from zoo.registry import Mixer
from zoo.units import dtype_name

# The usual formula of each kind of mixer, and the elements per token that it gives for a mixer in a model of width dim.
USUAL_FORMULAS: dict[type[Mixer], tuple[str, Callable[[Any, int], Fraction]]] = {
    GQA: (
        "2 x kv_heads x dim / heads elements per layer and token, windows ignored",
        lambda mixer, dim: Fraction(2 * mixer.kv_heads * dim, mixer.heads),
    ),
    MLA: (
        "heads x (nope_dim + rope_dim + v_dim) elements per layer and token, the latent expanded",
        lambda mixer, dim: Fraction(mixer.heads * (mixer.nope_dim + mixer.rope_dim + mixer.v_dim)),
    ),
}


@dataclass(frozen=True)
class InferenceConfig:
    """How a model is run: `batch` sequences, and the dtypes of `weights` and `cache`."""

    batch: int = 1
    weights: torch.dtype = torch.bfloat16
    cache: torch.dtype = torch.bfloat16

    def describe(self) -> Row:
        """The keys of a row: batch and cache dtype."""
        return {"batch": self.batch, "cache_dtype": dtype_name(self.cache)}


def cache_row(model: Model, context: int, config: InferenceConfig) -> Row:
    """Cache bytes at a context. Fixed bytes and bytes per token are of one sequence, `kv_bytes` of all."""
    fixed, per_token = model.spec.kv_growth(config.cache)
    exact = model.spec.kv_bytes(context, config.batch, config.cache)
    usual = usual_formula_bytes(model.spec, context, config.batch, config.cache)
    kinds = dict.fromkeys(type(layer.mixer) for layer in model.spec.layers)
    return {
        "table": "kv",
        **about(model),
        **config.describe(),
        "kv_fixed_bytes": fixed,
        "kv_bytes_per_token": per_token,
        "context": context,
        "kv_bytes": exact,
        "usual_formula_kv_bytes": usual,
        "usual_formula_error": None if usual is None else usual / exact - 1,
        "usual_formula": "; ".join(USUAL_FORMULAS[kind][0] for kind in kinds if kind in USUAL_FORMULAS) or None,
    }


def usual_formula_bytes(spec: Decoder, context: int, batch: int, dtype: torch.dtype) -> int | None:
    """Cache bytes as other calculators count them: head_dim is dim / heads, every layer keeps every token, MLA keeps
    expanded keys and values. None where a layer has another kind of mixer."""
    mixers = [layer.mixer for layer in spec.layers]
    if not {*map(type, mixers)} <= USUAL_FORMULAS.keys():
        return None
    per_token = sum(USUAL_FORMULAS[type(mixer)][1](mixer, spec.dim) for mixer in mixers)
    return round(per_token * context * batch * dtype.itemsize)


def fit_row(model: Model, memory: int, config: InferenceConfig) -> Row:
    """The longest context whose cache fits into `memory` bytes beside the weights.

    `limit` is what ends it: the weights, which do not fit; the cache, which fills what they leave; or the model's own
    context, which fits.
    """
    weights, trained = model.spec.params() * config.weights.itemsize, model.spec.context
    pieces = growth.pieces(model.spec, config.cache)
    longest = growth.longest(pieces, (memory - weights) // config.batch) if weights <= memory else 0
    whole = longest is None or (trained is not None and longest >= trained)
    return {
        "table": "fit",
        **about(model),
        **config.describe(),
        "weights_dtype": dtype_name(config.weights),
        "memory_bytes": memory,
        "weight_bytes": weights,
        "context_that_fits": longest,
        "trained_context": trained,
        "limit": "weights" if weights > memory else "context" if whole else "cache",
    }


def crossing_row(model: Model, against: Model, dtype: torch.dtype) -> Row:
    """`changes` lists which cache is the smaller from which context on, the model's or that of `against`;
    `from_context` and `smaller` repeat the last change."""
    changes = growth.changes(*(growth.pieces(each.spec, dtype) for each in (model, against)))
    smaller = {-1: model.label, 0: None, 1: against.label}
    listed = [{"from_context": change.start, "smaller": smaller[change.sign]} for change in changes]
    return {
        "table": "crossing",
        **about(model),
        "against": against.label,
        "against_swap": against.swap,
        **listed[-1],
        "changes": listed,
    }
