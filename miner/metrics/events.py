"""Counters and histograms, fed by the events of the score log."""

import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

from miner.logs import program_version
from miner.metrics import PREFIX
from miner.metrics.labels import (
    ENDINGS,
    FATES,
    KINDS,
    METRICS,
    OUTCOMES,
    REASON_CODES,
    TRANSPORTS,
    Label,
    UidLabel,
)
from miner.metrics.numbers import Fields, finite, number
from miner.metrics.scores import ScoreMetrics, WithoutCount
from miner.score.tally import left_in_time
from miner.settings.engines import MOST_ENGINES

REQUEST_BUCKETS = (0.1, 0.15, 0.2, 0.25, 0.3, 0.5, 1, 2.5, 5, 10, 15, 20, 25, 30, 60)
STAGE_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30)
QUEUE_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30)
ERROR_BUCKETS = (-20, -10, -5, -2, -1, -0.5, -0.2, -0.1, 0, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20)
"""Upper limits of the histograms' buckets, in seconds."""

MOST_STAGES, MOST_RUNGS, MOST_CODES = 16, 8, 64
"""Words that a label takes at most, beside those of `MOST_ENGINES` engines."""


class EventMetrics:
    """Series that count what has happened. Hand `on_event` to `ScoreLog.listen`.

    A field that is missing or of another type than docs/score-log.md gives it leaves out what needs
    it. May be used from several threads.

    Args:
        registry: Receives the series.
        clock: Seconds since the epoch.

    Attributes:
        registry: That registry.
        state_since: When the service changed its state last, in seconds since the epoch.
        last_completed: When a request was last completed, in seconds since the epoch; None before
            the first.
    """

    def __init__(
        self, registry: CollectorRegistry, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._clock = clock
        self.registry = registry
        self.state_since = clock()
        self.last_completed: float | None = None
        self._kind, self._outcome = Label(KINDS), Label(OUTCOMES)
        self._transport = Label((*TRANSPORTS, METRICS))
        self._reason_code, self._fate = Label(REASON_CODES), Label(FATES)
        self._ending = Label(ENDINGS)
        self._refusal, self._uid = Label(most=MOST_CODES), UidLabel()
        self._stage, self._rung = Label(most=MOST_STAGES), Label(most=MOST_RUNGS)
        self._engine = Label(most=MOST_ENGINES)
        counter = partial(Counter, namespace=PREFIX, registry=registry)
        gauge = partial(Gauge, namespace=PREFIX, registry=registry)
        histogram = partial(Histogram, namespace=PREFIX, registry=registry)

        self._build = Info(
            "build", "The program, and its place on the subnet", namespace=PREFIX, registry=registry
        )
        self._build.info(_build({"version": program_version()}))
        self._budget = gauge(
            "budget_seconds", "Seconds from the receipt of a request to the arrival of its answer"
        )
        self._requests = counter(
            "requests", "Requests that have their answer",
            ("transport", "kind", "outcome", "reason_code"),
        )  # fmt: skip
        self._owed = counter(
            "answers_owed",
            "Requests that were neither rejected nor given up by their callers in time",
            ("transport",),
        )
        self._in_time = counter(
            "answers_in_time", "Requests that were completed within their budget", ("transport",)
        )
        self._request_seconds = histogram(
            "request_seconds", "Seconds from receipt to answer, of completed requests",
            ("transport", "kind"), buckets=REQUEST_BUCKETS,
        )  # fmt: skip
        self._first_seconds = histogram(
            "first_object_seconds",
            "Seconds from receipt to the first object, of completed requests",
            ("transport", "kind"), buckets=REQUEST_BUCKETS,
        )  # fmt: skip
        self._stage_seconds = histogram(
            "stage_seconds", "Seconds that a stage ran for the first object, of completed requests",
            ("stage", "kind", "engine", "rung"), buckets=STAGE_BUCKETS,
        )  # fmt: skip
        self._queue_seconds = histogram(
            "queue_seconds", "Seconds that no stage accounts for, of admitted requests",
            buckets=QUEUE_BUCKETS,
        )  # fmt: skip
        self._prediction_error = Histogram(
            "prediction_error_seconds",
            "Seconds predicted less taken for the first object, of completed requests",
            namespace=PREFIX, registry=None, buckets=ERROR_BUCKETS,
        )  # fmt: skip
        registry.register(WithoutCount(self._prediction_error))

        self._refused = counter(
            "refused", "Callers turned away before their request reached the service",
            ("transport", "reason_code"),
        )  # fmt: skip
        self._feedback = counter("feedback", "Pulled tasks whose outcome is known", ("fate",))
        self._validator_feedback = counter(
            "validator_feedback", "Pulled tasks whose outcome is known, by validator",
            ("uid", "fate"),
        )  # fmt: skip
        self._gateway = counter("gateway_tasks", "Tasks of a gateway that are settled", ("ending",))
        self._scores = ScoreMetrics(registry)
        self._validator_score = gauge(
            "validator_fidelity_score", "Average score of this miner, as a validator last told it",
            ("uid",),
        )  # fmt: skip

        of_chain = partial(Gauge, namespace=PREFIX, registry=None)
        self._earnings = {
            "incentive": of_chain("incentive", "Incentive on the chain, 0 to 1"),
            "emission": of_chain("emission_alpha", "Alpha that the chain gave for the last epoch"),
            "stake": of_chain("stake", "Stake of the miner's hotkey, as the chain counts it"),
            "place": of_chain("place", "Place among the miners by incentive; 1 is the highest"),
        }
        self._earns = False

    def expect(self, transports: Iterable[str], *, scores: bool = False) -> None:
        """Begins the counters of these transports at 0, so that their first request is an increase.

        Prometheus sees no increase in a series whose first value is 1.

        Args:
            transports: Their names.
            scores: Whether the miner scores what it makes.
        """
        if scores:
            self._scores.expect(transports)
        for transport in transports:
            self._owed.labels(transport)
            self._in_time.labels(transport)
            for kind in KINDS:
                self._request_seconds.labels(transport, kind)
                self._first_seconds.labels(transport, kind)
                self._requests.labels(transport, kind, "completed", "ok")
        for fate in FATES if "pull" in transports else ():
            self._feedback.labels(fate)
        for ending in ENDINGS if "gateway" in transports else ():
            self._gateway.labels(ending)

    def on_event(self, event: str, fields: Fields) -> None:
        """Counts an event of the score log.

        Args:
            event: Its name.
            fields: Its fields.
        """
        match event:
            case "answered":
                self._answered(fields)
            case "refused":
                count = number(fields, "count")
                if count is not None:
                    transport, code = fields.get("transport"), fields.get("reason_code")
                    self._refused.labels(self._transport(transport), self._refusal(code)).inc(count)
            case "feedback":
                self._judged(fields)
            case "delivered":
                self._gateway.labels(self._ending(fields.get("ending"))).inc()
            case "earnings":
                self._earn(fields)
            case "state_changed":
                self.state_since = self._clock()
            case "miner_started":
                self._build.info(_build(fields))
                if (budget := number(fields, "budget_s")) is not None:
                    self._budget.set(budget)

    def _earn(self, fields: Fields) -> None:
        if not self._earns:  # Before, a 0 would look like the chain's.
            self._earns = True
            for series in self._earnings.values():
                self.registry.register(series)
        for name, series in self._earnings.items():
            if (value := number(fields, name)) is not None:
                series.set(value)

    def _answered(self, fields: Fields) -> None:
        transport, kind = self._transport(fields.get("transport")), self._kind(fields.get("kind"))
        outcome, code = self._outcome(fields.get("outcome")), fields.get("reason_code")
        self._requests.labels(transport, kind, outcome, self._reason_code(code)).inc()
        self._scores.answered(fields, transport, kind)
        total, queued = number(fields, "total_s"), number(fields, "queue_s")
        if _is_owed(fields, total):
            self._owed.labels(transport).inc()
        if queued is not None and "rung" in fields:
            self._queue_seconds.observe(queued)
        if outcome != "completed":
            return
        self.last_completed = self._clock()
        if fields.get("on_time") is True:
            self._in_time.labels(transport).inc()
        if total is not None:
            first = max(0.0, total - (number(fields, "candidates_s") or 0.0))
            self._request_seconds.labels(transport, kind).observe(total)
            self._first_seconds.labels(transport, kind).observe(first)
            if (predicted := number(fields, "predicted_s")) is not None:
                self._prediction_error.observe(predicted - first)
        timings = fields.get("timings")
        for name, seconds in timings.items() if isinstance(timings, Mapping) else ():
            if (ran := finite(seconds)) is not None:
                self._stage_seconds.labels(
                    self._stage(name),
                    kind,
                    self._engine(fields.get("engine")),
                    self._rung(fields.get("rung")),
                ).observe(ran)

    def _judged(self, fields: Fields) -> None:
        uid, fate = self._uid(fields.get("uid")), self._fate(fields.get("fate"))
        self._feedback.labels(fate).inc()
        for each in FATES:  # Begin at 0: a share of them needs both.
            self._validator_feedback.labels(uid, each)
        self._validator_feedback.labels(uid, fate).inc()
        self._scores.judged(fields)
        if (average := number(fields, "average_fidelity_score", most=1.0)) is not None:
            self._validator_score.labels(uid).set(average)


def _is_owed(fields: Fields, total: float | None) -> bool:
    """Whether an answer counts for the share in time, as docs/score-log.md defines it."""
    if fields.get("outcome") == "rejected":
        return False
    return not left_in_time(str(fields.get("reason_code")), total, number(fields, "budget_s"))


def _build(fields: Fields) -> dict[str, str]:
    names = ("version", "preset", "back_end", "netuid", "uid", "hotkey")
    return {name: str(fields.get(name, ""))[:128] for name in names}
