"""The output of python -m zoo.build: the card of a model (layers, blocks, costs), the report, and the diagram."""

import re
import sys
from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import chain, zip_longest
from textwrap import wrap

import torch

from zoo import diagram
from zoo.blocks import Layer
from zoo.blocks.layer import Placement
from zoo.catalog import FoundSpec, about, counterpart, title
from zoo.catalog import spec as published_spec
from zoo.cli import self_check
from zoo.cli.self_check import Facts
from zoo.errors import SpecError
from zoo.model.decoder import Decoder
from zoo.model.layer_pattern import fold, labels
from zoo.swaps.differences import structure_differences
from zoo.swaps.grammar import apply_swaps
from zoo.swaps.scaled import Budget, resolved, scaled
from zoo.swaps.tiny import full_sizes
from zoo.swaps.tiny import tiny as toy
from zoo.units import dtype_name, format_bytes, format_count

WIDTH, LABEL_WIDTH = 80, 15  # characters
KV_CONTEXT, FLOPS_CONTEXT = 32 * 1024, 4096  # tokens
CONVENTION = f"2 per multiply-add, matrix products only, of one new token that sees {FLOPS_CONTEXT:,}, itself included"
Rows = dict[str, list[str]]  # label -> paragraphs
BY_KIND = {"attention": "attn", "feed-forward": "ffn", "inputs": "inputs", "norms": "norms"}  # rows about layers


def swapped_specs(
    model: Decoder, tiny: bool, swaps: Sequence[str], params: int | None = None
) -> tuple[Decoder, Decoder, list[str]]:
    """Returns a model's spec before and after all swaps, and the names of the features that the swaps drop.

    With `tiny`, both specs have toy widths. With `params`, both are scaled to this number of parameters.
    """
    original = toy(model) if tiny else model if params is None else scaled(model, params).spec
    where = "toy widths of --tiny" if tiny else "widths of --params" if params else ""
    try:
        spec, dropped = apply_swaps(original, swaps)
    except SpecError as error:
        raise SpecError(f"{error} (at the {where})" if where else str(error)) from error
    if tiny and (warning := full_sizes_warning(spec, original)):
        print(warning, file=sys.stderr)
    return original, resolved(spec, params).spec if params and swaps else spec, dropped


def full_sizes_warning(spec: Decoder, original: Decoder) -> str | None:
    """Returns a warning of sizes in a swapped toy model that were probably meant for a full model; None if there are
    none."""
    if large := full_sizes(spec, original):
        return f"warning: {', '.join(large)} beside the toy width of {spec.dim}; dim/4 or context/8 fits any model"
    return None


def build_report(
    found: FoundSpec,
    tiny: bool,
    swaps: Sequence[str],
    device: torch.device,
    dtype: torch.dtype,
    seed: int,
    params: int | None = None,
) -> Facts:
    """Returns the card of a model, which may have toy widths or be scaled to `params`, and the checks of the built
    model. On the meta device, only the number of parameters is checked."""
    original, spec, dropped = swapped_specs(found.spec, tiny, swaps, params)
    size, runs = found.size, device.type != "meta"
    if runs:
        self_check.require_free_memory(spec, device, dtype)
    if not tiny and not params:
        building = f"building {format_count(spec.params())} parameters on {device}"
        print(building if runs else "not run: --tiny runs it at toy widths, --device cpu in full", file=sys.stderr)
    model, built = self_check.check_build(spec, device, dtype, seed)
    decoded = self_check.check_decoding(model, dtype, seed) if runs else None
    return {
        "model": found.name,
        "hub": size.hub if size else None,
        "released": size.released if size else None,
        "note": size.note if size else None,
        "about": origin(found.preset) if found.preset and not swaps else None,
        "tiny": tiny,
        "budget": Budget("parameters", params, spec.params()).describe() if params else None,
        "swaps": swaps,
        "dropped": dropped,
        "original": card(original, dtype) if swaps else None,
        "card": card(spec, dtype, size.active if size and not (tiny or params or swaps) else None),
        "built": built,
        "decoded": decoded,
        "failures": self_check.failures(built, decoded),
    }


