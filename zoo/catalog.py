"""Finds and builds released models by name: by preset, family or hub id."""

import re
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from math import log
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from zoo.architectures import families, published
from zoo.architectures import folded as folded
from zoo.architectures import is_known as is_known
from zoo.arguments import find_dtype
from zoo.core.devices import allocating, find_device
from zoo.core.kernels import active
from zoo.errors import MalformedError, SpecError, UsageError, suggestion
from zoo.hf.config import About, Size
from zoo.hf.estimate import Estimate
from zoo.kernel_choice import decide_for
from zoo.model.decoder import Decoder
from zoo.model.initialisation import initialise
from zoo.model.module import Model
from zoo.registry import Spec, differences
from zoo.swaps.differences import structure_differences
from zoo.swaps.tiny import tiny as _tiny


@cache
def sizes() -> dict[str, Size]:
    """Maps each preset's name to its published size, family by family in order of release."""
    return {name: size for family in families().values() for name, size in family.SIZES.items()}


def names() -> list[str]:
    """Returns the name of every published size: "qwen3-0.6b", "deepseek-v3-671b", "gpt-oss-20b", ..."""
    return list(sizes())


def best_known(family: str) -> str:
    """Returns the size that stands for a family in tables: BEST_KNOWN in the family's file, or else its first size."""
    module = families()[family]
    name: str = getattr(module, "BEST_KNOWN", next(iter(module.SIZES)))
    return name


def family_name(preset: str) -> str:
    """Returns the family of a preset: "gpt-oss-20b" -> "gpt-oss"."""
    return next(family for family, module in families().items() if preset in module.SIZES)


def about(preset: str) -> About:
    """Returns the publisher's facts about a preset's family."""
    said: About = families()[family_name(preset)].ABOUT
    return said


@cache
def counterpart(preset: str) -> str | None:
    """Returns the earlier model with which a size is compared: of the family in `compared_with`, the size with the most
    similar structure, and among equally similar sizes the one with the nearest number of parameters. Returns None if
    the family is compared with no other."""
    earlier = about(preset).compared_with
    if earlier is None:
        return None
    size, others = sizes()[preset], families()[earlier].SIZES

    def distance(name: str) -> tuple[int, float]:
        other = others[name]
        return len(structure_differences(size.spec, other.spec)), abs(log(size.params / other.params))

    return min(others, key=distance)


def resolve(name: str) -> str:
    """Returns the preset for a preset, a family (its smallest size) or a hub id. Raises UsageError for other names."""
    return published(name)[0]


def title(preset: str) -> str:
    """Returns a preset's name as people write it: "DeepSeek-V3 671B", "Gemma 3 27B". It is spelled as in the family's
    title or the hub id."""
    family = about(preset).title
    spelling = [*re.split(r"[-_ ]", sizes()[preset].hub.split("/")[-1])]
    words, shown = preset.split("-"), list[str]()
    for n in range(len(words), 0, -1):
        if _letters("".join(words[:n])) == _letters(family):
            shown, words = [family], words[n:]
            break
    return " ".join([*shown, *(_spelled(word, spelling) for word in words)])


def _spelled(word: str, parts: list[str]) -> str:
    """Returns a word of a preset's name as it is spelled in the parts of a hub id; parameter counts are in capitals."""
    if re.fullmatch(r"a?\d+(\.\d+)?(x\d+)?[bmt]", word):
        return word.upper().replace("X", "x")
    joined = (parts[i:j] for i in range(len(parts)) for j in range(i + 1, len(parts) + 1))
    found = next((" ".join(each) for each in joined if _letters("".join(each)) == _letters(word)), word)
    return found.upper() if len(found) <= 2 else found[:1].upper() + found[1:]


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text.lower()))


