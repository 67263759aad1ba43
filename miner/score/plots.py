"""Plots of a report's timeline, as the coordinates of an SVG. Pure.

Drawn here and not by a plotting library: the page follows the reader's light or dark theme by CSS,
and the monitor starts without one.
"""

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from miner.score.report import ScoreReport
from miner.score.scoring import Scoring, bins_of
from miner.score.tally import OTHERS
from miner.score.timeline import Span

WIDTH, HEIGHT = 560.0, 190.0
"""Of a plot, in units of its view box."""

_LEFT, _RIGHT, _TOP, _BOTTOM = 44.0, 8.0, 8.0, 22.0
_MOST_REASONS = 6
_TICKS_S = (60, 300, 900, 3600, 3 * 3600, 6 * 3600, 86_400, 7 * 86_400, 28 * 86_400)


@dataclass(frozen=True)
class Bar:
    """A part of a stacked bar; `title` is shown where the pointer rests."""

    x: float
    y: float
    width: float
    height: float
    colour: str
    title: str


@dataclass(frozen=True)
class Line:
    """A line, broken where there is no value; `dots` are its values with their titles."""

    colour: str
    path: str
    dots: Sequence[tuple[float, float, str]] = ()


@dataclass(frozen=True)
class Plot:
    """One plot.

    Attributes:
        title: What it shows.
        key: Colour, which is a class of the page, and name of each series.
        x_ticks: Place and label; the same for `y_ticks`.
        bars: Drawn first.
        lines: Drawn over them.
    """

    title: str
    key: Sequence[tuple[str, str]]
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    bars: Sequence[Bar] = ()
    lines: Sequence[Line] = ()


@dataclass(frozen=True)
class _Frame:
    """The period that is drawn, and the largest value."""

    begin: float
    end: float
    most: float
    length: float
    ticks: Sequence[tuple[float, str]] = field(default_factory=tuple)

    def x(self, at: float) -> float:
        inner = WIDTH - _LEFT - _RIGHT
        return round(_LEFT + inner * (at - self.begin) / (self.end - self.begin), 1)

    def y(self, value: float) -> float:
        inner = HEIGHT - _TOP - _BOTTOM
        return round(HEIGHT - _BOTTOM - inner * min(1.0, value / self.most), 1)


def plots(report: ScoreReport) -> list[Plot]:
    """Returns the plots of a report; none of what it does not know."""
    spans, length = report.timeline.spans(), float(report.timeline.length)
    found = []
    if spans:
        period = (spans[0][0], spans[-1][0] + length)
        outcomes = [Counter[str](_outcomes(span)) for _, span in spans]
        found.append(_stacked("Answers", spans, outcomes, period, length, dict(_OUTCOMES)))
        found.append(_stacked("Reasons of the others", spans, _reasons(spans), period, length, {}))
        found.append(_seconds(report, spans, period, length))
        if any(span.fates for _, span in spans):
            fates = [_named_fates(span) for _, span in spans]
            found.append(_stacked("Verdicts", spans, fates, period, length, dict(_VERDICTS)))
            found.append(_fidelity(report, spans, period, length))
    found += (_calibration(report.scoring, scorer) for scorer in report.scoring.pairs)
    if len(report.earnings.course) > 1:
        found.append(_earnings(report))
    return found


_OUTCOMES = (
    ("completed", "good"),
    ("late", "late"),
    ("dropped", "warn"),
    ("failed", "bad"),
    ("rejected", "mute"),
)
_VERDICTS = (
    ("accepted", "good"),
    ("below threshold", "bad"),
    ("empty", "warn"),
    ("failed", "s4"),
    ("unknown", "mute"),
)
_FATES = {"refused": "below threshold", "skipped": "empty"}


def _named_fates(span: Span) -> Counter[str]:
    return Counter({_FATES.get(fate, fate): count for fate, count in span.fates.items()})


def _outcomes(span: Span) -> dict[str, int]:
    counts = Counter[str]()
    for (outcome, _), count in span.outcomes.items():
        counts[outcome] += count
    late = max(0, counts["completed"] - span.on_time)
    return {**counts, "completed": span.on_time, "late": late}


def _named(counts: Counter[str], names: Collection[str]) -> Counter[str]:
    """Puts together what has none of the names: a log may be another version's, or damaged."""
    known = Counter({name: n for name, n in counts.items() if name in names})
    return known + Counter({OTHERS: counts.total() - known.total()})


