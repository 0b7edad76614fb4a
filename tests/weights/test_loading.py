"""Every layout of released checkpoints fills the same parameters; tensors that are not read are named."""

import logging
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import weights
import zoo
from tests.exact import assert_equal
from tests.models import is_differentiated, tokens_of
from tests.presets import distinct, representatives, screen_by_family
from tests.weights.checkpoints import Config, Tensors, read, write
from weights.formats.hf_folder import HFFolder
from weights.loading import fill, open_source
from weights.matching import match, stored_tensors
from zoo.architectures import families
from zoo.blocks import MoE
from zoo.errors import MalformedError, NotAvailable, UsageError
from zoo.hf.checkpoint_layout import PackedRows, PairedRows, Rearranged

ROOT = Path(__file__).parents[2]
Saved = Callable[[str], Path]
ROWS = Rearranged | PairedRows | PackedRows  # the rules that move or split stored tensors
DENSE, MIXED, LATENT, SANDWICH = "qwen3-0.6b", "qwen3-30b-a3b", "deepseek-v3-671b", "gemma3-4b"
WRAPPED = (SANDWICH, "mistral-small-3.1-24b")


def fused(config: Config, tensors: Tensors) -> tuple[Config, Tensors]:
    """The experts of a layer in one tensor each for gate with up, and for down."""
    rest = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    for layer in sorted({name.split("experts.")[0] for name in tensors if ".experts." in name}):
        count = sum(
            name.startswith(layer) and name.endswith("down_proj.weight") for name in tensors if ".experts." in name
        )
        gate, up, down = (
            torch.stack([tensors[f"{layer}experts.{e}.{part}_proj.weight"] for e in range(count)])
            for part in ("gate", "up", "down")
        )
        rest |= {f"{layer}experts.gate_up_proj": torch.cat([gate, up], dim=1), f"{layer}experts.down_proj": down}
    return config, rest


def wrapped(config: Config, tensors: Tensors, newer: bool = False) -> tuple[Config, Tensors]:
    """The text part of a multimodal checkpoint, beside a vision tower and its projector."""
    kind = {"gemma3_text": "gemma3", "mistral": "mistral3"}[config["model_type"]]
    outer = {"model_type": kind, "text_config": config, "vision_config": {}, "dtype": "float32"}
    named = {}
    for name, tensor in tensors.items():
        text = name if newer and name.startswith("lm_head") else f"language_model.{name}"
        named[text.replace("language_model.model.", "model.language_model.") if newer else text] = tensor
    before = "model." if newer else ""
    named[f"{before}vision_tower.patch_conv.weight"] = torch.randn(4, 3)
    named[f"{before}multi_modal_projector.linear_1.weight"] = torch.randn(4, 3)
    return outer, named


def wrapped_newer(config: Config, tensors: Tensors) -> tuple[Config, Tensors]:
    """The same checkpoint in the spelling of transformers 5's module tree."""
    return wrapped(config, tensors, newer=True)


def head_stored_twice(config: Config, tensors: Tensors) -> tuple[Config, Tensors]:
    """A tied head that is stored anyway, as in Qwen3-0.6B. NaN is not equal to itself, but its bits are."""
    tensors["model.embed_tokens.weight"][7, 7] = torch.nan
    return config, tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}


def with_prediction_layer(config: Config, tensors: Tensors) -> tuple[Config, Tensors]:
    """DeepSeek-V3's multi-token prediction layer."""
    extra = {f"model.layers.{config['num_hidden_layers']}.{name}": torch.randn(3) for name in ("enorm.weight", "x")}
    return config, tensors | extra


def with_rotary_buffers(config: Config, tensors: Tensors) -> tuple[Config, Tensors]:
    """The frequencies that older versions of transformers stored with every layer."""
    places = [f"model.layers.{i}.self_attn.rotary_emb.inv_freq" for i in range(config["num_hidden_layers"])]
    return config, tensors | {place: torch.randn(8) for place in (*places, "model.rotary_emb.inv_freq")}


def without_head(config: Config, tensors: Tensors) -> tuple[Config, Tensors]:
    """GPT-2 as released: the names of the bare model, and causal masks, which some versions have two of."""
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    for i in range(config["n_layer"]):
        bare |= {f"h.{i}.attn.bias": torch.ones(1, 1, 8, 8).tril(), f"h.{i}.attn.masked_bias": torch.tensor(-1e4)}
    return config, bare


def head_beside_bare_names(config: Config, tensors: Tensors) -> tuple[Config, Tensors]:
    """Its head, which is the embedding, stored as well."""
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    return config, bare | {"lm_head.weight": bare["wte.weight"].clone()}


