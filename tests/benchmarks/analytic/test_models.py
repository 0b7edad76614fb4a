"""The models that a command line names."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import zoo
from benchmarks.analytic.models import NamedSpec, chosen, one, representatives
from benchmarks.analytic.weight_forms import BFLOAT16
from tests.presets import over
from tests.reference import published
from zoo.architectures import families
from zoo.errors import MalformedError, NotAvailable, UsageError

PUBLISHED = published()


def names(models: list[NamedSpec]) -> list[str]:
    return [model.name for model in models]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the published config.json of Qwen3 8B."""
    inside = tmp_path / "my-qwen"
    inside.mkdir()
    (inside / "config.json").write_text(json.dumps(PUBLISHED["qwen3-8b"]["config"]), encoding="utf-8")
    return inside


def test_no_name_means_all() -> None:
    assert names(chosen([])) == zoo.names()
    assert names(representatives([])) == list(families())


@over(families())
def test_a_family_means_its_sizes_and_is_measured_as_its_smallest(family: str) -> None:
    assert {model.name: model.size for model in chosen([family])} == families()[family].SIZES
    assert chosen([family.upper().replace("-", "_")]) == chosen([family])
    dotted = re.sub(r"(?<=\d)-(?=\d)", ".", family)
    assert chosen([dotted]) == chosen([family])
    (model,) = representatives([family])
    assert model.name == family
    assert model.size is not None
    assert model.size.params == min(size.params for size in families()[family].SIZES.values())


def test_presets_and_hub_ids_mean_one_each_in_the_order_given_and_once() -> None:
    given = ["qwen3-8b", "openai/gpt-oss-20b", "gemma3", "gemma3-1b"]
    first, second, *gemmas = names(chosen(given))
    assert (first, second, gemmas) == ("qwen3-8b", "gpt-oss-20b", list(families()["gemma3"].SIZES))
    assert names(representatives(given)) == ["qwen3-8b", "gpt-oss-20b", "gemma3", "gemma3-1b"]


def test_a_folder_or_its_config_is_a_model_under_the_folders_name(folder: Path) -> None:
    expected = [NamedSpec("my-qwen", zoo.spec("qwen3-8b"), stored=BFLOAT16)]
    assert chosen([str(folder)]) == chosen([f"{folder}/config.json"]) == representatives([f"{folder}/"]) == expected


def test_a_preset_wins_over_a_folder_of_its_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    folder.rename("gemma3-1b")
    assert one("gemma3-1b").spec == zoo.spec("gemma3-1b")
    assert one("./gemma3-1b").spec == zoo.spec("qwen3-8b")
    assert names(chosen(["gemma3-1b", "./gemma3-1b"])) == ["gemma3-1b", "./gemma3-1b"]


def test_a_field_that_is_not_understood_can_be_ignored(folder: Path) -> None:
    config = PUBLISHED["qwen3-8b"]["config"] | {"novelty": 3}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(MalformedError, match=r"my-qwen/config\.json: .*novelty=3.*--ignore-field"):
        chosen([str(folder)])
    assert chosen([str(folder)], ignore_fields=["novelty"])[0].spec == zoo.spec("qwen3-8b")


def test_the_error_of_a_name_that_is_no_model_says_why(folder: Path) -> None:
    with pytest.raises(NotAvailable, match=r"there is no config\.json"):
        one(str(folder.parent))
    with pytest.raises(
        NotAvailable,
        match="there is no folder no/such-model, and as a hub id, no/such-model: not in the download cache",
    ):
        one("no/such-model")
    (folder / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(MalformedError, match=r"config\.json is not JSON"):
        one(str(folder))


def test_the_error_of_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"unknown model 'qwen4'; did you mean qwen3"):
        chosen(["llama3", "qwen4"])


def test_a_swap_adds_a_row_below_each_model() -> None:
    models = chosen(["gpt-oss-20b", "smollm3"], ["attn=MQA", "GQA(window=256)"])
    assert [model.label for model in models] == ["gpt-oss-20b", "gpt-oss-20b*", "smollm3-3b", "smollm3-3b*"]
    for before, after in zip(models[::2], models[1::2], strict=True):
        assert after.swap == "attn=MQA; GQA(window=256)"
        assert after.size is None
        assert {(layer.mixer.kv_heads, layer.mixer.window) for layer in after.spec.layers} == {(1, 256)}  # type: ignore[attr-defined]
        assert before == one(before.name)


def test_a_swap_says_which_features_it_drops() -> None:
    mla = "attn=MLA(q_rank=none, kv_rank=256, nope_dim=64, rope_dim=32, v_dim=64)"
    _, plain, _, sinks = chosen(["llama3.1-8b", "gpt-oss-20b"], [mla])
    assert plain.dropped is None
    assert sinks.dropped == "window 128, biases, sinks"


def test_swaps_need_a_model() -> None:
    with pytest.raises(UsageError, match="--swap changes the models that are named"):
        chosen([], ["norm=olmo"])
    with pytest.raises(UsageError, match="there is no GQA here"):
        chosen(["deepseek-v3"], ["GQA(window=256)"])
