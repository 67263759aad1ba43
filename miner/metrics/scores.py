"""Series of own scores, candidates and the gate, and of what validators say of them."""

from collections.abc import Iterable, Iterator
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from miner.metrics import PREFIX
from miner.metrics.labels import KINDS, NAMES, VERDICTS, Label
from miner.metrics.numbers import Fields, finite, number
from miner.scheduling.gate import MOST_SCORERS

SCORE_BUCKETS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
GAIN_BUCKETS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5)
ERROR_BUCKETS = (-0.5, -0.3, -0.2, -0.1, -0.05, -0.02, 0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
"""Upper limits of the histograms' buckets: scores, and differences of scores."""

MOST_SCORE = 10.0
"""A larger score is none."""


class ScoreMetrics:
    """What `EventMetrics` counts of scores.

    Args:
        registry: Receives the series.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._scorer = Label(most=MOST_SCORERS, pattern=NAMES)
        counter = partial(Counter, namespace=PREFIX, registry=registry)
        gauge = partial(Gauge, namespace=PREFIX, registry=registry)
        histogram = partial(Histogram, namespace=PREFIX, registry=registry)
        asked = ("transport", "kind")
        self._score = histogram(
            "own_score", "Own scores of answers, before any validator's", asked,
            buckets=SCORE_BUCKETS,
        )  # fmt: skip
        self._gain = histogram(
            "score_gain", "Own score of the answer less that of its first object",
            buckets=GAIN_BUCKETS,
        )  # fmt: skip
        self._candidates = counter("candidates", "Objects that were scored for answers", asked)
        self._pictures = counter("pictures", "Pictures that were drawn or given for them", asked)
        self._candidates_s = counter(
            "candidates_seconds", "Seconds from the first object of an answer to the answer", asked
        )
        self._verdicts = counter(
            "gate_verdicts", "Answers with an own score, by what the gate said",
            ("transport", "verdict"),
        )  # fmt: skip
        self._limit = gauge("gate_limit", "Least own score that passed the gate last", ("scorer",))
        self._margin = gauge(
            "gate_margin", "What the gate adds to a validator's threshold", ("scorer",)
        )
        self._given = histogram(
            "fidelity_score", "Scores that validators gave to results", buckets=SCORE_BUCKETS
        )
        self._error = Histogram(
            "score_error", "Own score less the validator's, of accepted results",
            namespace=PREFIX, registry=None, buckets=ERROR_BUCKETS,
        )  # fmt: skip
        registry.register(WithoutCount(self._error))

    def expect(self, transports: Iterable[str]) -> None:
        """Begins the counters of these transports at 0, for a miner that scores what it makes."""
        for transport in transports:
            for verdict in VERDICTS:
                self._verdicts.labels(transport, verdict)
            for kind in KINDS:
                for counter in (self._candidates, self._pictures, self._candidates_s):
                    counter.labels(transport, kind)

    def answered(self, fields: Fields, transport: str, kind: str) -> None:
        """Counts an `answered` event, with its labels as the other series have them."""
        score = number(fields, "score", most=MOST_SCORE)
        if score is None:
            return
        self._score.labels(transport, kind).observe(score)
        first = number(fields, "first_score", most=MOST_SCORE)
        if first is not None:
            self._gain.observe(max(0.0, score - first))
        for series, name in (
            (self._candidates, "candidates"),
            (self._pictures, "pictures"),
            (self._candidates_s, "candidates_s"),
        ):
            if (value := number(fields, name)) is not None:
                series.labels(transport, kind).inc(value)
        gated = fields.get("gated")
        if isinstance(gated, bool):
            passed = "probe" if fields.get("gate_probe") is True else "passed"
            self._verdicts.labels(transport, "gated" if gated else passed).inc()
        scorer = self._scorer(fields.get("scorer"))
        if (limit := number(fields, "gate_limit")) is not None:
            self._limit.labels(scorer).set(limit)
        if (margin := finite(fields.get("margin"), least=-MOST_SCORE)) is not None:
            self._margin.labels(scorer).set(margin)

    def judged(self, fields: Fields) -> None:
        """Counts a `feedback` event."""
        given = number(fields, "task_fidelity_score", most=1.0)
        if given is None:
            return
        self._given.observe(given)
        predicted = number(fields, "predicted", most=MOST_SCORE)
        # Of a refused result the validator tells no score but 0.
        if predicted is not None and fields.get("fate") == "accepted":
            self._error.observe(predicted - given)


class WithoutCount(Collector):
    """A histogram with negative buckets: OpenMetrics allows no sum, and then no count either."""

    def __init__(self, histogram: Histogram) -> None:
        self._histogram = histogram

    def collect(self) -> Iterator[Metric]:
        """Yields the histogram without the sample that may not be there."""
        for metric in self._histogram.collect():
            metric.samples = [s for s in metric.samples if not s.name.endswith("_count")]
            yield metric
