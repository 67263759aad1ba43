"""The pull transport without a network: a validator by the published rules, and no waiting."""

import asyncio
import base64
from io import BytesIO
from typing import Any

import pytest
from PIL import Image

from generation.errors import GenerationError
from generation.scoring.validity import Check, ValidityReport
from miner.request import Caller, Request
from miner.transports.pull.calls import NoAnswer, PullAnswer, SubmitAnswer
from miner.transports.pull.validators import Standing
from protocol.synapses import Feedback, WireTask
from protocol.tasks import TextTask
from tests.miner.transports.push.test_axon_checks import StaticChain
from tests.support.fake_validators import (
    ACCEPTED,
    START,
    VALIDATOR,
    Pulling,
    StartPulling,
    a_while,
    text,
)
from tests.support.fakes import ball_spz


async def test_a_task_is_pulled_made_submitted_and_settled(start_pulling: StartPulling) -> None:
    def prepare(pulling: Pulling) -> None:
        pulling.calls.pulls = [text()]
        feedback = Feedback(
            task_fidelity_score=0.8,
            average_fidelity_score=0.9,
            generations_within_the_window=12,
            current_duel_rating=1500.0,
            current_miner_reward=18000.0,
        )
        pulling.calls.answers = [SubmitAnswer(feedback, START + 300.0)]

    async with start_pulling(prepare) as pulling:
        (feedback,) = await pulling.settled()
        assert pulling.calls.submitted == [("5V", "t-1", ball_spz())]
        assert feedback["fate"] == "accepted"
        assert feedback["caller"] == "5V"
        assert feedback["task_fidelity_score"] == 0.8
        assert feedback["generations_within_the_window"] == 12
        assert feedback["current_duel_rating"] == 1500.0
        assert feedback["ask_again_s"] == 301.0
        (answered,) = pulling.events("answered")
        assert (answered["transport"], answered["outcome"]) == ("pull", "completed")
        assert (answered["caller"], answered["uid"]) == ("5V", 1)
    state = pulling.file.load()
    assert state.tasks == ()
    assert (state.validators["5V"].accepted, state.validators["5V"].pulled) == (1, 1)
    assert pulling.calls.closed


async def test_every_pull_is_a_line_with_its_result_and_the_next_one(
    start_pulling: StartPulling,
) -> None:
    def prepare(pulling: Pulling) -> None:
        silent = NoAnswer("no answer within 12 s", status=408, reached=True)
        cooling = PullAnswer(None, 0.6, START + 361.0, 2)
        pulling.calls.pulls = [silent, cooling, text("t\n1")]

    async with start_pulling(prepare) as pulling:
        await a_while()
        pulling.time.now += 60.0
        await a_while()
        pulling.time.now += 302.0
        (feedback,) = await pulling.settled()
        pulled = pulling.events("pulled")
    assert (feedback["threshold"], feedback["uid"]) == (0.6, 1)
    common = {"event": "pulled", "caller": "5V", "uid": 1}
    assert [{k: v for k, v in line.items() if k not in ("ts", "unix")} for line in pulled] == [
        {**common, "result": "no_answer", "reason": "no answer within 12 s", "ask_again_s": 60.0},
        {**common, "result": "no_task", "violations": 2, "ask_again_s": 302.0},
        {**common, "result": "task", "task_id": "t?1", "kind": "text", "violations": 0},
    ]


async def test_an_assigned_task_is_on_disk_before_anything_is_done_with_it(
    start_pulling: StartPulling,
) -> None:
    noted: list[tuple[int, bool]] = []

    def prepare(pulling: Pulling) -> None:
        pulling.calls.pulls = [text()]
        run = pulling.engine.run

        async def watched(*args: Any, **arguments: Any) -> Any:
            noted.extend((t.starts, t.submitted_at is None) for t in pulling.saved().tasks)
            return await run(*args, **arguments)

        pulling.engine.run = watched  # type: ignore[method-assign]
        pulling.calls.before_submit = lambda: noted.extend(
            (t.starts, t.submitted_at is None) for t in pulling.file.load().tasks
        )

    async with start_pulling(prepare) as pulling:
        await pulling.settled()
    assert noted == [(1, True), (1, False)]


async def test_an_image_task(start_pulling: StartPulling) -> None:
    file = BytesIO()
    Image.new("RGB", (64, 48)).save(file, "PNG")
    prompt = base64.b64encode(file.getvalue()).decode()

    def prepare(pulling: Pulling) -> None:
        pulling.calls.pulls = [WireTask(type="image", id="i-1", prompt=prompt)]

    async with start_pulling(prepare) as pulling:
        await pulling.settled()
        assert pulling.engine.ran[0] == ("i-1", "cutout")
        assert pulling.events("answered")[0]["kind"] == "image"
        assert prompt[:40] not in pulling.log.path.read_text()


INVALID = ValidityReport((Check("gaussians", False, 10.0, 7000.0, "too few"),), ())


