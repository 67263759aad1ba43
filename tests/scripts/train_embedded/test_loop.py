import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from scripts.train_embedded.loop import Plan, Step, Training

PLAN = Plan(steps=60, batch=64, rate=5e-2, average=0.9)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(4, 1)


def learn(training: Training, stop_at: int | None = None) -> Step:
    """Fits a plane; optionally dies in the middle, just after a checkpoint."""

    def step(generator: torch.Generator) -> Mapping[str, Tensor]:
        if training.step == stop_at:
            training.save()
            raise InterruptedError
        inputs = torch.randn(PLAN.batch, 4, generator=generator)
        error = training.module(inputs)[:, 0] - inputs.sum(1)
        return {"loss": error.square().mean()}

    return step


def test_training_learns_and_logs(tmp_path: Path) -> None:
    training = Training("plane", network(), PLAN, tmp_path)
    trained = training.run(learn(training))
    assert not trained.training
    assert not any(parameter.requires_grad for parameter in trained.parameters())
    lines = (tmp_path / "plane.losses.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    assert [entry["step"] for entry in entries] == [20, 40, 60]
    assert entries[-1]["loss"] < 0.5 * entries[0]["loss"]


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    whole = Training("whole", network(), PLAN, tmp_path)
    expected = whole.run(learn(whole)).state_dict()

    first = Training("cut", network(), PLAN, tmp_path)
    with pytest.raises(InterruptedError):
        first.run(learn(first, stop_at=33))
    torch.manual_seed(99)
    second = Training("cut", nn.Linear(4, 1), PLAN, tmp_path)
    assert second.step == 33
    resumed = second.run(learn(second)).state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=0)


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    training = Training("plane", network(), PLAN, tmp_path)
    training.run(learn(training))

    def never(generator: torch.Generator) -> Mapping[str, Tensor]:
        raise AssertionError("a finished network was trained again")

    again = Training("plane", network(), PLAN, tmp_path)
    again.run(never)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    training = Training("plane", network(), PLAN, tmp_path)

    def broken(generator: torch.Generator) -> Mapping[str, Tensor]:
        return {"loss": training.module(torch.full((1, 4), torch.inf)).sum()}

    with pytest.raises(FloatingPointError, match="plane: step 20"):
        training.run(broken)


def test_the_clock_ends_a_run_on_a_slow_machine(tmp_path: Path) -> None:
    training = Training("plane", network(), Plan(10**6, 8, 1e-2, minutes=0.002), tmp_path)
    training.run(learn(training))
    assert 0 < training.step < 10**6
    assert training.progress == 1