def figure(
    found: FoundSpec,
    tiny: bool = False,
    params: int | None = None,
    swaps: Sequence[str] = (),
    dtype: torch.dtype = torch.bfloat16,
    theme: diagram.Theme = "light",
    costs: bool = False,
) -> tuple[str, list[str]]:
    """Returns the diagram of a model as SVG, and the features that swaps dropped.

    For a preset, numbered sentences list the differences from its counterpart. For a swapped model, they list the
    changes by the swaps, and the diagram marks them.
    """
    original, drawn, dropped = swapped_specs(found.spec, tiny, list(swaps), params)
    name = f"{found.title} at toy widths" if tiny else found.title
    name += f" at {format_count(params)} parameters" if params else ""
    name += f" with {', '.join(map(_spaced, swaps))}" if swaps else ""
    known = counterpart(found.preset) if found.preset and not (swaps or tiny or params) else None
    other = original if swaps else published_spec(known) if known else None
    differences = structure_differences(drawn, other) if other else []
    heading = "" if other is None else f"New compared with {title(known)}" if known else "Swapped"
    if other and not differences:
        heading += ": only sizes"
    drawing = diagram.svg(
        drawn,
        name,
        dtype=dtype,
        against=original if swaps else None,
        theme=theme,
        costs=costs,
        subtitle=found.size.hub if found.size else "",
        callouts=diagram.callouts(differences, drawn),
        heading=heading,
    )
    return drawing, dropped


def origin(preset: str) -> Facts:
    """Returns the counterpart of a published size, its new features, and the publisher's facts."""
    earlier, publisher = counterpart(preset), about(preset)
    found = structure_differences(published_spec(preset), published_spec(earlier)) if earlier else []
    new = [each.sentence for each in found]
    said = {"licence": publisher.licence, "report": publisher.report, "left_out": publisher.left_out}
    return {"compared_with": earlier, "new": new} | said


def card(spec: Decoder, dtype: torch.dtype, published_active: tuple[int, str] | None = None) -> Facts:
    """Returns a model's layers, blocks and costs. Cache bytes are those of one sequence in `dtype`. `published_active`
    holds the publisher's number of active parameters, and how the publisher's counting rule differs from the zoo's."""
    names = dict(zip(dict.fromkeys(spec.layers), labels(spec.layers), strict=True))
    counts = Counter(spec.layers)
    fixed, per_token = spec.kv_growth(dtype)
    active, rule = published_active or (None, None)
    return {
        "layers": len(spec.layers),
        "layer_pattern": fold([names[layer] for layer in spec.layers]),
        "kinds": [{"label": name, "layers": counts[layer]} | _blocks(layer) for layer, name in names.items()],
        "dim": spec.dim,
        "vocab": spec.vocab,
        "tied": spec.tied,
        "embed_scale": spec.embed_scale,
        "per_layer_width": spec.per_layer.width if spec.per_layer else None,
        "streams": spec.streams.describe() if spec.streams else None,
        "norm": spec.norm.describe(),
        "context": spec.context,
        "params": spec.params(),
        "active_params": spec.active_params(),
        "published_active_params": active,
        "published_active_rule": rule,
        "embedding_params": spec.embedding_params(),
        "kv_dtype": dtype_name(dtype),
        "kv_fixed_bytes": fixed,
        "kv_bytes_per_token": per_token,
        "kv_bytes_32k": spec.kv_bytes(KV_CONTEXT, dtype=dtype),
        "kv_bytes_context": spec.kv_bytes(spec.context, dtype=dtype) if spec.context else None,
        "flops_per_token_4k": spec.flops(past=FLOPS_CONTEXT - 1, new=1),
        "flops_convention": CONVENTION,
    }


def _blocks(layer: Layer) -> Facts:
    def norms(branch: Placement) -> str:
        kinds = " and ".join(dict.fromkeys(norm.describe() for norm in branch.norms())) or "no norm"
        return f"{branch.placement}, {branch.formula}: {kinds}"

    where = {role: norms(branch) for role, branch in layer.branches()}
    is_same = len(set(where.values())) == 1
    both = next(iter(where.values())) if is_same else "; ".join(f"{role} {each}" for role, each in where.items())
    blocks = {role: branch.block.describe() for role, branch in layer.branches()}
    return {role: blocks.get(role, "none") for role in ("attn", "ffn", "inputs")} | {"norms": both}


