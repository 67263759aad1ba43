"""What the miner earns on the chain, and how that went: from `earnings` events."""

from dataclasses import asdict, dataclass
from typing import Any

from miner.score.fields import Fields

BLOCK_S = 12.0
"""Seconds between two blocks of the chain (bittensor's `BLOCKTIME`)."""

DAY_S = 86_400.0

MOST_POINTS = 1000
"""Readings that are kept; beyond, every second one is forgotten."""


@dataclass(frozen=True)
class Reading:
    """What the chain said of the miner at one time; a value is None if the line lacks it.

    Attributes:
        at: Seconds since the epoch.
        uid: The miner's.
        incentive: Its share of what the subnet's miners got in the last epoch, 0..1.
        consensus: How far the validators agree on it, 0..1.
        emission: Alpha that it got for the last epoch.
        stake: Its stake, as the chain counts it.
        place: Its place by incentive, 1 for the highest.
        earners: Neurons with an incentive.
        tempo: Blocks of an epoch.
    """

    at: float
    uid: int | None = None
    incentive: float | None = None
    consensus: float | None = None
    emission: float | None = None
    stake: float | None = None
    place: int | None = None
    earners: int | None = None
    tempo: int | None = None

    @property
    def per_day(self) -> float | None:
        """Alpha of a day, if every epoch is as the last one; None where its length is unknown."""
        if self.emission is None or not self.tempo:
            return None
        return self.emission * DAY_S / (self.tempo * BLOCK_S)


class Earnings:
    """The course of the earnings.

    Attributes:
        course: Readings, the newest last; bounded.
    """

    def __init__(self) -> None:
        self.course: list[Reading] = []

    @property
    def last(self) -> Reading | None:
        """The newest reading."""
        return self.course[-1] if self.course else None

    def add(self, fields: Fields, at: float | None, *, before: bool) -> None:
        """Adds what an `earnings` event says.

        Args:
            fields: Of the event.
            at: When it was written.
            before: Whether that is before the period of the report: only the last of those counts.
        """
        if before:
            self.course.clear()
        whole = {
            name: None if (value := fields.number(name)) is None else int(value)
            for name in ("uid", "place", "earners", "tempo")
        }
        if at is not None:
            reading = Reading(
                at,
                incentive=fields.number("incentive"),
                consensus=fields.number("consensus"),
                emission=fields.number("emission"),
                stake=fields.number("stake"),
                **whole,
            )
            self.course.append(reading)
        if len(self.course) > MOST_POINTS:
            self.course = self.course[-1::-2][::-1]

    def as_dict(self) -> dict[str, Any] | None:
        """The last reading and the course as JSON-ready values; None without a reading."""
        if self.last is None:
            return None
        return {
            **asdict(self.last),
            "alpha_per_day": self.last.per_day,
            "course": [
                {"unix": r.at, "emission": r.emission, "incentive": r.incentive}
                for r in self.course
            ],
        }
