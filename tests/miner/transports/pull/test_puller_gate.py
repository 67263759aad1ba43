"""A pulled task with an own score: gated or submitted, and what is learned of it."""

from pathlib import Path
from typing import Any

import pytest

from miner.kept_gate import FILE_NAME, KeptGate
from miner.scheduling.gate import PROBE_AFTER, GateLimits, Pair
from miner.service import MinerService
from miner.transports.pull.calls import NoAnswer, PullAnswer, SubmitAnswer
from protocol.synapses import Feedback
from tests.support.fake_validators import START, Pulling, StartPulling, text
from tests.support.fakes import FakeEngine, ball_spz

ACCEPTED = SubmitAnswer(Feedback(task_fidelity_score=0.72), START + 300.0)
REFUSED = SubmitAnswer(Feedback(), START + 900.0)
EMPTY = SubmitAnswer(Feedback(), START + 300.0)


def scoring(
    pulling: Pulling, folder: Path, score: float | None, limits: GateLimits | None = None
) -> KeptGate:
    """Gives the miner an engine whose objects have this score, and a gate that learns."""
    kept = KeptGate(limits or GateLimits(), folder / FILE_NAME)
    worth = None if score is None else (lambda task: score)
    pulling.engine = FakeEngine(worth=worth)
    pulling.service = MinerService(
        [pulling.engine],
        pulling.log,
        budget_s=30.0,
        margin_s=1.0,
        gate=kept.gate,
        clock=pulling.time,
    )
    pulling.settings["learn"] = kept.observe
    pulling.transport = pulling.make()
    return kept


async def one_task(
    start_pulling: StartPulling,
    folder: Path,
    score: float | None,
    answers: list[Any],
    *,
    threshold: float = 0.6,
    limits: GateLimits | None = None,
) -> tuple[Pulling, KeptGate]:
    """Has one task pulled, made, submitted and settled."""
    kept: list[KeptGate] = []

    def prepare(pulling: Pulling) -> None:
        pulling.calls.pulls = [PullAnswer(text(), threshold, 0.0, 0)]
        pulling.calls.answers = list(answers)
        kept.append(scoring(pulling, folder, score, limits))

    async with start_pulling(prepare) as pulling:
        await pulling.settled()
        await pulling.forgotten()
    return pulling, kept[0]


async def test_a_result_below_the_limit_is_an_empty_one_with_its_reason_in_the_log(
    start_pulling: StartPulling, tmp_path: Path, warnings: list[str]
) -> None:
    pulling, kept = await one_task(start_pulling, tmp_path, 0.55, [EMPTY])
    assert pulling.calls.submitted == [("5V", "t-1", b"")]
    (answered,), (feedback,) = pulling.events("answered"), pulling.events("feedback")
    assert (answered["outcome"], answered["reason_code"]) == ("completed", "below_threshold")
    assert (answered["gated"], answered["gate_limit"], answered["margin"]) == (True, 0.6, 0.0)
    assert (answered["score"], answered["scorer"]) == (0.55, "fake")
    assert (feedback["fate"], feedback["gated"], feedback["predicted"]) == ("skipped", True, 0.55)
    assert any(
        "an empty result, gated, its score 0.550 is below 0.600" in line for line in warnings
    )
    assert kept.gate.pairs == ()


async def test_an_accepted_result_is_learned_with_the_score_that_the_validator_gave(
    start_pulling: StartPulling, tmp_path: Path
) -> None:
    pulling, kept = await one_task(start_pulling, tmp_path, 0.65, [ACCEPTED])
    assert pulling.calls.submitted == [("5V", "t-1", ball_spz())]
    assert kept.gate.pairs == (Pair(0.65, True, 0.72, 0.6, "fake"),)
    (answered,), (feedback,) = pulling.events("answered"), pulling.events("feedback")
    assert (answered["gated"], answered["score_parts"]) == (False, {"object": 0.65})
    assert (feedback["predicted"], feedback["scorer"], feedback["gated"]) == (0.65, "fake", False)
    assert "gate_probe" not in feedback
    assert KeptGate(GateLimits(), tmp_path / FILE_NAME).gate.pairs == kept.gate.pairs


