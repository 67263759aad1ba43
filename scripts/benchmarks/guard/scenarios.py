"""What the simulated machine is like and what is asked of it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from math import exp, log, sqrt
from random import Random
from typing import Literal

from PIL import Image

from generation.lift import stages_of
from generation.plan import Part, Rung, Step
from generation.presets import PRESETS
from generation.settings import ScoringSettings
from generation.stage import Stage, lane_workers, route
from miner.request import Caller, Request
from protocol.tasks import ImageTask, TextTask

WARM_UP = 50
"""So many requests are simulated at first and not counted."""

BYTES_PER_S = 8e6
"""How fast answers travel to their callers."""

TEXT_SHARE = 0.8
_GROUPS = {"prompt": "text", "denoise": "text", "decode": "text"}


@dataclass(frozen=True)
class Card:
    """A machine: median seconds by cost key.

    Attributes:
        name: As tables call it.
        medians: Seconds by cost key.
        ladder: Quality levels, best first.
        stages: All stages in order.
    """

    name: str
    medians: Mapping[str, float]
    ladder: tuple[Rung, ...]
    stages: tuple[Stage, ...]

    @property
    def lanes(self) -> Mapping[str, int]:
        """How many steps each lane runs at once."""
        return lane_workers(self.stages)

    def steps(
        self,
        request: Request,
        rung: Rung,
        part: Part = "whole",
        pictures: int = 1,
        engine: str | None = None,
    ) -> tuple[Step, ...]:
        """The steps of a request at a rung."""
        return route(self.stages, request.task, rung, part=part, pictures=pictures)

    def capacity(self, share_of_text: float) -> float:
        """Requests a second that the busiest lane can do at the best rung, at median speed."""
        text, image = (
            sum(
                self.medians[step.cost_key]
                for step in route(self.stages, task, self.ladder[0])
                if step.lane == "gpu"
            )
            for task in (TextTask(id="t", prompt="p"), ImageTask(id="i", image=PICTURE))
        )
        return 1.0 / (share_of_text * text + (1.0 - share_of_text) * image)


def _png() -> bytes:
    file = BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    return file.getvalue()


PICTURE = _png()
"""Of every image task."""


CARDS = ("gpu80", "slow", "slow, one rung")
"""Cards that can be named: "gpu80" as measured on an H100, "slow" with a picture of 6 s."""


def card(name: str, *, scored: bool = False) -> Card:
    """Returns a machine by name; "one rung" leaves only the best level of the ladder.

    Args:
        name: One of `CARDS`.
        scored: Whether objects are scored, so that there can be candidates.

    Raises:
        KeyError: There is none of that name.
    """
    scoring = ScoringSettings(scorer="validator" if scored else "none")
    settings = PRESETS["gpu80"].model_copy(update={"scoring": scoring})
    kind, _, only = name.partition(", ")
    ladder = settings.ladder[:1] if only else settings.ladder
    return Card(name, _MEDIANS[kind], ladder, stages_of(settings, "triposr"))


PICTURE_SECONDS: Mapping[str, float] = {
    "prompt:new": 0.012,
    "denoise:512": 0.034,
    "denoise:384": 0.021,
    "decode:512": 0.010,
    "decode:384": 0.006,
    "cutout:drawn": 0.013,
    "cutout:drawn:skip_plain": 0.006,
    "cutout:small": 0.013,
    "cutout:small:skip_plain": 0.006,
}
"""Seconds by cost key from a prompt to a cut-out on an H100."""

_MEDIANS: Mapping[str, Mapping[str, float]] = {
    "gpu80": {
        **PICTURE_SECONDS,
        "lift:triposr": 0.011,
        "splats:triposr:120000": 0.020,
        "splats:triposr:60000": 0.015,
        "encode:120000": 0.015,
        "encode:60000": 0.008,
        "rate": 0.004,
        "score:text:120000": 0.025,
        "score:text:60000": 0.022,
        "score:image:120000": 0.025,
        "score:image:60000": 0.022,
    },
    # Text 6 s, cut-out 0.7, lift 0.5, splats 0.5, encode 0.1.
    "slow": {
        "prompt:new": 0.3,
        "denoise:512": 1.35,
        "denoise:384": 0.8,
        "decode:512": 0.3,
        "decode:384": 0.18,
        "cutout:drawn": 0.7,
        "cutout:drawn:skip_plain": 0.3,
        "cutout:small": 0.7,
        "cutout:small:skip_plain": 0.3,
        "lift:triposr": 0.5,
        "splats:triposr:120000": 0.5,
        "splats:triposr:60000": 0.4,
        "encode:120000": 0.1,
        "encode:60000": 0.06,
        "rate": 0.1,
        "score:text:120000": 0.6,
        "score:text:60000": 0.5,
        "score:image:120000": 0.6,
        "score:image:60000": 0.5,
    },
}

Noise = Literal["even", "uneven", "heavy"]


@dataclass(frozen=True)
class Scenario:
    """One kind of traffic on one kind of machine.

    Attributes:
        name: As tables call it.
        noise: Spread of stage times around their medians: lognormal with a coefficient of variation
            of 0.1 ("even") or 0.5 ("uneven"), or 0.2 with one stage in 50 taking 3 to 20 times as
            long ("heavy").
        bursty: Requests come in bursts of 4 to 12 instead of one by one (Poisson).
        deadlines: Seconds that callers allow: drawn evenly from a range.
        callers: How often each caller asks, relatively.
        prior: The warm-up's seconds as a multiple of the truth.
        speed: Multiplies stage times at a moment in seconds.
        hang_at: When one step never ends.
    """

    name: str
    noise: Noise = "even"
    bursty: bool = False
    deadlines: tuple[float, float] = (30.0, 30.0)
    callers: Mapping[str, float] = field(default_factory=lambda: {f"v{i}": 1.0 for i in range(8)})
    prior: float = 1.0
    speed: Callable[[float], float] = lambda now: 1.0
    hang_at: float | None = None


def half_speed(now: float) -> float:
    """Half speed for 60 s out of every 120 s."""
    return 2.0 if 30.0 <= now % 120.0 < 90.0 else 1.0


def spikes(now: float) -> float:
    """Five times slower for 3 s out of every 60 s."""
    return 5.0 if now % 60.0 >= 57.0 else 1.0


SCENARIOS = (
    Scenario("even"),
    Scenario("even, mixed deadlines", deadlines=(3.0, 30.0)),
    Scenario("even, bursts", bursty=True),
    Scenario("uneven", noise="uneven"),
    Scenario("uneven, mixed deadlines", noise="uneven", deadlines=(3.0, 30.0)),
    Scenario("uneven, bursts", noise="uneven", bursty=True),
    Scenario("heavy tails", noise="heavy"),
    Scenario("spikes", noise="even", speed=spikes),
    Scenario("drift", noise="even", speed=half_speed),
    Scenario("prior 3 x too high", prior=3.0),
    Scenario("prior 3 x too low", prior=1 / 3),
    Scenario("hang", hang_at=60.0),
    Scenario("one caller floods", callers={"flood": 10.0, "modest": 1.0}),
)
LOADS = (0.3, 0.7, 1.0, 1.5, 3.0)


class Truth:
    """How long every step of every request really takes; the same for every policy.

    Args:
        scenario: The noise.
        card: The machine.
        seed: Of the noise.
    """

    def __init__(self, scenario: Scenario, card: Card, seed: int) -> None:
        self._scenario = scenario
        self._medians = card.medians
        self._seed = seed
        self._drawn: dict[tuple[str, str], float] = {}

    def seconds(self, request_id: str, step: Step, now: float) -> float:
        """Returns the seconds of a step that starts now."""
        return self.usual_seconds(request_id, step) * self._scenario.speed(now)

    def usual_seconds(self, request_id: str, step: Step) -> float:
        """Returns the seconds of a step while the machine has its usual speed.

        Steps of one stage, and all that make the picture, are slow together.
        """
        group = _GROUPS.get(step.stage, step.stage)
        factor = self._drawn.get((request_id, group))
        if factor is None:
            factor = _draw(self._scenario.noise, Random(f"{self._seed} {request_id} {group}"))
            self._drawn[request_id, group] = factor
        return self._medians[step.cost_key] * factor


def _draw(noise: Noise, random: Random) -> float:
    spread = {"even": 0.1, "uneven": 0.5, "heavy": 0.2}[noise]
    sigma = sqrt(log(1.0 + spread * spread))
    factor = exp(random.gauss(0.0, sigma))
    if noise == "heavy" and random.random() < 0.02:
        factor *= min(20.0, 3.0 * random.paretovariate(1.5))
    return factor


def arrivals(
    scenario: Scenario, card: Card, load: float, count: int, seed: int
) -> Iterator[Request]:
    """Yields `count` requests in the order of their arrival, at `load` times the capacity."""
    random = Random(f"{seed} arrivals")
    rate = load * card.capacity(TEXT_SHARE)
    callers, weights = list(scenario.callers), list(scenario.callers.values())
    now, burst = 0.0, 0
    for index in range(count):
        if burst == 0:
            burst = random.randint(4, 12) if scenario.bursty else 1
            now += random.expovariate(rate / (8.0 if scenario.bursty else 1.0))
        burst -= 1
        text = random.random() < TEXT_SHARE
        task = (
            TextTask(id=str(index), prompt="p") if text else ImageTask(id=str(index), image=PICTURE)
        )
        yield Request(
            task,
            Caller(random.choices(callers, weights)[0]),
            "axon",
            received_at=now,
            allowed_s=random.uniform(*scenario.deadlines),
            id=str(index),
        )
