"""Which further objects of a request are worth making, and which of them is answered. Pure.

The first object is made as if there were no others. After it, candidates with other seeds are drawn
and rated as pictures, which is the cheap part; the best of each few is lifted and scored.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

SEED_STEP = 0x9E3779B1
"""Odd, so that the seeds of all candidates differ; large, so that requests with neighbouring seeds
share no candidate."""

CandidateState = Literal["waiting", "drawing", "drawn", "lifting", "made", "left_out", "failed"]


def seed_of(first: int | None, number: int) -> int | None:
    """Returns the seed of a candidate; the first one, number 0, has the one that was given."""
    return first if number == 0 else ((first or 0) + number * SEED_STEP) % 2**32


@dataclass(frozen=True)
class CandidateLimits:
    """How much is spent on candidates.

    Attributes:
        max: Pictures drawn for one request at most, the first included; 1: no candidates.
        target: A score at which no further one is made.
        spend: Share of a request's budget, counted from its receipt, within which they are made.
        pictures: Further pictures from which the best one is lifted; 1 lifts all of them.
        together: Pictures that the engine draws together; the last ones are drawn one by one.
    """

    max: int = 1
    target: float = 1.0
    spend: float = 0.8
    pictures: int = 1
    together: int = 1


@dataclass(eq=False)
class Candidate:
    """One attempt at the object of a request.

    Attributes:
        number: From 0, the first object.
        seed: Of its picture; None leaves it to the preset.
        state: How far it is.
        chosen: Whether its picture was the best of a few, which it stays when it is taken back.
        rating: How good its picture is among those of the request.
        score: What a validator is expected to give its object.
    """

    number: int
    seed: int | None
    state: CandidateState
    chosen: bool = False
    rating: float | None = None
    score: float | None = None


@dataclass(eq=False)
class Candidates:
    """All candidates of one request.

    Attributes:
        limits: How many there may be.
        seed: The one that the request brought, if any.
        all: In the order in which they were begun.
        best: The one with the highest score; of equal ones, the one that was made first.
    """

    limits: CandidateLimits
    seed: int | None
    all: list[Candidate] = field(default_factory=list)
    best: Candidate = field(init=False)

    def begin(self, score: float) -> None:
        """Takes in the score of the first object."""
        self.best = Candidate(0, self.seed, "made", score=score)
        self.all.append(self.best)

    @property
    def good_enough(self) -> bool:
        """Whether the best one reaches the target."""
        return (self.best.score or 0.0) >= self.limits.target

    @property
    def first_score(self) -> float:
        """The score of the first object."""
        return self.all[0].score or 0.0

    @property
    def made(self) -> int:
        """How many objects have a score."""
        return len(self._in("made"))

    @property
    def drawn(self) -> int:
        """How many pictures were drawn, that of the first object included."""
        without = self._in("waiting", "drawing", "failed")
        return len(self.all) - sum(each.rating is None for each in without)

    @property
    def running(self) -> bool:
        """Whether one of them is being made."""
        return bool(self._in("drawing", "lifting"))

    def next(self, together: int = 1) -> tuple[Candidate, ...]:
        """Returns what should be started next, were there time: one to be lifted, or some to draw.

        Empty if everything is done, or waits for what runs. Starts nothing: see `start`.

        Args:
            together: How many pictures are drawn together, if as many are left.
        """
        if self.good_enough:
            return ()
        drawn, waiting = self._in("drawn"), self._in("waiting")
        if chosen := [each for each in drawn if each.chosen]:
            return (_best_rated(chosen),)
        if len(drawn) >= self.limits.pictures:
            return (_best_rated(drawn),)
        new = (
            Candidate(number, seed_of(self.seed, number), "waiting")
            for number in range(len(self.all), self.limits.max)
        )
        if group := tuple(itertools.islice(itertools.chain(waiting, new), together)):
            return group if len(group) == together else group[:1]
        return self.last()

    def last(self) -> tuple[Candidate, ...]:
        """Returns what to lift if no further picture is drawn: the best of those that are drawn.

        Empty if there is none, or while one is being drawn.
        """
        drawn = self._in("drawn")
        if self.good_enough or not drawn or self._in("drawing"):
            return ()
        return (_best_rated([each for each in drawn if each.chosen] or drawn),)

    def start(self, group: Sequence[Candidate]) -> None:
        """Starts what `next` or `last` has returned.

        Of the pictures that it was the best of, no other is lifted. With one picture for each
        object it was not compared with any.
        """
        for candidate in group:
            self._start(candidate)

    def _start(self, candidate: Candidate) -> None:
        if candidate.state == "drawn":
            if self.limits.pictures > 1 and not candidate.chosen:
                candidate.chosen = True
                for other in self._in("drawn"):
                    if not other.chosen:
                        other.state = "left_out"
            candidate.state = "lifting"
            return
        if candidate not in self.all:
            self.all.append(candidate)
        candidate.state = "drawing"

    def end(self, group: Sequence[Candidate], worths: Sequence[float | None]) -> None:
        """Takes in the rating of each picture, or the score of an object; None if it failed.

        Pictures that all failed together are drawn again, one by one: their number may be what the
        device had no room for.
        """
        if len(group) > 1 and all(worth is None for worth in worths):
            self.limits = replace(self.limits, together=1)
            self.take_back(group)
            return
        for candidate, worth in zip(group, worths, strict=True):
            self._end(candidate, worth)

    def _end(self, candidate: Candidate, worth: float | None) -> None:
        if worth is None:
            candidate.state = "failed"
        elif candidate.state == "drawing":
            candidate.rating, candidate.state = worth, "drawn"
        else:
            candidate.score, candidate.state = worth, "made"
            if worth > (self.best.score or 0.0):
                self.best = candidate

    def take_back(self, group: Sequence[Candidate]) -> None:
        """Undoes `start`: the machine is needed for others."""
        for candidate in group:
            candidate.state = "drawn" if candidate.state == "lifting" else "waiting"

    def _in(self, *states: CandidateState) -> list[Candidate]:
        return [each for each in self.all if each.state in states]


def _best_rated(drawn: list[Candidate]) -> Candidate:
    return max(drawn, key=lambda each: (each.rating or 0.0, -each.number))