async def test_a_refused_result_is_learned_without_a_score(
    start_pulling: StartPulling, tmp_path: Path
) -> None:
    _, kept = await one_task(start_pulling, tmp_path, 0.65, [REFUSED])
    assert kept.gate.pairs == (Pair(0.65, False, None, 0.6, "fake"),)


async def test_the_validators_own_threshold_decides(
    start_pulling: StartPulling, tmp_path: Path
) -> None:
    pulling, kept = await one_task(start_pulling, tmp_path, 0.65, [EMPTY], threshold=0.7)
    assert pulling.calls.submitted == [("5V", "t-1", b"")]
    assert pulling.events("answered")[0]["gate_limit"] == 0.7
    assert kept.gate.pairs == ()


@pytest.mark.parametrize(
    "answers",
    [
        [SubmitAnswer(Feedback(validation_failed=True), START + 300.0)],
        [SubmitAnswer(Feedback(), START - 1000.0)],
        [SubmitAnswer(None, START + 3600.0)],
        [NoAnswer("status 408: timeout", status=408, reached=True), REFUSED],
        [NoAnswer("status 403: no task assigned", status=403, reached=True)],
    ],
)
async def test_nothing_is_learned_from_a_result_that_was_not_judged(
    start_pulling: StartPulling, tmp_path: Path, answers: list[Any]
) -> None:
    pulling, kept = await one_task(start_pulling, tmp_path, 0.65, answers)
    assert pulling.calls.submitted[-1] == ("5V", "t-1", ball_spz())
    assert kept.gate.pairs == ()


async def test_without_a_scorer_everything_is_submitted_and_nothing_learned(
    start_pulling: StartPulling, tmp_path: Path
) -> None:
    pulling, kept = await one_task(start_pulling, tmp_path, None, [ACCEPTED])
    assert pulling.calls.submitted == [("5V", "t-1", ball_spz())]
    assert kept.gate.pairs == ()
    names = {"score", "scorer", "gated", "gate_limit", "predicted", "candidates"}
    assert not any(names & event.keys() for event in pulling.events("answered", "feedback"))


async def test_with_the_gate_off_everything_is_submitted_and_learned(
    start_pulling: StartPulling, tmp_path: Path
) -> None:
    limits = GateLimits(enabled=False)
    pulling, kept = await one_task(start_pulling, tmp_path, 0.3, [REFUSED], limits=limits)
    assert pulling.calls.submitted == [("5V", "t-1", ball_spz())]
    assert kept.gate.pairs == (Pair(0.3, False, None, 0.6, "fake"),)


async def test_a_probe_is_submitted_and_counts(start_pulling: StartPulling, tmp_path: Path) -> None:
    kept: list[KeptGate] = []
    count = PROBE_AFTER + 1

    def prepare(pulling: Pulling) -> None:
        pulling.calls.pulls = [text(f"t-{number}") for number in range(count)]
        pulling.calls.answers = [*[EMPTY] * PROBE_AFTER, ACCEPTED]
        kept.append(scoring(pulling, tmp_path, 0.4))

    async with start_pulling(prepare) as pulling:
        for number in range(count):
            await pulling.settled(number + 1)
            await pulling.forgotten()
            pulling.time.now = START + 1000.0 * (number + 1)
            pulling.calls.answers[:] = [
                SubmitAnswer(answer.feedback, answer.cooldown_until + 1000.0)
                for answer in pulling.calls.answers
            ]
        assert [bool(asset) for _, _, asset in pulling.calls.submitted] == [
            *[False] * PROBE_AFTER,
            True,
        ]
        last, feedback = pulling.events("answered")[-1], pulling.events("feedback")[-1]
    assert (last["reason_code"], last["gated"], last["gate_probe"]) == ("ok", False, True)
    assert (feedback["fate"], feedback["gate_probe"]) == ("accepted", True)
    assert kept[0].gate.pairs == (Pair(0.4, True, 0.72, 0.6, "fake", True),)
