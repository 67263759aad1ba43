"""What crosses to another process arrives as it was."""

import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from generation.errors import (
    EngineDead,
    GenerationError,
    GenerationStopped,
    NoObject,
    OutOfMemory,
)
from generation.result import Generation
from generation.scoring.score import Score
from generation.scoring.validity import check
from generation.stage import Asset, Cutout
from miner.engines import calls
from miner.engines.wire import (
    Fault,
    Scored,
    SetupFault,
    error_of,
    fault_of,
    finished,
    portable,
    with_score,
)
from protocol.errors import SetupError, TaskError
from tests.support.fakes import ball, ball_spz


def crossed(value: Any) -> Any:
    """Through a connection, as between two processes."""
    here, there = socket.socketpair()
    with here, there, ThreadPoolExecutor(1) as thread:
        sending = thread.submit(calls._send, here, value)
        received = calls._receive(there)
        sending.result()
    return received


def made() -> Generation:
    pixels = np.arange(256, dtype=np.uint8).reshape(8, 8, 4)
    seen = Cutout(pixels[..., :3], pixels, pixels[..., 1:], 0.5, on_device=torch.zeros(3))
    asset = Asset(ball(), ball_spz(), check(ball()))
    return Generation("t", "full", asset, {"lift": 1.0}, seen)


@pytest.mark.parametrize(
    "error",
    [
        GenerationError("lift failed"),
        NoObject("the picture shows no object"),
        OutOfMemory("lift ran out of memory"),
        GenerationStopped("lift", "0.1 s are left"),
        EngineDead("lift lost the device"),
        TaskError("the picture is damaged"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_of_a_run_keep_their_kind_words_and_timings(error: Exception) -> None:
    if hasattr(error, "timings"):
        error.timings = {"prompt": 0.5}
    again: Any = error_of(crossed(fault_of(error)))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)


def test_an_error_that_nobody_expects_is_none_of_the_request() -> None:
    again = error_of(crossed(fault_of(ZeroDivisionError("division by zero"))))
    assert type(again) is RuntimeError
    assert str(again) == "ZeroDivisionError: division by zero"
    assert type(error_of(Fault("SystemExit", ("1",), {}))) is RuntimeError


def test_a_setup_error_keeps_its_fix() -> None:
    again = crossed(SetupFault.of(SetupError("no weights", fix="fetch them"))).error()
    assert (again.problem, again.fix) == ("no weights", "fetch them")


def test_a_generation_arrives_whole_but_for_what_lies_on_a_device() -> None:
    sent = made()
    got: Generation = crossed(portable(sent))
    assert got.seen.on_device is None
    assert (got.spz, got.timings, got.rung, got.seen.rating) == (
        sent.spz,
        {"lift": 1.0},
        "full",
        0.5,
    )
    for name in ("positions", "log_scales", "rotations", "opacity_logits", "colors_dc"):
        np.testing.assert_array_equal(getattr(got.cloud, name), getattr(sent.cloud, name))
    for name in ("picture", "rgba", "on_grey"):
        np.testing.assert_array_equal(getattr(got.seen, name), getattr(sent.seen, name))


def test_a_score_does_not_bring_its_object_a_second_time() -> None:
    before = made()
    score = Score(0.7, {"object": 0.7}, "fake")
    after = replace(
        before, made=replace(before.asset, score=score), timings={"lift": 1.0, "score": 0.2}
    )
    sent = finished(after, before)
    assert isinstance(sent, Scored)
    got = with_score(crossed(portable(before)), crossed(sent))
    assert (got.score, got.timings, got.spz) == (score, after.timings, before.spz)


def test_another_object_is_sent_whole() -> None:
    assert isinstance(finished(made(), None), Generation)
    assert isinstance(finished(made(), made()), Generation)
    drawn = replace(made(), made=(made().seen, None))
    got: Generation = crossed(finished(drawn, None))
    assert isinstance(got.made, tuple)
    assert [cut is None for cut in got.made] == [False, True]