@dataclass(frozen=True)
class FoundSpec:
    """A spec and its source.

    `name` is shown in tables: a preset, or the name of a folder or file ("./" distinguishes it from a preset). `preset`
    is None if the model is not a preset. `config` is the published config.json, and `path` the folder or file, if any.
    `estimate` is what the spec rests on if no family reads the config.
    """

    name: str
    spec: Decoder
    preset: str | None = None
    config: dict[str, Any] | None = None
    path: Path | None = None
    estimate: Estimate | None = None

    @property
    def title(self) -> str:
        """The name as people write it."""
        return title(self.preset) if self.preset else self.name

    @property
    def size(self) -> Size | None:
        """The published size; None if the model is not a preset."""
        return sizes()[self.preset] if self.preset else None


def found(name: str) -> FoundSpec:
    """Returns the spec of a released model, named by a preset, family or hub id. Raises UsageError for other names."""
    preset = resolve(name)
    return FoundSpec(preset, sizes()[preset].spec, preset)


def spec(name: str, tiny: bool = False) -> Decoder:
    """Returns the spec of a preset, a family or a hub id. `tiny` keeps the blocks and makes all widths small."""
    full = sizes()[resolve(name)].spec
    return _tiny(full) if tiny else full


def build(
    name_or_spec: str | Decoder,
    *,
    tiny: bool = False,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = torch.float32,
    seed: int = 0,
) -> Model:
    """Returns a model in eval mode with fresh weights drawn from `seed`; on the meta device it has no weights.

    Raises UsageError for an unknown model, device or dtype, and NotAvailable for a device that is missing.
    """
    model = allocate(_decoder(name_or_spec, tiny), device, find_dtype(dtype, computing=True))
    if torch.device(device).type != "meta":
        initialise(model, seed)
        decide_for(model)
    return model