FORMS = [
    ("gpt2-small", without_head, ["4 tensors, causal masks"]),
    ("gpt2-small", head_beside_bare_names, ["1 tensor, the embedding, stored again as the head"]),
    (DENSE, head_stored_twice, ["1 tensor, the embedding, stored again as the head"]),
    (MIXED, fused, []),
    (LATENT, fused, []),
    *(
        (name, with_rotary_buffers, [f"{layers + 1} tensors, rotary frequencies, which follow from the config"])
        for name in (DENSE, LATENT, "llama3-8b")
        for layers in (len(zoo.spec(name, tiny=True).layers),)
    ),
    (LATENT, with_prediction_layer, ["2 tensors, the multi-token prediction layer"]),
    *(
        (name, form, ["1 tensor, the vision tower", "1 tensor, the vision projector"])
        for name in WRAPPED
        for form in (wrapped, wrapped_newer)
    ),
]


@pytest.mark.parametrize(("name", "form", "left"), FORMS, ids=lambda value: getattr(value, "__name__", None))
def test_forms_fill_the_same_parameters(
    name: str, form: Callable, left: list[str], saved: Saved, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Compares the form that transformers writes (as in the parity tests) with the released form of the same
    tensors."""
    config, tensors = form(*read(saved(name)))
    with caplog.at_level(logging.INFO, "weights"):
        loaded = weights.load(write(tmp_path / "form", config, tensors))
    expected = weights.load(saved(name))
    assert loaded.spec == expected.spec
    for parameter, value in expected.state_dict().items():
        same = value.clone()
        if form is head_stored_twice and parameter == "embed.weight":
            same[7, 7] = torch.nan
        torch.testing.assert_close(loaded.state_dict()[parameter], same, rtol=0, atol=0, equal_nan=True)
    assert sorted(re.findall(r"left alone: (.*)", caplog.text)) == sorted(left)


@pytest.mark.parametrize("name", [min(module.SIZES) for module in families().values()])
def test_shards_fill_the_same_parameters(name: str, saved: Saved, tmp_path: Path) -> None:
    loaded = weights.load(write(tmp_path / "shards", *read(saved(name)), shards=3))
    for parameter, value in weights.load(saved(name)).state_dict().items():
        assert torch.equal(loaded.state_dict()[parameter], value), parameter


def test_a_loaded_model_is_ready_to_use(saved: Saved) -> None:
    model = weights.load(str(saved(DENSE)))
    assert not model.training
    assert not any(parameter.is_meta for parameter in model.parameters())
    assert model.generate(torch.tensor([[1, 2, 3]]), 4).shape == (1, 4)


@pytest.mark.parametrize("name", [DENSE, LATENT])
def test_dtypes(name: str, saved: Saved, tmp_path: Path) -> None:
    """ "auto" is the file's dtype, whether or not config.json states it. A router's correction stays float32 in every
    dtype."""
    config, tensors = read(saved(name))
    correction = "e_score_correction_bias"
    halved = {key: value if correction in key else value.bfloat16() for key, value in tensors.items()}
    for field in ("dtype", "torch_dtype", "initializer_range"):
        said = {key: value for key, value in config.items() if key != "dtype"} | (
            {field: "bfloat16"} if "dtype" in field else {}
        )
        folder = write(tmp_path / field, said, halved)
        assert _dtypes(weights.load(folder)) == {"correction": torch.float32, "": torch.bfloat16}
    for word, dtype in (("float32", torch.float32), ("float16", torch.float16), (torch.bfloat16, torch.bfloat16)):
        assert _dtypes(weights.load(folder, dtype=word)) == {"correction": torch.float32, "": dtype}
    exact = weights.load(saved(name), dtype="bfloat16").state_dict()
    assert all(torch.equal(value, exact[key]) for key, value in weights.load(folder).state_dict().items())
    with pytest.raises(UsageError, match="int8 only stores values; layers compute in float32, bfloat16"):
        weights.load(folder, dtype="int8")


def _dtypes(model: torch.nn.Module) -> dict[str, torch.dtype]:
    found = {"correction": torch.float32}
    for name, parameter in model.named_parameters():
        kind = "correction" if name.endswith("correction") else ""
        assert found.setdefault(kind, parameter.dtype) == parameter.dtype, name
    return found


@pytest.mark.parametrize("name", screen_by_family())
def test_parameters_share_the_pages_of_the_file(name: str, saved: Saved) -> None:
    """On the CPU and in the file's dtype, only stacked experts, permuted rows and parts of a tensor are copied."""
    folder = HFFolder(saved(name))
    model = fill(folder.spec(), folder, "cpu", "auto")
    mapped = {folder.get(name).data_ptr() for name in folder.tensors}
    copied = {key for key, stored in stored_tensors(model).items() if stored.data_ptr() not in mapped}
    experts = {"gate", "up", "down", "gate_bias", "up_bias"}
    stacked = {key for key in copied if ".experts." in key and key.rpartition(".")[2] in experts}
    mappings = match(model.spec, stored_tensors(model), folder.rules, folder.tensors)
    rules = {key: mapping.rule for mapping in mappings for key in mapping.module_names}
    rearranged = {key for key, rule in rules.items() if isinstance(rule, ROWS)}
    assert copied == stacked | rearranged
    assert bool(stacked) == any(isinstance(part, MoE) for part in model.spec.walk())


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    yield
    torch.set_default_dtype(before)


MODES = {
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "default device": lambda: torch.device("meta"),
    "default dtype": lambda: default_dtype(torch.float64),
}


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        pytest.param(
            name,
            mode,
            marks=[]
            if name == LATENT or (name in representatives() and mode == "inference_mode")
            else [pytest.mark.slow],
        )
        for name in distinct()
        for mode in MODES
    ],
)
def test_a_model_is_the_same_whatever_mode_it_is_loaded_in(name: str, mode: str, saved: Saved) -> None:
    """The model can run in that mode and be trained afterwards."""
    expected = weights.load(saved(name), dtype=torch.float64)
    tokens = tokens_of(expected.spec, 1, 20)
    with MODES[mode]():
        model = weights.load(saved(name), dtype=torch.float64)
        if mode != "default device":
            model(tokens.clone())
    for (key, parameter), other in zip(model.named_parameters(), expected.parameters(), strict=True):
        trained = is_differentiated(key)
        assert (parameter.dtype, parameter.device, parameter.requires_grad) == (other.dtype, other.device, trained), key
        assert not parameter.is_inference(), key
        assert torch.equal(parameter, other), key
    for one in (model, expected):
        one(tokens).square().mean().backward()
    for parameter, other in zip(model.parameters(), expected.parameters(), strict=True):
        assert (parameter.grad is None) == (other.grad is None)
        if other.grad is not None:
            assert_equal(parameter.grad, other.grad)


