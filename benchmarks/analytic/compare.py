"""Two architectures side by side: the differences in structure, in the fields of their specs, and in costs."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

from benchmarks.analytic.kv import InferenceConfig
from benchmarks.analytic.models import NamedSpec, about
from benchmarks.analytic.params import FFN_PARTS
from benchmarks.analytic.roofline import PHASES, Device, forward_pass
from zoo.cli.tables import Row
from zoo.model.decoder import Decoder
from zoo.registry import Spec
from zoo.swaps.differences import structure_differences

DESCRIBED_ROLES = ("rope", "norm", "router", "act")  # a spec of these roles counts as one value, not as one per field
KV_CONTEXTS = (4 * 1024, 32 * 1024, 128 * 1024)
PAIRS = (
    ("gpt2-xl", "llama3.2-1b"),
    ("llama3.1-8b", "olmo2-7b"),
    ("olmo2-32b", "gemma3-27b"),
    ("gemma3-27b", "mistral-small-3.1-24b"),
    ("llama3.2-1b", "qwen3-0.6b"),
    ("deepseek-v3-671b", "qwen3-235b-a22b"),
    ("smollm3-3b", "qwen3-4b"),
    ("llama3.1-8b", "llama4-scout-109b"),
    ("olmo2-32b", "olmo3-32b"),
    ("gemma3-27b", "gemma4-31b"),
    ("deepseek-v3-671b", "deepseek-v3.2-671b"),
    ("deepseek-v3.2-671b", "deepseek-v4-pro-1.6t"),
    ("deepseek-v3-671b", "kimi-k2-1t"),
    ("qwen3-235b-a22b", "glm4.5-355b"),
    ("qwen3-30b-a3b", "qwen3-next-80b-a3b"),
    ("qwen3-next-80b-a3b", "nemotron3-nano-30b-a3b"),
)  # pairs of models that the gallery suggests for comparison
FieldValues = dict[str, Counter[Any]]  # field path -> value -> number of layers that have it
# Words for names in a field's path that would be unclear by themselves.
WORDS = {
    "act": "activation",
    "attn": "attention",
    "bias": "biases",
    "cap": "cap of the scores",
    "chunk": "chunk of tokens",
    "conv": "convolution over",
    "dim": "model width",
    "embed_scale": "factor of the embedding",
    "every": "tokens per entry",
    "ffn": "feed-forward",
    "from_one": "grows from one",
    "gate": "output gate",
    "head_dim": "width of a head",
    "heads": "query heads",
    "hidden": "hidden width",
    "k": "chosen keys",
    "key_dim": "width of a key",
    "kv_heads": "KV heads",
    "kv_rank": "width of the KV latent",
    "logit_cap": "cap of the logits",
    "logits_scaling": "divisor of the logits",
    "nope_dim": "width of a head without RoPE",
    "o_rank": "width of the output latent",
    "positions": "learned positions",
    "q_rank": "width of the query latent",
    "qk_norm": "QK-norm",
    "qk_norm_over": "QK-norm over",
    "rope": "position encoding",
    "rope_dim": "width of a head with RoPE",
    "scale": "factor of the scores",
    "shared": "shared expert",
    "state": "state of a head",
    "tied": "head tied to embedding",
    "v_dim": "width of a value",
    "v_norm": "V-norm",
    "value_dim": "width of a value",
    "vocab": "vocabulary",
}


def structure_rows(first: NamedSpec, second: NamedSpec) -> list[Row]:
    """Returns one row, with a sentence, for each structural difference of the second model from the first."""
    pair = {"table": "structure", **about(first, second)}
    differences = structure_differences(second.spec, first.spec)
    return [pair | {"part": found.part, "sentence": found.sentence} for found in differences]


def difference_rows(first: NamedSpec, second: NamedSpec) -> list[Row]:
    """Returns one row for each field that differs between the models, in its values or in how many layers have each.

    An option that is off in one model and does not exist in the other gets no row.
    """
    a, b = field_values(first.spec), field_values(second.spec)
    pair, rows = {"table": "differences", **about(first, second)}, []
    for field in sorted({*a, *b}, key=_order(a, b)):
        x, y = a.get(field, Counter()), b.get(field, Counter())
        off = not (x and y) and {*x, *y} <= {None, False}
        if _shares(x) != _shares(y) and not off:
            value, other = _text(x, _shown), _text(y, _shown)
            if value == other:  # specs with equal descriptions are shown with all their fields
                value, other = _text(x, repr), _text(y, repr)
            rows.append({**pair, "field": field, "words": field_in_words(field), "value": value, "other": other})
    return rows


def unknown_rows(first: NamedSpec, second: NamedSpec) -> list[Row]:
    """Returns one row for each field of an estimated model's config that is not understood, with both values."""
    unread = [dict(model.estimate.unread if model.estimate else ()) for model in (first, second)]
    pair = {"table": "unknown_fields", **about(first, second)}
    fields = dict.fromkeys([*unread[0], *unread[1]])
    return [{**pair, "field": each, "value": unread[0].get(each), "other": unread[1].get(each)} for each in fields]


