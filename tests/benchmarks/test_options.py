"""Groups of options: a command takes one object, and the command line has its fields."""

from __future__ import annotations

from inspect import signature
from typing import Any

import pytest
import torch

import zoo
from benchmarks.analytic.kv import InferenceConfig
from benchmarks.analytic.models import NamedSpec, one
from benchmarks.analytic.roofline import flop_row
from benchmarks.analytic.weight_forms import BFLOAT16, FOUR_BIT
from benchmarks.commands import verbs
from benchmarks.options import DeviceOptions, InferenceOptions, ModelOptions, with_groups
from zoo.errors import SpecError, UsageError

CHOICE = ["swap", "ignore_field", "import_", "names", "all_sizes", "since", "with_"]


def command(*, context: int = 4, inference: InferenceOptions, models: ModelOptions) -> Any:
    return context, inference, models


def test_a_parameter_that_is_a_group_stands_for_the_fields_of_the_group() -> None:
    parameters = signature(with_groups(command)).parameters
    assert list(parameters) == ["context", "batch", "weights", "cache", "tp", "ep", *CHOICE]
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    assert (defaults["context"], defaults["batch"], defaults["weights"]) == (4, 1, BFLOAT16)


def test_the_command_is_handed_the_group() -> None:
    given = {"context": 8, "batch": 2, "weights": FOUR_BIT, "cache": torch.float16, "tp": 4, "ep": 4}
    found = with_groups(command)(**given, **dict.fromkeys(CHOICE) | {"names": ["qwen3-8b"]})
    context, inference, models = found
    assert (context, inference) == (8, InferenceOptions(2, FOUR_BIT, torch.float16, 4, 4))
    assert isinstance(inference, InferenceConfig)
    assert [model.name for model in models.chosen()] == ["qwen3-8b"]


@pytest.mark.parametrize("verb", [name for name in verbs() if name != "gallery"])
def test_every_verb_but_the_gallery_writes_a_report(verb: str) -> None:
    parameters = signature(with_groups(verbs()[verb])).parameters
    assert list(parameters)[-4:] == ["format", "json", "out", "debug"]


def test_a_device_is_named_or_has_both_rates() -> None:
    assert DeviceOptions("m3-max").device().name != DeviceOptions().device().name
    device = DeviceOptions(bandwidth=900, flops=100).device()
    assert (device.name, device.bandwidth, device.flops) == ("100 TFLOPS and 900 GB/s", 900e9, 100e12)
    for half in (DeviceOptions(bandwidth=900), DeviceOptions(flops=100), DeviceOptions(bandwidth=900, flops=0)):
        with pytest.raises(UsageError, match="go together"):
            half.device()


def test_models_that_cannot_be_divided_are_left_out_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    models = [one("llama3.1-70b"), one("qwen2.5-0.5b")]
    assert InferenceOptions(tp=8).divisible(models) == models[:1]
    assert capsys.readouterr().err == "left out, since 8 cards cannot divide them: qwen2.5-0.5b (heads=14)\n"
    with pytest.raises(SpecError, match="heads=14 cannot be divided among 8 ranks"):
        InferenceOptions(tp=8).divisible(models[1:])
    assert InferenceOptions().divisible(models) == models


def test_the_link_of_another_device_is_given() -> None:
    assert DeviceOptions(link=50).device().link == 50e9
    assert DeviceOptions(bandwidth=100, flops=2).device().link is None
    assert DeviceOptions(bandwidth=100, flops=2, link=8).device().link == 8e9
    for link in (0, -1, float("inf"), float("nan")):
        with pytest.raises(UsageError, match="--link"):
            DeviceOptions(link=link).device()
    model = NamedSpec("mine", zoo.spec("llama3.1-8b"))
    row = flop_row(model, "decode", 4096, InferenceConfig(tp=8), DeviceOptions(bandwidth=100, flops=2).device())
    assert row["sending_seconds"] == 0 < row["sent_bytes"]
