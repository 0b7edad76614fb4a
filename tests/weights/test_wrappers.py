"""Text parts of multimodal checkpoints, which the multimodal reference writes with vision tower and projector."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import weights
import zoo
from tests import toys
from tests.exact import assert_equal, in_float64
from tests.reference import randomise
from tests.weights.checkpoints import Config, Tensors, write
from weights.reference.model import PLAIN_KERNELS
from zoo.errors import MalformedError

OPTIONS = {"dtype": torch.float64, **PLAIN_KERNELS}
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
KINDS: dict[str, dict[str, Any]] = {
    "gemma3-4b": {"model_type": "gemma3", "mm_tokens_per_image": 4, "vision_config": VISION},
    "mistral-small-3.1-24b": {
        "model_type": "mistral3",
        "vision_config": VISION | {"model_type": "pixtral", "head_dim": 16},
        "spatial_merge_size": 2,
    },
}
KINDS |= dict.fromkeys(("ministral3-3b", "mistral-small-4-119b"), KINDS["mistral-small-3.1-24b"])
# Llama 4's, whose names and projector are its own.
LLAMA4 = VISION | {"intermediate_size": 128, **dict.fromkeys(("projector_input_dim", "projector_output_dim"), 32)}
LLAMA4 |= {"model_type": "llama4_vision_model", "vision_output_dim": 32}


class Made:
    """A multimodal reference in float64, the folder it saved, and its logits for text."""

    def __init__(self, name: str, folder: Path) -> None:
        from transformers import AutoConfig, AutoModelForImageTextToText

        text = toys.config(name)
        tied = text.get("tie_word_embeddings", True)
        config = AutoConfig.for_model(**KINDS[name], text_config=text, tie_word_embeddings=tied)
        with in_float64():
            self.model: nn.Module = AutoModelForImageTextToText.from_config(config, **OPTIONS)
            randomise(self.model, seed=0)
        self.model.eval().save_pretrained(folder)
        self.folder, self.tokens = folder, torch.randint(2, 500, (2, 60), generator=torch.Generator().manual_seed(1))
        self.config: Config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        with torch.no_grad(), in_float64():
            self.logits: Tensor = self.model(self.tokens).logits


@pytest.fixture(scope="module", params=KINDS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(request.param, tmp_path_factory.mktemp(request.param))


def as_released(made: Made) -> Tensors:
    """language_model.model.layers..., vision_tower..., as the files on the Hub have it."""
    return load_file(made.folder / "model.safetensors")


def by_module_tree(made: Made) -> Tensors:
    """model.language_model.layers..., model.vision_tower..., lm_head outside, as transformers 5 names its modules."""
    tensors = made.model.state_dict()
    if made.config.get("tie_word_embeddings", made.config["model_type"] == "gemma3"):
        del tensors["lm_head.weight"]
    return tensors


@torch.no_grad()
@pytest.mark.parametrize(
    ("spelling", "text"), [(as_released, "language_model.model."), (by_module_tree, "model.language_model.")]
)
def test_the_text_part_is_the_reference(
    made: Made,
    spelling: Callable[[Made], Tensors],
    text: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Logits for text are equal; exactly the tensors for images are counted and named as not read."""
    tensors = spelling(made)
    assert sum(name.startswith(text) for name in tensors) > 10
    with caplog.at_level(logging.INFO, "weights"):
        model = weights.load(write(tmp_path / "x", made.config, tensors, shards=2))
    assert made.logits.abs().max() > 1
    assert_equal(model(made.tokens), made.logits)
    towers = sum("vision_tower." in name for name in tensors)
    projectors = sum("multi_modal_projector." in name for name in tensors)
    assert towers > 10
    told = re.findall(r"left alone: (.*)", caplog.text)
    assert sorted(told) == sorted(
        [f"{projectors} tensors, the vision projector", f"{towers} tensors, the vision tower"]
    )


@torch.no_grad()
def test_the_text_part_of_llama_4_is_the_reference(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from transformers import AutoConfig, AutoModelForImageTextToText

    text = toys.config("llama4-scout-109b")
    config = AutoConfig.for_model("llama4", text_config=text, vision_config=LLAMA4)
    with in_float64():
        reference = AutoModelForImageTextToText.from_config(config, **OPTIONS).eval()
        randomise(reference, seed=0)
    reference.save_pretrained(tmp_path)
    with caplog.at_level(logging.INFO, "weights"):
        model = weights.load(tmp_path)
    assert model.spec == zoo.spec("llama4-scout-109b", tiny=True)
    tokens = torch.randint(2, 500, (2, 60), generator=torch.Generator().manual_seed(1))
    with in_float64():
        logits = reference.language_model(tokens).logits
    assert_equal(model(tokens), logits)
    assert re.findall(r"left alone: \d+ tensors?, (the vision \w+)", caplog.text) == [
        "the vision projector",
        "the vision tower",
    ]


def test_the_two_spellings_may_not_be_mixed_for_one_tensor(made: Made, tmp_path: Path) -> None:
    tensors = as_released(made)
    twice = tensors | {"model.language_model.norm.weight": tensors["language_model.model.norm.weight"]}
    with pytest.raises(MalformedError, match="are both stored, for the same parameter"):
        weights.load(write(tmp_path / "x", made.config, twice))


def test_another_tower_is_not_understood(made: Made, tmp_path: Path) -> None:
    """Only tensors that are known to be for images are skipped."""
    tensors = as_released(made) | {"audio_tower.layers.0.weight": torch.ones(2)}
    with pytest.raises(MalformedError, match=r"not understood: audio_tower\.layers\.0\.weight"):
        weights.load(write(tmp_path / "x", made.config, tensors))


@torch.no_grad()
@pytest.mark.parametrize("stored", [True, False], ids=["a head is stored", "no head is stored"])
@pytest.mark.parametrize("outside", [True, False])
def test_the_tensors_say_whether_the_head_is_tied_where_the_config_says_both(
    made: Made, outside: bool, stored: bool, tmp_path: Path
) -> None:
    """The reference does the same: it ties the head if only one of the two is stored, and warns about the config."""
    from transformers import AutoModelForImageTextToText

    tensors = as_released(made)
    embed = tensors["language_model.model.embed_tokens.weight"]
    tensors.pop("language_model.lm_head.weight", None)
    if stored:
        tensors["language_model.lm_head.weight"] = torch.randn_like(embed) * 0.2
    text = made.config["text_config"] | {"tie_word_embeddings": not outside}
    config = made.config | {"text_config": text, "tie_word_embeddings": outside}
    folder = write(tmp_path / "x", config, tensors)
    model = weights.load(folder)
    assert model.spec.tied is not stored
    if outside or stored:  # else the reference makes up a head
        with in_float64():
            reference = AutoModelForImageTextToText.from_pretrained(folder, **OPTIONS).eval()
            expected = reference(made.tokens).logits
        assert_equal(model(made.tokens), expected)