@pytest.mark.parametrize("how", ["dropped", "failed", "rejected", "invalid"])
async def test_an_empty_result_where_there_is_none_worth_submitting(
    start_pulling: StartPulling, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare(pulling: Pulling) -> None:
        pulling.calls.pulls = [text(prompt="" if how == "rejected" else "a cube")]
        pulling.calls.answers = [SubmitAnswer(Feedback(), START + 300.0)]
        if how == "failed":
            pulling.engine.error_at = "splats"
            pulling.engine.error = GenerationError("no surface")
        if how == "dropped":
            pulling.engine.seconds["splats"] = 60.0
        if how == "invalid":
            monkeypatch.setattr("tests.support.fakes.check", lambda cloud: INVALID)

    async with start_pulling(prepare) as pulling:
        (feedback,) = await pulling.settled()
        assert pulling.calls.submitted == [("5V", "t-1", b"")]
        assert feedback["fate"] == "skipped"
        assert "task_fidelity_score" not in feedback
        outcome = "completed" if how == "invalid" else how
        assert pulling.events("answered")[0]["outcome"] == outcome


NOT_CONNECTED = NoAnswer("status 503: no connection", status=503, reached=False)
CUT_OFF = NoAnswer("status 408: timeout", status=408, reached=True)
FORBIDDEN = NoAnswer("status 403: no task assigned", status=403, reached=True)
IGNORED = SubmitAnswer(Feedback(), START - 1000.0)
REFUSED = SubmitAnswer(Feedback(), START + 900.0)
FAILED = SubmitAnswer(Feedback(validation_failed=True), START + 300.0)
STRANGER = SubmitAnswer(None, START + 3600.0)


@pytest.mark.parametrize(
    ("answers", "sleeps", "fate"),
    [
        ([NOT_CONNECTED, ACCEPTED], [2.0], "accepted"),
        ([NOT_CONNECTED] * 3 + [ACCEPTED], [2.0, 4.0, 8.0], "accepted"),
        ([CUT_OFF, ACCEPTED], [31.0], "accepted"),
        ([CUT_OFF, FORBIDDEN], [31.0], "unknown"),
        ([CUT_OFF, REFUSED], [31.0], "unknown"),
        ([NOT_CONNECTED, REFUSED], [2.0], "refused"),
        ([NOT_CONNECTED] * 30, [2.0, 4.0, 8.0, 16.0] + [30.0] * 9, "unknown"),
        ([CUT_OFF] * 30, [31.0] * 9, "unknown"),
        ([FORBIDDEN], [], "unknown"),
        ([IGNORED], [], "unknown"),
        ([REFUSED], [], "refused"),
        ([FAILED], [], "failed"),
        ([STRANGER], [], "unknown"),
    ],
)
async def test_a_submission_is_repeated_only_where_that_is_no_double_submission(
    start_pulling: StartPulling, answers: list[Any], sleeps: list[float], fate: str
) -> None:
    sent: list[float] = []

    def prepare(pulling: Pulling) -> None:
        pulling.calls.pulls = [text()]
        pulling.calls.answers = list(answers)
        pulling.calls.before_submit = lambda: sent.append(pulling.time.now)

    async with start_pulling(prepare) as pulling:
        (feedback,) = await pulling.settled()
        assert feedback["fate"] == fate
        assert len(sent) == len(sleeps) + 1
        assert pulling.time.sleeps == sleeps
        assert {asset for _, _, asset in pulling.calls.submitted} == {ball_spz()}
        for earlier, answer, later in zip(sent, answers, sent[1:], strict=False):
            assert not answer.reached or later - earlier > 30.0
    assert pulling.file.load().tasks == ()


async def test_a_validator_without_a_task_or_an_answer_is_left_alone(
    start_pulling: StartPulling,
) -> None:
    def prepare(pulling: Pulling) -> None:
        pulling.calls.pulls = [PullAnswer(None, 0.6, START + 50.0, 3)]

    async with start_pulling(prepare) as pulling:
        await a_while()
        assert pulling.calls.pulled == 1
        pulling.time.now += 51.0
        pulling.calls.pulls = [CUT_OFF]
        await a_while()
        assert pulling.calls.pulled == 2
    assert pulling.file.load().validators["5V"] == Standing(
        ask_after=START + 51.0 + 60.0, asked_at=START + 51.0, failures=1
    )


async def test_nothing_is_pulled_while_the_engine_is_busy(start_pulling: StartPulling) -> None:
    def prepare(pulling: Pulling) -> None:
        pulling.engine.hold_at = "splats"
        pulling.chain.snapshot = type(pulling.chain.snapshot)({}, 0.0)

    async with start_pulling(prepare) as pulling:
        pushed = Request(TextTask(id="p", prompt="a cube"), Caller("5X"), "axon", START)
        asking = asyncio.create_task(pulling.service.handle(pushed))
        await pulling.engine.holding.wait()
        pulling.chain.snapshot = StaticChain(VALIDATOR).snapshot
        await a_while()
        assert pulling.calls.pulled == 0
        pulling.engine.release.set()
        await asking
        await a_while()
        assert pulling.calls.pulled == 1


@pytest.mark.parametrize("workers", [1, 2])
async def test_as_many_tasks_at_once_as_there_are_workers(
    start_pulling: StartPulling, workers: int
) -> None:
    def prepare(pulling: Pulling) -> None:
        pulling.engine.hold_at = "splats"
        pulling.calls.pulls = [text(f"t-{number}") for number in range(3)]
        neurons = [VALIDATOR.model_copy(update={"uid": u, "hotkey": f"5V{u}"}) for u in range(3)]
        pulling.chain.snapshot = StaticChain(*neurons).snapshot

    async with start_pulling(prepare, workers=workers) as pulling:
        await pulling.engine.holding.wait()
        await a_while()
        assert pulling.calls.pulled == workers
        pulling.engine.release.set()
        await pulling.settled(3)
        validators = {hotkey for hotkey, _, _ in pulling.calls.submitted}
        assert validators == {"5V0", "5V1", "5V2"}