def report_text(report: Facts) -> str:
    """Formats a report in 80 columns: name, swaps, the card (two cards after a swap), and the checks of the model."""
    name = f"{report['model']} at toy widths" if report["tiny"] else report["model"]
    where = f"  ({report['hub']})" if report["hub"] else ""
    name = f"{name}, scaled: {report['budget']}" if report["budget"] else f"{name}{where}"
    released = report["released"] and f"released {report['released']}"
    title = [name] if len(name) <= WIDTH else name.split("  ")
    sections = [[*title, *wrap("; ".join(filter(None, [released, report["note"]])), WIDTH)]]
    if report["swaps"]:
        dropped = ", ".join(report["dropped"]) or "nothing"
        sections.append(_one_column({"swap": list(map(_spaced, report["swaps"])), "dropped": [dropped]}))
        sections.append(_two_columns(report["original"], report["card"]))
    else:
        sections.append(_one_column(_card_rows(report["card"])))
    if report["about"]:
        sections.append(_one_column(_origin_rows(report["about"])))
    sections += [checks_text(report["built"], report["decoded"]).splitlines(), wrap(f"FLOPs are {CONVENTION}.", WIDTH)]
    return "\n\n".join("\n".join(lines) for lines in sections)


def _spaced(swap: str) -> str:
    """Returns a swap with a space after each comma, so that lines can break there."""
    return re.sub(r",\s*", ", ", swap)


def _one_column(rows: Rows) -> list[str]:
    return [line for label, cell in rows.items() for line in _row(label, [cell], WIDTH - LABEL_WIDTH)]


def _two_columns(original: Facts, swapped: Facts) -> list[str]:
    """Formats both cards side by side. A star marks the rows that differ in more than the labels of the layers."""
    column = (WIDTH - LABEL_WIDTH - 2) // 2
    before, after = _card_rows(original), _card_rows(swapped)
    for label, key, where in (
        ("parameters", "params", " in all"),
        ("KV cache", "kv_bytes_32k", f" at {KV_CONTEXT:,} tokens"),
        ("FLOPs", "flops_per_token_4k", ""),
    ):
        if original[key] != swapped[key]:
            change = swapped[key] / original[key] - 1  # small changes get more digits, never 0.0%
            after[label].append((f"{change:+.1%}" if abs(change) >= 0.001 else f"{100 * change:+.1g}%") + where)
    lines = _row("", [["original"], ["swapped"]], column)
    for label, old in before.items():
        new = after.get(label, ["none"])
        is_same = old == new
        if label in BY_KIND:
            is_same = _texts(original, BY_KIND[label]) == _texts(swapped, BY_KIND[label])
        lines += _row(label if is_same else f"{label} *", [old, ["same"] if is_same else new], column)
    return lines


def _row(label: str, cells: Sequence[Sequence[str]], column: int) -> list[str]:
    """Formats a label, and its cells to the right. A cell is a list of paragraphs, wrapped to `column` characters."""
    wrapped = partial(wrap, width=column, subsequent_indent="  ", break_on_hyphens=False)
    rows = zip_longest([label], *(chain.from_iterable(map(wrapped, cell)) for cell in cells), fillvalue="")
    return [f"{row[0]:{LABEL_WIDTH}}{'  '.join(line.ljust(column) for line in row[1:])}".rstrip() for row in rows]