def _reasons(spans: Sequence[tuple[float, Span]]) -> list[Counter[str]]:
    """The reason codes of answers that were not completed; the rare ones together."""
    every = [
        Counter({c: n for (outcome, c), n in span.outcomes.items() if outcome != "completed"})
        for _, span in spans
    ]
    common = [code for code, _ in sum(every, Counter[str]()).most_common(_MOST_REASONS)]
    return [_named(counts, common) for counts in every]


def _stacked(
    title: str,
    spans: Sequence[tuple[float, Span]],
    counts: Sequence[Counter[str]],
    period: tuple[float, float],
    length: float,
    colours: dict[str, str],
) -> Plot:
    if colours:
        counts = [_named(count, colours) for count in counts]
        colours = {**colours, OTHERS: "s5"}
    total = sum(counts, Counter[str]())
    names = [name for name in colours if total[name]] or [n for n, _ in total.most_common()]
    colours = colours or {name: f"s{place % 7}" for place, name in enumerate(names)}
    frame = _frame(period, max(1, *(c.total() for c in counts)), length)
    width = max(1.0, frame.x(period[0] + length) - frame.x(period[0]) - 0.6)
    bars = []
    for (begin, _), count in zip(spans, counts, strict=True):
        below = 0
        for name in names:
            if n := count[name]:
                y, top = frame.y(below), frame.y(below + n)
                words = f"{_clock(begin)}: {n:,} {name}"
                bars.append(Bar(frame.x(begin), top, width, y - top, colours[name], words))
                below += n
    key = [(colours[name], f"{name} {total[name]:,}") for name in names]
    per = f"{title}, each bar {_length(length)}"
    return Plot(per, key, frame.ticks, _y_ticks(frame), bars=bars)


def _seconds(
    report: ScoreReport,
    spans: Sequence[tuple[float, Span]],
    period: tuple[float, float],
    length: float,
) -> Plot:
    p50 = [(begin, span.seconds.quantile(0.5)) for begin, span in spans]
    p95 = [(begin, span.seconds.quantile(0.95)) for begin, span in spans]
    budget = report.life.budget_s
    largest = max((value for _, value in p95 if value is not None), default=1.0)
    frame = _frame(period, max(largest, budget or 0.0) * 1.05, length)
    lines = [
        _line(frame, "s0", p50, "p50 {:.2f} s"),
        _line(frame, "s1", p95, "p95 {:.2f} s"),
    ]
    key = [("s0", "p50"), ("s1", "p95")]
    if budget is not None:
        y = frame.y(budget)
        lines.append(Line("limit", f"M{_LEFT} {y}H{WIDTH - _RIGHT}"))
        key.append(("limit", f"budget {budget:g} s"))
    return Plot("Seconds to an answer", key, frame.ticks, _y_ticks(frame), lines=lines)


def _fidelity(
    report: ScoreReport,
    spans: Sequence[tuple[float, Span]],
    period: tuple[float, float],
    length: float,
) -> Plot:
    frame = _frame(period, 1.0, length)
    scores = [(begin, span.fidelity) for begin, span in spans]
    lines = [_line(frame, "s0", scores, "mean fidelity {:.3f}")]
    key = [("s0", "mean of accepted results")]
    known = [v.threshold for v in report.validators.values() if v.threshold is not None]
    if known:
        lines.append(Line("limit", f"M{_LEFT} {frame.y(max(known))}H{WIDTH - _RIGHT}"))
        key.append(("limit", f"threshold {max(known):g}"))
    return Plot("Fidelity", key, frame.ticks, _y_ticks(frame), lines=lines)


