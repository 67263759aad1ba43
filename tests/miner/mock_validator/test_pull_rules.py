"""Every rule of the published pull protocol, on a fake clock."""

import pytest

from miner.mock_validator.pull_rules import PullRules, Rules, Verdict
from miner.mock_validator.tasks import TrialTask
from tests.miner.mock_validator.pull_fakes import MINER, make_rules, submission
from tests.support.fakes import Clock

START = 1_800_000_000.0


@pytest.fixture
def clock() -> Clock:
    return Clock(START)


@pytest.fixture
def rules(clock: Clock) -> PullRules:
    return make_rules(clock)


def pulled(rules: PullRules) -> TrialTask:
    task = rules.pull(MINER).task
    assert task is not None
    return task


def deliver(rules: PullRules, clock: Clock, seconds: float, score: float | None) -> Verdict:
    """Pulls, takes so long until the end of the validation, and gets this score."""
    task = pulled(rules)
    assert rules.submit(MINER, submission(task)) is None
    clock.now += seconds
    return rules.judged(MINER, score)


@pytest.mark.parametrize(
    ("seconds", "wait"), [(0, 300), (10, 290), (30, 270), (31, 270), (90, 270), (200, 270)]
)
def test_up_to_30_s_cost_nothing_and_slower_costs_what_is_over(
    rules: PullRules, clock: Clock, seconds: float, wait: float
) -> None:
    verdict = deliver(rules, clock, seconds, 0.8)
    assert (verdict.code, verdict.score) == ("accepted", 0.8)
    assert verdict.cooldown_until - clock.now == wait
    assert verdict.cooldown_until - START == max(seconds + 270, 300)


def test_30_s_give_48_results_in_four_hours_and_90_s_give_40() -> None:
    for seconds, results in ((30.0, 48), (90.0, 40)):
        clock = Clock(START)
        rules = make_rules(clock)
        count = 0
        while clock.now < START + 4 * 3600:
            until = deliver(rules, clock, seconds, 0.9).cooldown_until
            count += clock.now <= START + 4 * 3600
            clock.now = max(clock.now, float(until))
        assert count == results


@pytest.mark.parametrize(
    ("score", "code", "wait"),
    [
        (0.6, "accepted", 300),
        (0.5999, "below_threshold", 900),
        (0.0, "below_threshold", 900),
        (None, "validation_failed", 300),
    ],
)
def test_what_a_score_costs(
    rules: PullRules, clock: Clock, score: float | None, code: str, wait: float
) -> None:
    verdict = deliver(rules, clock, 10.0, score)
    assert verdict.code == code
    assert verdict.cooldown_until - START == wait
    assert verdict.score == (0.6 if code == "accepted" else 0.0)
    assert verdict.validation_failed == (score is None)


def test_an_empty_result_costs_the_turn_and_no_penalty(rules: PullRules, clock: Clock) -> None:
    task = pulled(rules)
    clock.now += 5.0
    verdict = rules.submit(MINER, submission(task, results=""))
    assert verdict == Verdict("empty", cooldown_until=int(START) + 300)
    assert rules.assigned(MINER) is None


@pytest.mark.parametrize("field", ["signer", "submit_time", "base64"])
def test_a_bad_signature_costs_900_s_and_the_task(
    rules: PullRules, clock: Clock, field: str
) -> None:
    task = pulled(rules)
    sent = submission(task, signer="5Other" if field == "signer" else MINER)
    if field == "submit_time":
        sent = type(sent)(sent.task_id, sent.results, 8, sent.signature)
    if field == "base64":
        sent = type(sent)(sent.task_id, sent.results, 7, "not base64!")
    verdict = rules.submit(MINER, sent)
    assert verdict == Verdict("bad_signature", cooldown_until=int(START) + 900)
    assert rules.assigned(MINER) is None


def test_a_signature_for_another_validator_is_bad(rules: PullRules) -> None:
    verdict = rules.submit(MINER, submission(pulled(rules), validator="5Elsewhere"))
    assert verdict is not None
    assert verdict.code == "bad_signature"


def test_a_stale_task_id_changes_nothing(rules: PullRules, clock: Clock) -> None:
    task = pulled(rules)
    verdict = rules.submit(MINER, submission(task, task_id="stale"))
    assert verdict == Verdict("wrong_task", cooldown_until=0)
    assert rules.assigned(MINER) == (task, START)


def test_the_same_task_while_it_is_assigned(rules: PullRules, clock: Clock) -> None:
    task = pulled(rules)
    clock.now += 100.0
    again = rules.pull(MINER)
    assert (again.task, again.violations) == (task, 0)
    assert rules.submit(MINER, submission(task)) is None
    assert rules.judged(MINER, 0.9).cooldown_until == START + 100 + 270


def test_a_second_submission_within_30_s_is_ignored(rules: PullRules, clock: Clock) -> None:
    task = pulled(rules)
    assert rules.submit(MINER, submission(task)) is None
    clock.now += 29.9
    assert rules.submit(MINER, submission(task)) == Verdict("locked", cooldown_until=0)
    clock.now += 0.1
    assert rules.submit(MINER, submission(task)) is None
    assert rules.judged(MINER, 0.9).code == "accepted"
    assert rules.judged(MINER, 0.9).code == "too_soon"
    assert rules.window(MINER) == 1


def test_violations_count_and_beyond_100_each_costs_10_s(rules: PullRules, clock: Clock) -> None:
    until = deliver(rules, clock, 10.0, 0.9).cooldown_until
    for number in range(1, 101):
        answer = rules.pull(MINER)
        assert (answer.task, answer.violations) == (None, number)
        assert answer.cooldown_until == until
    assert rules.pull(MINER).cooldown_until == until + 10
    assert rules.pull(MINER).cooldown_until == until + 20
    clock.now = until + 20.0
    task = pulled(rules)
    rules.submit(MINER, submission(task, results=""))
    clock.now += 1.0
    assert rules.pull(MINER).violations == 102  # The submission took one back.


def test_a_stranger_is_put_off_for_an_hour(rules: PullRules, clock: Clock) -> None:
    answer = rules.pull("5Stranger")
    assert (answer.task, answer.cooldown_until) == (None, START + 3600)
    sent = submission(pulled(rules))
    assert rules.submit("5Stranger", sent) == Verdict(
        "not_registered", cooldown_until=int(START) + 3600
    )


def test_feedback_counts_four_hours_and_averages(clock: Clock) -> None:
    rules = make_rules(clock, rules=Rules(cooldown_s=0, throttle_s=0, lock_s=0))
    for _ in range(3):
        deliver(rules, clock, 10.0, 0.8)
    assert rules.window(MINER) == 3
    assert rules.average(MINER) == pytest.approx(0.8 + 0.2 * 0.95**3)
    clock.now += 4 * 3600 - 15.0
    assert rules.window(MINER) == 2
