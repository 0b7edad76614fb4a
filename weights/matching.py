"""Which stored tensors fill which parameters, settled and checked from names, shapes and dtypes before one is read."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from zoo.blocks.layer import Layer
from zoo.errors import MalformedError, UsageError, enough
from zoo.hf.checkpoint_layout import WRAPPERS, Rule, Rules, Skipped
from zoo.model.decoder import Decoder

READ = {torch.float32, torch.bfloat16, torch.float16, torch.float64}
LEAVES = ("weight", "bias")
FOLDED = 20_000  # lines, which take a kilobyte each while they are folded
HEAD, EMBED = "lm_head.weight", "model.embed_tokens.weight"


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor in a file, not read yet: its own name there, its shape, and its dtype, None for one that is not read."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype | None


@dataclass(frozen=True)
class TensorMapping:
    """Entry tensors `theirs` become the parameters `ours`, by a rule, in one layer of the plan or outside them all."""

    rule: Rule
    layer: Layer | None
    ours: tuple[str, ...]
    theirs: tuple[str, ...]

    def expected(self, parameters: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
        """The shapes that parameters on the meta device ask of the stored tensors."""
        written = self.rule.write([parameters[name] for name in self.ours], self.layer)
        return {name: tuple(tensor.shape) for name, tensor in zip(self.theirs, written, strict=True)}


def text_names(where: Path, entries: Iterable[Entry]) -> dict[str, Entry]:
    """By name, without the prefixes of a multimodal wrapper."""
    named: dict[str, Entry] = {}
    for tensor in entries:
        prefix = next((prefix for prefix in WRAPPERS if tensor.name.startswith(prefix)), "")
        name = WRAPPERS.get(prefix, "") + tensor.name[len(prefix) :]
        if name in named:
            raise MalformedError(
                f"{where}: {tensor.name} and {named[name].name} are both stored, for the same parameter"
            )
        named[name] = tensor
    return named


def match(spec: Decoder, parameters: Iterable[str], rules: Rules, stored: Container[str]) -> list[TensorMapping]:
    """The moves that fill all parameters. Of several rules for one, the first that finds any of its tensors stored.

    Raises UsageError naming the parameters that no rule is for.
    """
    moves: list[TensorMapping] = []
    filled: set[str] = set()
    unmapped: list[str] = []
    for parameter in parameters:
        if parameter in filled:
            continue
        found = [move for rule in rules if isinstance(rule, Rule) and (move := _bind(spec, rule, parameter))]
        if not found:
            unmapped.append(parameter)
            continue
        moves.append(next((move for move in found if any(name in stored for name in move.theirs)), found[0]))
        filled.update(moves[-1].ours)
    if unmapped:
        raise UsageError(f"no released checkpoint has a place for {listed(unmapped)}")
    return moves


def _bind(spec: Decoder, rule: Rule, parameter: str) -> TensorMapping | None:
    """`rule` for this parameter, None if it is for others."""
    inside = re.fullmatch(r"layers\.(\d+)\.(.+)", parameter)
    place, local = (f"layers.{inside[1]}.", inside[2]) if inside else ("", parameter)
    ours = (rule.module_names,) if isinstance(rule.module_names, str) else rule.module_names
    stem, _, leaf = local.rpartition(".")
    if local in ours:
        suffix = ""
    elif stem in ours and leaf in LEAVES:
        suffix = f".{leaf}"
    else:
        return None
    layer = spec.layers[int(inside[1])] if inside else None
    theirs = f"model.{place}{rule.checkpoint_names}{suffix}" if inside else rule.checkpoint_names + suffix
    experts = range(_experts(layer)) if layer else ()
    each = [theirs.replace("{e}", str(e)) for e in experts] if "{e}" in theirs else [theirs]
    return TensorMapping(rule, layer, tuple(f"{place}{name}{suffix}" for name in ours), tuple(each))


def _experts(layer: Layer) -> int:
    """How many experts a layer's feed-forward has, whatever its kind; 0 where it has none."""
    counts = (getattr(part, "experts", None) for part in layer.ffn.walk())
    return next((count for count in counts if isinstance(count, int)), 0)


def skipped(spec: Decoder, rules: Rules, names: Iterable[str]) -> dict[str, list[str]]:
    """Entry tensors that no parameter of this model is for: what they are -> their names."""
    names = list(names)
    left = {"the embedding, stored again as the head": [HEAD]} if spec.tied and HEAD in names else {}
    skips = [(rule.what, rule.matcher(len(spec.layers))) for rule in rules if isinstance(rule, Skipped)]
    for name in names:
        what = next((what for what, matcher in skips if matcher.fullmatch(name)), None)
        if what is not None:
            left.setdefault(what, []).append(name)
    return left


def check(
    where: Path,
    moves: Iterable[TensorMapping],
    parameters: Mapping[str, Tensor],
    stored: Mapping[str, Entry],
    beside: Container[str],
) -> None:
    """Raise one MalformedError naming everything that does not fit: tensors missing, in surplus (neither used nor
    `beside`), of a wrong shape, of a dtype that holds no plain numbers."""
    moves = list(moves)
    used = {name for move in moves for name in move.theirs}
    missing = [name for name in used if name not in stored]
    surplus = [tensor.name for name, tensor in stored.items() if name not in used and name not in beside]
    shapes = [
        f"{stored[name].name} {list(stored[name].shape)} instead of {list(shape)}"
        for move in moves
        for name, shape in move.expected(parameters).items()
        if name in stored and stored[name].shape != shape
    ]
    dtypes = [stored[name].name for name in used if name in stored and stored[name].dtype not in READ]
    told = [
        f"missing: {listed(missing)}" if missing else "",
        f"not understood: {listed(surplus)}" if surplus else "",
        f"wrong shape: {listed(shapes)}" if shapes else "",
        f"neither float32, bfloat16, float16 nor float64: {listed(dtypes)}" if dtypes else "",
    ]
    if any(told):
        raise MalformedError(f"{where}: the tensors do not fit the model; {'; '.join(part for part in told if part)}")


def listed(lines: Iterable[str]) -> str:
    """Lines as one, those that differ in a number alone folded; above FOLDED, the first and how many there are."""
    lines = list(lines)
    rest = f", ... ({len(lines)} in all)" if len(lines) > FOLDED else ""
    return enough(folded(lines[:FOLDED])) + rest


def folded(lines: Iterable[str]) -> list[str]:
    """Lines that differ in one number alone, as one line: "layers.{0-27}.mlp.up_proj". Nothing is left out."""
    pieces = {tuple(re.split(r"(?<=\.)(\d+)(?=\.)", line)) for line in lines}
    for slot in range(max(map(len, pieces), default=1) - 2, 0, -2):
        groups: dict[tuple[str, ...], list[str]] = {}
        for piece in pieces:
            if len(piece) > slot:
                groups.setdefault((*piece[:slot], "", *piece[slot + 1 :]), []).append(piece[slot])
        short = {piece for piece in pieces if len(piece) <= slot}
        pieces = short | {(*key[:slot], _ranges(numbers), *key[slot + 1 :]) for key, numbers in groups.items()}
    return sorted("".join(piece) for piece in pieces)


def _ranges(numbers: Iterable[str]) -> str:
    """ "3", "4", "5", "9" -> "{3-5,9}"; a lone one as it is."""
    runs: list[list[int]] = []
    for number in sorted(map(int, numbers)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number])
    text = ",".join("-".join(map(str, run)) for run in runs)
    return text if text.isdigit() else f"{{{text}}}"