def _calibration(scoring: Scoring, scorer: str) -> Plot:
    """What validators made of results, over the own score."""
    pairs, learned = scoring.pairs[scorer], scoring.calibration(scorer)
    threshold = pairs[-1].threshold
    implied = threshold + learned.margin
    bins = bins_of(pairs)
    low = min(0.5, min(each.low for each in bins), _within(implied) - 0.05)
    ticks = [place / 10 for place in range(math.ceil(low * 10), 11)]
    frame = _Frame(low, 1.0, 1.0, math.inf)
    bars = [
        Bar(
            frame.x(each.low),
            frame.y(each.accepted / each.judged),
            frame.x(each.high) - frame.x(each.low) - 1.0,
            frame.y(0.0) - frame.y(each.accepted / each.judged),
            "mute",
            f"{each.low:.2f} to {each.high:.2f}: {each.accepted} of {each.judged} accepted",
        )
        for each in bins
    ]
    curve = [low + (1.0 - low) * place / 80 for place in range(81)]
    path = "L".join(f"{frame.x(at)} {frame.y(learned.accepted(at, threshold))}" for at in curve)
    dots: dict[str, list[tuple[float, float, str]]] = {"good": [], "bad": []}
    for pair in pairs:
        words = f"own score {pair.predicted:.3f}, " + (
            "refused" if not pair.accepted else f"accepted with {pair.given or 0.0:.3f}"
        )
        place = (frame.x(_within(pair.predicted)), frame.y(_within(pair.given or 0.0)), words)
        dots["good" if pair.accepted else "bad"].append(place)
    x = frame.x(_within(implied))
    lines = [
        Line("s0", f"M{path}"),
        *(Line(colour, "", places) for colour, places in dots.items()),
        Line("limit", f"M{x} {_TOP}V{HEIGHT - _BOTTOM}"),
    ]
    key = [
        ("mute", "accepted share"),
        ("s0", "its fit"),
        ("good", "score of an accepted result"),
        ("bad", "refused"),
        ("limit", f"implied threshold {implied:.3f}"),
    ]
    x_ticks = [(frame.x(at), f"{at:.1f}") for at in ticks]
    title = f"Own score against validators, {len(pairs):,} results of scorer {scorer}"
    return Plot(title, key, x_ticks, _y_ticks(frame), bars=bars, lines=lines)


def _within(score: float) -> float:
    return min(1.0, max(0.0, score))


def _earnings(report: ScoreReport) -> Plot:
    course = report.earnings.course
    period = (course[0].at, max(course[-1].at, course[0].at + 1.0))
    most = max((r.emission or 0.0 for r in course), default=0.0)
    frame = _frame(period, most * 1.1 or 1.0, math.inf)
    values = [(reading.at, reading.emission) for reading in course]
    line = _line(frame, "s3", values, "{:.4f} alpha")
    key = [("s3", "alpha for the last epoch")]
    return Plot("Emission on the chain", key, frame.ticks, _y_ticks(frame), lines=[line])


def _line(
    frame: _Frame, colour: str, values: Sequence[tuple[float, float | None]], words: str
) -> Line:
    """A line through the middles of the spans."""
    path, dots, last = "", [], None
    middle = 0.0 if math.isinf(frame.length) else frame.length / 2
    for begin, value in values:
        if value is None:
            continue
        x, y = frame.x(begin + middle), frame.y(value)
        joined = last is not None and begin - last <= 2.5 * frame.length
        path += f"{'L' if joined else 'M'}{x} {y}"
        dots.append((x, y, f"{_clock(begin)}: {words.format(value)}"))
        last = begin
    return Line(colour, path, dots)


def _frame(period: tuple[float, float], most: float, length: float) -> _Frame:
    begin, end = period
    frame = _Frame(begin, end, float(most) or 1.0, length)
    step = next((s for s in _TICKS_S if (end - begin) / s <= 8), _TICKS_S[-1])
    first = math.ceil(begin / step) * step
    day = step >= 86_400
    ticks = []
    for at in range(first, int(end) + 1, step):
        moment = datetime.fromtimestamp(at, UTC)
        midnight = day or at % 86_400 == 0
        ticks.append((frame.x(at), f"{moment:%d %b}" if midnight else f"{moment:%H:%M}"))
    return _Frame(begin, end, frame.most, length, ticks[:12])


def _y_ticks(frame: _Frame) -> list[tuple[float, str]]:
    """Up to five round values from 0 on."""
    size = 10.0 ** math.floor(math.log10(frame.most))
    step = next(size * s for s in (0.1, 0.2, 0.5, 1.0, 2.0) if frame.most / (size * s) <= 5.0)
    return [
        (frame.y(place * step), f"{place * step:,.6g}")
        for place in range(int(frame.most / step + 1e-9) + 1)
    ]


def _clock(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%d %b %H:%M}"


def _length(seconds: float) -> str:
    for size, unit in ((86_400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= size:
            return f"{seconds / size:g} {unit}"
    return f"{seconds:g} s"
