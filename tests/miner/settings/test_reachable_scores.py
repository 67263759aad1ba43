"""Thresholds, targets and numbers of candidates that nothing could reach."""

import re

import pytest

from miner.settings.miner import MinerConfig
from miner.settings.reader import read_settings
from protocol.errors import SetupError


def read(*argv: str) -> MinerConfig:
    return read_settings(MinerConfig, prog="miner", argv=argv, environ={})


SCORED = ["--preset=embedded", "--transports=http"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gate.threshold=2"], "no result would pass; scores are at most 1"),
        (["--gate.threshold=1.01"], "no result would pass; scores are at most 1"),
        (["--gate.threshold=0"], "every result passes it; --gate.enabled false turns"),
        (["--gate.threshold=-0.5"], "every result passes it"),
        (["--gate.threshold=0.95", "--gate.margin=0.15"], "a limit of 1.1: no result would pass"),
        (["--gate.threshold=0.1", "--gate.margin=-0.1"], "a limit of 0: every result would pass"),
        (["--candidates.target=1.5"], "no object reaches it; scores are at most 1"),
        (["--candidates.target=0"], "every first object reaches it; --candidates.max 1"),
        (["--http.candidates=5"], "--http.candidates 5 is more than the 4 of --candidates.max"),
    ],
)
def test_a_score_or_a_number_of_candidates_that_nothing_can_reach_is_refused(
    arguments: list[str], message: str
) -> None:
    with pytest.raises(SetupError, match=re.escape(message)) as caught:
        read(*SCORED, *arguments)
    assert caught.value.fix


@pytest.mark.parametrize(
    "arguments",
    [
        ["--gate.threshold=1", "--candidates.target=1"],
        ["--gate.threshold=0.9", "--gate.margin=0.1"],
        ["--gate.threshold=0.95", "--gate.margin=0.15", "--gate.enabled=false"],
        ["--http.candidates=5", "--candidates.max=5"],
        ["--http.candidates=5", "--scoring.scorer=none"],
    ],
)
def test_a_score_that_an_object_can_reach_is_taken(arguments: list[str]) -> None:
    assert read(*SCORED, *arguments)