def allocate(spec: Decoder, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Model:
    """Returns a model in eval mode with uninitialised weights. Before building anything, it raises NotAvailable or
    MalformedError if ZOO_KERNELS cannot be read, and the errors of `find_device`."""
    active()
    with allocating(find_device(device), dtype):
        return Model(spec).eval()


def _decoder(name_or_spec: str | Decoder, tiny: bool) -> Decoder:
    if isinstance(name_or_spec, str):
        return spec(name_or_spec, tiny)
    if not isinstance(name_or_spec, Decoder):
        raise UsageError(f"a model is named by a string or described by a Decoder, not a {type(name_or_spec).__name__}")
    return _tiny(name_or_spec) if tiny else name_or_spec


def family_of(config: Any) -> ModuleType:
    """Returns the architecture module that reads a published config.json, chosen by model_type. For a multimodal
    config, it reads the text part."""
    by_type = _by_model_type()
    if not isinstance(config, dict) or "model_type" not in config:
        raise MalformedError("config.json: must be an object with a model_type")
    model_type = str(config["model_type"])
    if model_type not in by_type:
        advice = "`python -m benchmarks params|kv|flops|compare SOURCE` estimates its costs"
        said = f"config.json: unknown model_type {model_type[:80]!r}: {advice}; {suggestion(model_type, by_type)}"
        raise MalformedError(said)
    text = config.get("text_config")
    inner = by_type.get(str(text.get("model_type"))) if isinstance(text, dict) else None
    return inner if inner and model_type in inner.from_hf.model_types else by_type[model_type]


def is_read(config: dict[str, Any]) -> bool:
    """Whether a family reads configs of this config's model_type."""
    return str(config.get("model_type")) in _by_model_type()


@cache
def _by_model_type() -> dict[str, ModuleType]:
    by_type: dict[str, ModuleType] = {}
    for family in families().values():  # two families share a reader if one has the other's model_type
        by_type = dict.fromkeys(family.from_hf.model_types, family) | by_type
    return by_type


def from_hf(config: dict[str, Any], ignore_fields: Iterable[str] = ()) -> Decoder:
    """Returns the spec of a published config.json of any architecture. Raises MalformedError for an unsupported
    config."""
    spec: Decoder = family_of(config).from_hf(config, ignore_fields)
    return spec


# A spec has no tokenizer. If these fields were absent, they would get the model_type's default ids, which may lie
# outside the vocabulary.
TOKENS = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
PER_LAYER = ("layer_types", "no_rope_layers")


def to_hf(spec: Decoder) -> dict[str, Any]:
    """Returns a config.json for this model, in the published format. `from_hf` reads the same spec from it.

    The config is in the older spelling (`rope_theta`, `rope_scaling`), which every version of the reference reads. If
    several model_types can describe the model, the one with the nearest released size is used. Raises SpecError if none
    can, naming each block that the nearest model_type cannot describe.
    """

    def distance(family: ModuleType) -> int:  # to the family's nearest released size
        return min(sum(differences(spec, size.spec).values()) for size in family.SIZES.values())

    # Families that have released every kind of block in the spec are tried first, because trying all takes longer.
    kinds, configs = _block_kinds(spec), dict[ModuleType, dict[str, Any]]()
    for likely in (True, False):
        tried = [family for family in families().values() if (kinds <= _released_kinds(family)) is likely]
        configs |= {family: config_of(family, spec) for family in tried}
        exact = [family for family in tried if _read_back(family, configs[family]) == spec]
        if exact:
            return configs[min(exact, key=distance)]
    described = {family: found for family in configs if (found := _described(family, configs[family]))}
    if not described:
        raise SpecError("no published config describes this model, nor one like it")
    differs = {family: differences(spec, other) for family, other in described.items()}
    nearest = min(differs, key=lambda family: (sum(differs[family].values()), distance(family)))
    model_type, listed = configs[nearest]["model_type"], "; ".join(differs[nearest])
    raise SpecError(f"no published config describes this model. The nearest, of {model_type}: {listed}")


def config_of(family: ModuleType, spec: Decoder) -> dict[str, Any]:
    """Returns the family's config that is nearest to a spec. Fields of blocks that the spec lacks come from the
    family's first size of this model_type, or else from its first size."""
    own, sizes = _fields(family, spec), _released_configs(family)
    alike = (size for size in sizes if size["model_type"] == own["model_type"])
    fields = deepcopy(next(alike, sizes[0])) | own
    return {"architectures": [family.from_hf.classes[fields["model_type"]]], **TOKENS, **fields}


def _block_kinds(spec: Decoder) -> frozenset[type[Spec]]:
    """Returns the classes of the mixers, feed-forwards and routers in a spec, which identify its architecture."""
    return frozenset(type(part) for part in spec.walk() if part.role in ("attn", "ffn", "router"))


@cache
def _released_kinds(family: ModuleType) -> frozenset[type[Spec]]:
    """Returns every kind of block that occurs in at least one of the family's sizes."""
    return frozenset().union(*(_block_kinds(size.spec) for size in family.SIZES.values()))


@cache
def _released_configs(family: ModuleType) -> list[dict[str, Any]]:
    """Returns the config that the family writes for each of its sizes."""
    return [_fields(family, size.spec) for size in family.SIZES.values()]


def _fields(family: ModuleType, spec: Decoder) -> dict[str, Any]:
    """Returns the config fields that the family writes for a spec."""
    fields: dict[str, Any] = {"model_type": family.from_hf.model_types[0], **family.from_hf.expected}
    return fields | family.to_hf(spec)


def _described(family: ModuleType, config: dict[str, Any]) -> Decoder | None:
    """Returns the spec that a config describes, or None if the family has no such model. If the config contradicts the
    family's layer pattern or head_dim, it is read without these fields."""
    ignored = ((), PER_LAYER, (*PER_LAYER, "head_dim"))
    return next((spec for without in ignored if (spec := _read_back(family, config, without))), None)


def _read_back(family: ModuleType, config: dict[str, Any], without: tuple[str, ...] = ()) -> Decoder | None:
    """Returns the spec that a config describes; None if the config contradicts itself."""
    try:
        spec: Decoder = family.from_hf({name: value for name, value in config.items() if name not in without})
    except MalformedError:
        return None
    return spec