def _card_rows(card: Facts) -> Rows:
    scale = f", scaled by {card['embed_scale']:g}" if card["embed_scale"] != 1 else ""
    head = "tied to the head" if card["tied"] else "beside a head of the same size"
    params, active = card["params"], card["active_params"]
    share = "all active" if active == params else f"{active:,} ({format_count(active)}) active"
    published = f"{card['published_active_params'] or 0:,} published active, {card['published_active_rule']}"
    flops = format_count(card["flops_per_token_4k"]).replace("B", "G")
    return {
        "layers": [f"{card['layers']} = " * (len(card["kinds"]) > 1) + card["layer_pattern"]],
        **{row: _by_kind(card, key) for row, key in BY_KIND.items() if key != "inputs" or card["per_layer_width"]},
        "embedding": [
            f"{card['vocab']:,} tokens x {card['dim']:,}{scale}, {head}",
            *[f"for per-layer inputs x {card['layers']} x {card['per_layer_width']}"] * bool(card["per_layer_width"]),
        ],
        **({"stream": [card["streams"]]} if card["streams"] else {}),
        "parameters": [
            f"{params:,} ({format_count(params)}), {share}",
            *[published] * bool(card["published_active_params"]),
            f"{card['embedding_params'] / params:.1%} in embedding and head",
        ],
        "KV cache": _cache_cell(card),
        "FLOPs": [f"{flops} per token at {FLOPS_CONTEXT:,} tokens of context"],
    }


def _origin_rows(origin: Facts) -> Rows:
    new = "; ".join(origin["new"]) or "only sizes"
    rows = {"compared": [f"with {origin['compared_with']}; new: {new}"]} if origin["compared_with"] else {}
    rows |= {"report": [origin["report"]], "licence": [origin["licence"]]}
    return rows | ({"not built": [origin["left_out"]]} if origin["left_out"] else {})


def _texts(card: Facts, key: str) -> list[str]:
    """Returns the distinct descriptions of all kinds of layers, in order."""
    return list(dict.fromkeys(kind[key] for kind in card["kinds"]))


def _by_kind(card: Facts, key: str) -> list[str]:
    """Returns the distinct descriptions of all kinds of layers. Each one has a label if there are several kinds."""
    found: dict[str, list[str]] = {}
    for kind in card["kinds"]:
        found.setdefault(kind[key], []).append(f"[{kind['label']}]")
    return list(found) if len(found) == 1 else [f"{' '.join(labels)} {text}" for text, labels in found.items()]


def _cache_cell(card: Facts) -> list[str]:
    fixed, per_token, context = card["kv_fixed_bytes"], card["kv_bytes_per_token"], card["context"]
    growth = f"{per_token:,}{' per token' if fixed else ' bytes per token'} ({format_bytes(per_token)})"
    terms = [f"{fixed:,} bytes ({format_bytes(fixed)})"] * bool(fixed) + [growth] * bool(per_token)
    sizes = f"{format_bytes(card['kv_bytes_32k'])} at {KV_CONTEXT:,} tokens"
    if context == KV_CONTEXT:
        sizes += ", the max context"
    elif context is not None:
        sizes += f", {format_bytes(card['kv_bytes_context'])} at max context {context:,}"
    return [f"{' + '.join(terms)}, in {card['kv_dtype']}", sizes]


def checks_text(built: Facts, decoded: Facts | None) -> str:
    """Formats the checks of a built model in 80 columns."""
    return "\n".join(_one_column(_check_rows(built, decoded)))


def _check_rows(built: Facts, decoded: Facts | None) -> Rows:
    def agreement(number: int, formula: int) -> str:
        return "as the formula says" if number == formula else f"and the formula says {formula:,}"

    parameters = f"{built['parameters']:,} parameters, {agreement(built['parameters'], built['formula'])}"
    rows = {"built": [f"on {built['device']} in {built['dtype']}, in {built['seconds']:.2g} s: {parameters}"]}
    if decoded is None:
        return rows
    bound, verdict = decoded["bound"], f"not judged: {decoded['not_judged']}"
    if bound is not None:
        verdict = f"the bound is {bound:.0e}"
    tokens, logit = f"{decoded['tokens']} random tokens, seed {decoded['seed']}", decoded["largest_logit"]
    return rows | {
        "forward": [f"{tokens}: logits up to {logit:.2f}"],
        "decoding": [
            f"over the cache, {' + '.join(map(str, decoded['chunks']))} tokens, then {decoded['steps']} one by one",
            f"differs by {decoded['largest_difference']:.0e} of the largest logit at most, in "
            f"{decoded['compared_in']}; {verdict}",
        ],
        "cache": [f"{decoded['cache_bytes']:,} bytes, {agreement(decoded['cache_bytes'], decoded['cache_formula'])}"],
    }
