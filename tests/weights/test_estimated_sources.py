"""Sources whose model_type no family reads: config.json alone, folders and repositories with headers, hostile ones."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.weights.checkpoints import write_index
from tests.weights.hub import Hub, serve
from weights.formats.stored_shapes import stored_shapes
from weights.formats.untrusted import HEADER_LIMIT
from weights.matching import StoredTensor
from weights.specs import find_spec
from zoo.errors import MalformedError, NotAvailable, UsageError

REPO = "someone/new-kind"
CONFIG = dict(
    model_type="new_kind",
    vocab_size=40,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    intermediate_size=24,
    hidden_act="silu",
    rms_norm_eps=1e-6,
    tie_word_embeddings=False,
)
WIDTHS = {"self_attn.q_proj": (16, 16), "self_attn.k_proj": (8, 16), "self_attn.v_proj": (8, 16)}
WIDTHS |= {"self_attn.o_proj": (16, 16), "mlp.gate_proj": (24, 16), "mlp.up_proj": (24, 16), "mlp.down_proj": (16, 24)}
WIDTHS |= {"input_layernorm": (16,), "post_attention_layernorm": (16,)}
SHAPES = {f"model.layers.{i}.{name}.weight": shape for i in range(2) for name, shape in WIDTHS.items()}
SHAPES |= {"model.embed_tokens.weight": (40, 16), "lm_head.weight": (40, 16), "model.norm.weight": (16,)}
PARAMS = 2 * (2 * 16 * 16 + 2 * 8 * 16 + 3 * 24 * 16 + 2 * 16) + 2 * 40 * 16 + 16


def content(tmp_path: Path, shapes: dict[str, tuple[int, ...]]) -> bytes:
    """A safetensors file with zeros of these shapes."""
    file = tmp_path / "made.safetensors"
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, file)
    return file.read_bytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a config.json of no family."""
    (path := tmp_path / "new").mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    return path


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with a repository of no family, without weights."""
    with serve(Hub({REPO: {"config.json": json.dumps(CONFIG).encode()}})) as served:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", served.endpoint)
        monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", served.endpoint)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template(served))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        yield served


def template(hub: Hub) -> str:
    return hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"


def test_a_config_alone_is_estimated_only_where_an_estimate_is_asked_for(folder: Path) -> None:
    for source in (folder, folder / "config.json"):
        found = find_spec(str(source), estimated=True)
        assert found.estimate is not None
        assert (found.estimate.model_type, found.estimate.stored, found.path) == ("new_kind", None, folder)
        assert found.spec.kv_bytes(10) == 10 * 2 * 2 * 4 * 4 * 2
    advice = "unknown model_type 'new_kind': `python -m benchmarks params|kv|flops|compare SOURCE` estimates its costs"
    with pytest.raises(MalformedError) as refused:
        find_spec(str(folder))
    assert advice in str(refused.value)


def test_a_known_kind_is_read_strictly_even_where_an_estimate_is_allowed(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIG | {"model_type": "llama", "new_field": 3}), encoding="utf-8")
    with pytest.raises(MalformedError, match=r"not understood: .*new_field=3"):
        find_spec(str(folder), estimated=True)


@pytest.mark.parametrize("shards", [1, 2])
def test_headers_of_a_folder_give_key_heads_and_exact_parameters(folder: Path, tmp_path: Path, shards: int) -> None:
    if shards == 1:
        (folder / "model.safetensors").write_bytes(content(tmp_path, SHAPES))
    else:
        files = {f"model-{i}.safetensors": dict(list(SHAPES.items())[i::2]) for i in range(2)}
        for name, shapes in files.items():
            (folder / name).write_bytes(content(tmp_path, shapes))
        write_index(folder, {name: file for file, shapes in files.items() for name in shapes})
    found = find_spec(str(folder), estimated=True)
    assert found.spec.params() == PARAMS
    assert found.spec.kv_bytes(10) == 10 * 2 * 2 * 2 * 4 * 2  # two key heads, where the field says four
    assert found.estimate is not None
    assert found.estimate.stored is not None
    assert sum(found.estimate.stored.breakdown(2)[0].values()) == PARAMS


def test_an_index_whose_files_are_missing_leaves_an_estimate_from_the_config(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_index(folder, dict.fromkeys(SHAPES, "model-1.safetensors"))
    found = find_spec(str(folder), estimated=True)
    assert found.estimate is not None
    assert found.estimate.stored is None
    assert "names files that do not exist: model-1.safetensors; the parameters are estimated from" in caplog.text


def header(info: Any) -> bytes:
    """The start of a safetensors file, whose header is this value as JSON."""
    text = json.dumps(info).encode()
    return struct.pack("<Q", len(text)) + text


HUGE = {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4 * 10**12]}
HOSTILE = {
    "a header of 10^12 bytes": (struct.pack("<Q", 10**12) + b"{}", "and its header alone needs 1000000000008"),
    "a long header": (struct.pack("<Q", HEADER_LIMIT + 1) + b" " * (HEADER_LIMIT + 2), "is above the limit of 8000000"),
    "a tensor of terabytes": (header({"model.embed_tokens.weight": HUGE}), "is cut short: 4000000000000 bytes"),
    "a negative shape": (header({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}), "under 'a'"),
    "no JSON": (struct.pack("<Q", 4) + b"nope", "the header is not JSON"),
    "a list": (header([1]), "the header holds a list, not an object"),
    "a pickle": (b"\x80\x02}q\x00X" + b"\x00" * 20, "is a pickle"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_headers_are_refused_by_name(case: str, folder: Path) -> None:
    written, said = HOSTILE[case]
    (folder / "model.safetensors").write_bytes(written)
    with pytest.raises(MalformedError) as refused:
        find_spec(str(folder), estimated=True)
    assert said in str(refused.value)
    assert "model.safetensors" in str(refused.value)


@pytest.mark.parametrize("shards", [1, 2])
def test_headers_of_a_repository_are_fetched_without_its_weights(hub: Hub, tmp_path: Path, shards: int) -> None:
    files = hub.repositories[REPO]
    if shards == 1:
        files["model.safetensors"] = content(tmp_path, SHAPES)
    else:
        names = {f"model-{i}.safetensors": dict(list(SHAPES.items())[i::2]) for i in range(2)}
        files |= {name: content(tmp_path, shapes) for name, shapes in names.items()}
        index = {"weight_map": {name: file for file, shapes in names.items() for name in shapes}}
        files["model.safetensors.index.json"] = json.dumps(index).encode()
    found = find_spec(REPO, estimated=True)
    assert (found.name, found.spec.params()) == ("new-kind", PARAMS)
    ranges = [headers.get("range") for _, path, headers in hub.requests if path.endswith(".safetensors")]
    assert ranges == ["bytes=0-100000"] * shards


def test_a_repository_without_safetensors_is_estimated_from_its_config(hub: Hub) -> None:
    found = find_spec(REPO, estimated=True)
    assert found.estimate is not None
    assert found.estimate.stored is None


@pytest.mark.parametrize("case", ["a header of 10^12 bytes", "a negative shape", "no JSON", "a list"])
def test_hostile_headers_of_a_repository_are_refused(case: str, hub: Hub) -> None:
    hub.repositories[REPO]["model.safetensors"] = HOSTILE[case][0]
    with pytest.raises(MalformedError, match=REPO):
        find_spec(REPO, estimated=True)


def test_a_repository_or_name_that_is_not_there_is_named(hub: Hub) -> None:
    with pytest.raises(NotAvailable, match="someone/else: there is no such repository"):
        find_spec("someone/else", estimated=True)
    with pytest.raises(UsageError, match="unknown model 'nothing'"):
        find_spec("nothing", estimated=True)


def test_codes_of_quantised_tensors_count_as_the_values_they_stand_for() -> None:
    tensors = [
        StoredTensor("model.layers.0.mlp.experts.0.w1.weight", (8, 16), torch.int8),  # two in a byte
        StoredTensor("model.layers.0.mlp.experts.0.w1.scale", (8, 1), torch.float8_e8m0fnu),
        StoredTensor("model.layers.0.mlp.experts.down_proj_blocks", (2, 8, 1, 16), torch.uint8),
        StoredTensor("model.layers.0.mlp.experts.down_proj_scales", (2, 8, 1), torch.uint8),
        StoredTensor("model.layers.0.self_attn.q_proj.qweight", (4, 16), torch.int32),
        StoredTensor("model.layers.0.self_attn.q_proj.scales", (1, 16), torch.float16),
        StoredTensor("model.layers.0.self_attn.k_proj.weight", (16, 8), torch.int8),  # one in a byte
        StoredTensor("model.layers.0.self_attn.k_proj.weight_scale", (16, 1), torch.bfloat16),
        StoredTensor("model.layers.0.mlp.gate.tid2eid", (40, 2), torch.int64),
    ]
    stored = stored_shapes("here", tensors, {"quantization_config": {"bits": 4}})
    parts, beside = stored.breakdown(1)
    assert dict(parts) == {"routed": 8 * 32 + 2 * 8 * 32, "attn": 4 * 8 * 16 + 16 * 8}
    assert dict(beside) == {"scales of quantised tensors": 8 + 16 + 16 + 16, "tables of integers": 80}
