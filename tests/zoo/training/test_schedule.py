"""Learning rates: where they rise, stay, fall and end."""

from itertools import pairwise

import pytest

from zoo.errors import UsageError
from zoo.training.schedule import DECAY_SHARE, SHAPES, learning_rate, warmup_steps

PEAK, FINAL = 0.004, 0.1


def rates(steps: int, warmup: float, shape: str) -> list[float]:
    return [learning_rate(step, steps, PEAK, warmup, shape, FINAL) for step in range(steps)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("steps", "warmup", "rising"), [(1, 0, 0), (2, 1, 1), (100, 0.1, 10), (100, 20, 20), (7, 0.5, 4)]
)
def test_a_rate_rises_to_its_peak_and_ends_at_the_final_share(shape, steps, warmup, rising) -> None:
    found = rates(steps, warmup, shape)
    assert warmup_steps(warmup, steps) == rising
    assert found[:rising] == pytest.approx([PEAK * (i + 1) / rising for i in range(rising)])
    assert max(found) <= PEAK
    assert found[-1] == pytest.approx(FINAL * PEAK)
    assert all(later <= earlier for earlier, later in pairwise(found[max(rising - 1, 0) :]))


def test_wsd_stays_at_the_peak_until_it_decays_and_cosine_is_half_way_in_the_middle() -> None:
    wsd, steps = rates(1000, 0.1, "wsd"), 1000
    decay = round(DECAY_SHARE * steps)
    assert wsd[100 : steps - decay] == [PEAK] * (steps - decay - 100)
    assert wsd[steps - decay] < PEAK
    cosine = rates(1001, 0, "cosine")
    assert cosine[500] == pytest.approx(PEAK * (1 + FINAL) / 2, rel=5e-3)


@pytest.mark.parametrize(("warmup", "steps"), [(-0.1, 10), (11, 10), (float("nan"), 10)])
def test_a_warmup_outside_the_steps_is_refused(warmup, steps) -> None:
    with pytest.raises(UsageError, match="warm-up"):
        warmup_steps(warmup, steps)


def test_an_unknown_shape_is_refused() -> None:
    with pytest.raises(UsageError, match="did you mean cosine"):
        learning_rate(0, 10, PEAK, shape="cosin")