def field_in_words(path: str) -> str:
    """Returns a field's path in words: attn.kv_heads -> attention: KV heads."""
    first, *rest = path.split(".")
    within = (WORDS.get(name, "norm inside" if name == "norm" else name.replace("_", " ")) for name in rest)
    return ": ".join([WORDS.get(first, first.replace("_", " ")), *within])


def field_values(spec: Decoder) -> FieldValues:
    """Returns {path of a field: {value: number of layers that have it}} for every field of a spec.

    For a field of the whole model, the number is 1.
    """
    values: FieldValues = {"layers": Counter([len(spec.layers)])}
    for field in fields(spec):
        if field.name not in ("layers", "norm"):
            values[field.name] = Counter([getattr(spec, field.name)])
    for layer, number in Counter(spec.layers).items():
        branches = dict(layer.branches())
        found = [pair for role, branch in branches.items() for pair in _of_block(role, branch.block)]
        found += [pair for role, part in layer.children() if role not in branches for pair in _of_block(role, part)]
        for branch in branches.values():
            found += [("norm placement", f"{branch.placement}: {branch.formula}")]
            found += [("norm", norm) for norm in branch.norms()]
        for path, value in found:
            values.setdefault(path, Counter())[value] += number
    values["norm"][spec.norm] += 1
    return values


def _of_block(path: str, spec: Spec) -> Iterator[tuple[str, Any]]:
    """Yields (path, value) for the kind of a block, for its fields, and for the fields of the blocks in it."""
    yield path, spec.names()[0]
    for field in fields(spec):
        value, inner = getattr(spec, field.name), f"{path}.{field.name}"
        if _qualifies_what_is_off(spec, field.name):
            continue
        if isinstance(value, Spec) and value.role not in DESCRIBED_ROLES:
            yield from _of_block(inner, value)
        else:
            yield inner, value


def _qualifies_what_is_off(spec: Spec, name: str) -> bool:
    """Whether a field only qualifies another field that is None, as qk_norm_over qualifies qk_norm."""
    return any(value is None and name.startswith(f"{other}_") for other, value in vars(spec).items())


def _order(a: FieldValues, b: FieldValues) -> Callable[[str], tuple[int, int]]:
    """Returns a sort key: fields in the order of the specs, with the fields of one part together."""
    order = list(dict.fromkeys([*a, *b]))
    parts = list(dict.fromkeys(field.partition(".")[0] for field in order))
    return lambda field: (parts.index(field.partition(".")[0]), order.index(field))


def _shares(values: Counter[Any]) -> dict[Any, float]:
    return {value: number / values.total() for value, number in values.items()}


def _text(values: Counter[Any], show: Callable[[Any], str]) -> str | None:
    if len(values) <= 1:
        return next(map(show, values), None)
    return ", ".join(f"{show(value)} in {number}" for value, number in values.items())


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    if isinstance(value, Spec):
        return value.describe()
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)


def figure_rows(
    first: NamedSpec, second: NamedSpec, context: int, config: InferenceConfig, device: Device
) -> list[Row]:
    """Returns one row for each cost that differs: both values, and the ratio of the second to the first."""
    pairs = zip(*(costs(each.spec, context, config.of(each), device) for each in (first, second)), strict=True)
    pair = {"table": "figures", **about(first, second)}
    return [
        {**pair, "figure": figure, "unit": unit, "value": a, "other": b, "ratio": b / a if a else None}
        for (figure, unit, a), (_, _, b) in pairs
        if a != b
    ]


def costs(spec: Decoder, context: int, config: InferenceConfig, device: Device) -> Iterator[tuple[str, str, float]]:
    """Yields (figure, unit, value) of one model for each cost in the comparison of two models."""
    parts = spec.param_breakdown()
    yield "parameters", "parameters", spec.params()
    yield "active parameters", "parameters", spec.active_params()
    yield "in embedding and head", "parameters", parts["embedding"] + parts["head"]
    yield "in attention", "parameters", parts.get("attn", 0) + parts.get("indexer", 0)
    yield "in feed-forwards", "parameters", sum(parts.get(part, 0) for part in FFN_PARTS)
    fixed, per_token = spec.kv_growth(config.cache)
    yield "KV cache, fixed", "bytes", fixed
    yield "KV cache per token", "bytes", per_token
    for tokens in KV_CONTEXTS:
        yield f"KV cache at {tokens // 1024}k", "bytes", spec.kv_bytes(tokens, config.batch, config.cache)
    for phase in PHASES:
        work = forward_pass(spec, phase, context, config)
        yield f"{phase}, FLOPs per token", "FLOPs", work.flops / work.tokens
        yield f"{phase}, ceiling", "tokens/s", work.tokens_per_s(device)