def test_changing_a_model_leaves_the_file_as_it_is(saved: Saved) -> None:
    before = (saved(DENSE) / "model.safetensors").read_bytes()
    with torch.no_grad():
        weights.load(saved(DENSE)).embed.weight.zero_()
    assert (saved(DENSE) / "model.safetensors").read_bytes() == before


def test_loading_leaves_the_compiler_and_the_reference_out(saved: Saved) -> None:
    """Shapes on the meta device are computed without torch's compiler, whose import takes a second and 60 MB."""
    folders = [str(saved(name)) for name in (DENSE, MIXED, LATENT, "gpt-oss-20b")]
    code = (
        f"import sys, weights; weights.parity; [weights.load(each) for each in {folders}]; print(sorted(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "'weights.loading'" in done.stdout
    for package in ("torch._dynamo", "sympy", "transformers", "typer"):
        assert f"'{package}'" not in done.stdout


def test_a_given_spec_is_filled(saved: Saved) -> None:
    spec = zoo.swap(zoo.spec(DENSE, tiny=True), zoo.RoPE, zoo.NoPE())
    source = open_source(saved(DENSE))
    assert fill(spec, source, "cpu", "auto").spec == spec
    with pytest.raises(UsageError, match=r"no released checkpoint has a place for layers\.{0-1}\.attn\.norm\.weight"):
        fill(zoo.swap(spec, zoo.Branch, lambda branch: zoo.post(branch.pre, branch.block)), source, "cpu", "auto")


def test_nothing_is_read_before_all_of_it_fits(saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = HFFolder(saved(DENSE))
    monkeypatch.setattr(folder, "get", lambda name: pytest.fail(f"read {name}"))
    spec = zoo.swap(folder.spec(), zoo.GLU, lambda glu: zoo.GLU(glu.hidden + 1))
    with pytest.raises(MalformedError, match="wrong shape"):
        fill(spec, folder, "cpu", "auto")


def test_unknown_and_missing_devices() -> None:
    """They are refused before the source is searched for."""
    with pytest.raises(UsageError, match="unknown device 'cpuu'; did you mean cpu"):
        weights.load("saved", device="cpuu")
    with pytest.raises(NotAvailable, match="no device cuda:99 here: "):
        weights.load("saved", device="cuda:99")


def test_unknown_sources(saved: Saved, tmp_path: Path) -> None:
    with pytest.raises(NotAvailable, match=r"no folder and no \.gguf file 'nothing', and it is neither a hub id"):
        weights.load("nothing")
    with pytest.raises(NotAvailable, match=r"there is no config\.json"):
        weights.load(tmp_path)
    with pytest.raises(UsageError, match="neither a folder"):
        weights.load(saved(DENSE) / "model.safetensors")
    with pytest.raises(UsageError, match="has no revisions"):
        weights.load(saved(DENSE), revision="main")


@pytest.mark.parametrize("family", families())
def test_a_folder_of_another_head_is_refused(family: str, saved: Saved, tmp_path: Path) -> None:
    """The folder is a classifier's; without this check, its tensors would be listed as missing and as unknown."""
    name = next(iter(families()[family].SIZES))
    config, tensors = read(saved(name))
    [named] = config["architectures"]
    other = re.sub("ForCausalLM|LMHeadModel", "ForSequenceClassification", named)
    with pytest.raises(MalformedError, match=rf"architectures=\['{other}'\] is not read, only {named}"):
        weights.load(write(tmp_path / "x", config | {"architectures": [other]}, tensors))
