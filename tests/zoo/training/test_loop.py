"""The training loop: what a step changes, what it must not change, and when it stops."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

import zoo
from tests.exact import assert_equal
from tests.models import is_differentiated
from tests.presets import over, split
from zoo.architectures import families
from zoo.errors import CheckFailed, MalformedError, UsageError
from zoo.model.module import Model
from zoo.training.loop import DECAY_SHARE, FINAL_SHARE, SCHEDULES, DivergedError, Trainer, TrainingConfig, evaluate
from zoo.training.losses import IGNORED, Batch

VOCAB, ROWS, CONTEXT = 64, 4, 16


def model(family: str = "qwen3", seed: int = 0) -> Model:
    return zoo.build(replace(zoo.spec(family, tiny=True), vocab=VOCAB), seed=seed, dtype=torch.float64)


def assert_near(value: float, expected: float, what: object = "") -> None:
    assert_equal(torch.tensor(value, dtype=torch.float64), torch.tensor(expected, dtype=torch.float64), what)


def batch(seed: int = 0, rows: int = ROWS) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, VOCAB, (rows, CONTEXT + 1), generator=generator)
    return Batch(tokens[:, :-1], tokens[:, 1:].clone())


def config(steps: int = 10, **values) -> TrainingConfig:
    return TrainingConfig(steps, **dict(learning_rate=1e-2, batch=ROWS, context=CONTEXT) | values)


def weights(trained: Model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trained.state_dict().items()}


@pytest.mark.parametrize("family", split(families(), ["qwen3", "deepseek-v3", "gpt-oss"]))
def test_a_model_memorises_a_sequence_and_every_parameter_learns(family) -> None:
    trained = model(family)
    before, trainer, sequence = weights(trained), Trainer(trained, config(30)), batch(rows=1)
    steps = [trainer.train_step(sequence) for _ in range(30)]
    assert steps[0].loss > 3
    assert steps[-1].loss < 0.05
    found = evaluate(trained, [sequence])
    assert found.loss < 0.05
    assert found.accuracy == 1
    tables = dict(trained.named_buffers())  # which experts a token id has is not learned
    same = [name for name, value in trained.state_dict().items() if torch.equal(value, before[name])]
    same = [name for name in same if name not in tables]
    assert [name for name in same if is_differentiated(name) or name.endswith(".correction")] == []


@pytest.mark.parametrize("family", ["qwen3", "gpt-oss"])
def test_accumulation_is_one_big_batch_whatever_targets_each_piece_scores(family) -> None:
    data = batch()
    data.targets[0, 3:] = IGNORED
    data.targets[1] = IGNORED  # a micro-batch in which nothing is scored
    results, gradients = [], []
    for pieces in (1, 3, ROWS):
        trainer = Trainer(model(family), config(accumulate=pieces, balance=0.0))  # balance is computed per micro-batch
        results.append(trainer.train_step(data))
        parameters = trainer.model.named_parameters()
        gradients.append({name: parameter.grad for name, parameter in parameters if parameter.grad is not None})
    for found, of_pieces in zip(results[1:], gradients[1:], strict=True):
        assert_near(found.loss, results[0].loss)
        assert_near(found.grad_norm, results[0].grad_norm)
        assert of_pieces.keys() == gradients[0].keys()
        for name, value in gradients[0].items():
            assert_equal(of_pieces[name], value, name)


def test_the_loss_is_the_mean_over_scored_targets_and_evaluation_agrees() -> None:
    data = batch()
    data.targets[:, ::2] = IGNORED
    trained = model()
    logits = trained(data.inputs).detach().flatten(0, 1).log_softmax(-1)
    kept = data.targets.flatten() != IGNORED
    expected = -logits[kept].gather(1, data.targets.flatten()[kept, None])
    assert_near(Trainer(trained, config()).train_step(data).loss, float(expected.mean()))
    again = evaluate(model(), [Batch(*(each[i : i + 1] for each in data)) for i in range(ROWS)])
    assert_near(again.nats, float(expected.sum()))
    assert again.scored == kept.sum()


def test_clipping_bounds_the_gradient_and_none_leaves_it() -> None:
    after = []
    for clip in (None, 1e9, 1e-3):
        trainer = Trainer(model(), config(clip=clip))
        norm = trainer.train_step(batch()).grad_norm
        parts = [
            parameter.grad.square().sum() for parameter in trainer.model.parameters() if parameter.grad is not None
        ]
        after.append((norm, float(torch.stack(parts).sum().sqrt())))
    assert after[0] == after[1]
    assert_near(after[0][1], after[0][0])
    assert after[2][0] == after[0][0]
    assert_near(after[2][1], after[0][0] * 1e-3 / (after[0][0] + 1e-6))  # as torch divides


@over(families())
def test_decay_is_for_matrices_and_every_parameter_that_learns_has_one_group(family) -> None:
    trained = model(family)
    decayed, kept = Trainer(trained, config()).optimizer.param_groups
    names = {id(parameter): name for name, parameter in trained.named_parameters()}
    grouped = [names[id(parameter)] for group in (decayed, kept) for parameter in group["params"]]
    learning = [name for name, parameter in trained.named_parameters() if parameter.requires_grad]
    assert sorted(grouped) == sorted(learning)
    assert decayed["weight_decay"] == 0.1
    assert kept["weight_decay"] == 0
    undecayed = {names[id(parameter)] for parameter in kept["params"]}
    assert "embed.weight" in undecayed
    assert all(parameter.ndim >= 2 for parameter in decayed["params"])
    matrices = (
        name for name, parameter in trained.named_parameters() if parameter.ndim == 2 and name.endswith("weight")
    )
    assert {name for name in matrices if name in undecayed} <= {
        "embed.weight",
        "positions.weight",
        "per_layer.embed.weight",
    }


def test_a_rehearsal_changes_nothing() -> None:
    for family in ("qwen3", "deepseek-v3"):
        rehearsed, plain = (Trainer(model(family), config()) for _ in range(2))
        before = weights(rehearsed.model)
        rehearsed.rehearse(batch(5))
        assert all(torch.equal(value, before[name]) for name, value in rehearsed.model.state_dict().items())
        assert [rehearsed.train_step(batch(i)) for i in range(3)] == [plain.train_step(batch(i)) for i in range(3)]


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_the_weights_change(broken) -> None:
    trainer = Trainer(model(), config())
    trainer.train_step(batch())
    with torch.no_grad():
        trainer.model.layers[0].ffn.block.down.weight[0, 0] = broken
    before = weights(trainer.model)
    with pytest.raises(DivergedError, match=r"^step 2: loss") as raised:
        trainer.train_step(batch())
    assert isinstance(raised.value, CheckFailed)
    assert raised.value.exit_code == 1
    assert trainer.step == 1
    assert all(
        torch.equal(value.nan_to_num(), before[k].nan_to_num()) for k, value in trainer.model.state_dict().items()
    )


@pytest.mark.parametrize("family", ["qwen3", "deepseek-v3", "gpt-oss"])
def test_a_restored_trainer_goes_on_to_the_bit(family) -> None:
    whole = Trainer(model(family), config())
    for i in range(3):
        whole.train_step(batch(i))
    held = tuple({name: value.clone() for name, value in tensors.items()} for tensors in whole.tensors())
    restored = Trainer(model(family, seed=1), config())
    restored.restore(whole.step, *held)
    assert [restored.train_step(batch(i)) for i in range(3, 6)] == [whole.train_step(batch(i)) for i in range(3, 6)]
    assert all(
        torch.equal(value, whole.model.state_dict()[name]) for name, value in restored.model.state_dict().items()
    )


def test_tensors_of_another_model_are_refused() -> None:
    trainer, other = Trainer(model(), config()), Trainer(model("gemma3"), config())
    other.train_step(batch())
    with pytest.raises(MalformedError, match="another model"):
        trainer.restore(1, *other.tensors())
    with pytest.raises(MalformedError, match="weights are those of another model"):
        trainer.restore(1, other.tensors()[0], {})


def test_the_learning_rate_is_the_schedules_and_bfloat16_trains() -> None:
    trainer = Trainer(model().float(), config(20, warmup=5, autocast=True))
    steps = [trainer.train_step(batch()) for _ in range(20)]
    assert [step.step for step in steps] == list(range(1, 21))
    assert [step.learning_rate for step in steps] == [trainer.config.rate(i) for i in range(20)]
    assert steps[-1].loss < steps[0].loss / 2
    assert trainer.model.embed.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (dict(steps=0), "steps must be at least 1"),
        (dict(batch=0), "batch must be at least 1"),
        (dict(accumulate=ROWS + 1), "cannot be computed in 5 micro-batches"),
        (dict(learning_rate=0.0), "learning rate must be above 0"),
        (dict(learning_rate=float("nan")), "learning rate must be above 0"),
        (dict(clip=0.0), "clip must be above 0"),
        (dict(weight_decay=-1.0), "weight_decay"),
        (dict(schedule="cosin"), "did you mean cosine"),
        (dict(warmup=11), "warm-up"),
        (dict(warmup=-0.1), "warm-up"),
        (dict(warmup=float("nan")), "warm-up"),
    ],
)
def test_a_config_that_trains_nothing_is_refused(values, says) -> None:
    with pytest.raises(UsageError, match=says):
        config(**dict(steps=10) | values)


def test_nothing_to_score_is_refused() -> None:
    data = batch()
    data.targets[:] = IGNORED
    with pytest.raises(UsageError, match="no target"):
        Trainer(model(), config()).train_step(data)
    with pytest.raises(UsageError, match="nothing to evaluate"):
        evaluate(model(), [data])


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    ("steps", "warmup", "rising"), [(1, 0, 0), (2, 1, 1), (100, 0.1, 10), (100, 20, 20), (7, 0.5, 4)]
)
def test_a_rate_rises_to_its_peak_and_ends_at_the_final_share(schedule, steps, warmup, rising) -> None:
    set_up = config(steps, warmup=warmup, schedule=schedule)
    found, peak = [set_up.rate(step) for step in range(steps)], set_up.learning_rate
    assert set_up.warmup_steps == rising
    assert found[:rising] == pytest.approx([peak * (i + 1) / rising for i in range(rising)])
    assert max(found) <= peak
    assert found[-1] == pytest.approx(FINAL_SHARE * peak)
    assert all(later <= earlier for earlier, later in pairwise(found[max(rising - 1, 0) :]))


def test_wsd_stays_at_the_peak_until_it_decays_and_cosine_is_half_way_in_the_middle() -> None:
    wsd, steps, peak = config(1000, schedule="wsd"), 1000, 1e-2
    decay = round(DECAY_SHARE * steps)
    assert [wsd.rate(step) for step in range(100, steps - decay)] == [peak] * (steps - decay - 100)
    assert wsd.rate(steps - decay) < peak
    assert config(1001, warmup=0).rate(500) == pytest.approx(peak * (1 + FINAL_SHARE) / 2, rel=5e-3)
