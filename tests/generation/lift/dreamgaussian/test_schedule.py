"""Noise and rates anneal so that an object may be cut off anywhere in the late phase."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from generation.lift.dreamgaussian import dream as dreaming
from generation.lift.dreamgaussian.gaussians import TrainedGaussians
from generation.lift.dreamgaussian.schedule import (
    ANNEALED,
    annealing,
    noise_time,
    position_rate,
)
from generation.lift.phases import MIDDLE_UNTIL, phase_at
from tests.generation.lift.dreamgaussian.test_dream import Painter, dream


@given(steps=st.integers(min_value=1, max_value=2000), done=st.integers(min_value=0))
def test_an_object_is_cut_off_at_little_noise_and_small_steps(steps: int, done: int) -> None:
    """A slice of the late phase need not be taken, and those before it are."""
    share = (done % (steps + 1)) / steps
    if phase_at(share) != "late":
        return
    assert noise_time(annealing(share)) <= 1 - ANNEALED + 1e-9
    assert position_rate(annealing(share)) <= 0.05 * position_rate(0.0)


def test_annealing_goes_all_the_way_without_a_jump_and_slower_at_the_end() -> None:
    shares = [i / 1000 for i in range(1001)]
    ways = [annealing(share) for share in shares]
    assert ways[0] == 0.0
    assert ways[-1] == pytest.approx(1.0)
    moves = [after - before for before, after in pairwise(ways)]
    assert min(moves) > 0
    assert max(moves) < 2 / 1000
    assert annealing(MIDDLE_UNTIL) == pytest.approx(ANNEALED)
    assert moves[-1] == pytest.approx(0.375 * moves[0], rel=1e-3)


def test_the_guidance_is_asked_along_this_way() -> None:
    guidance = Painter()
    one = dream(10, guidance, count=200)
    one.run(10)
    assert [time for *_, time in guidance.seen] == pytest.approx(
        [noise_time(annealing(i / 10)) for i in range(10)]
    )


def test_opacities_are_reset_only_while_steps_follow_that_bring_them_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An object that is cut off right after a reset could not be seen."""
    reset: list[int] = []
    one = dream(20, Painter(), count=200)
    monkeypatch.setattr(dreaming, "_RESET_EVERY", 2)
    monkeypatch.setattr(
        TrainedGaussians, "limit_opacity", lambda self, most: reset.append(one.done)
    )
    one.run(20)
    assert reset == [2, 4, 6, 8]
