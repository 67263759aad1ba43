"""Which of its candidates a prompt is answered with, and what that choice is worth."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from scripts.benchmarks.quality.making import Candidate
from scripts.train_embedded.train_scorer import THRESHOLD

Choice = Callable[[Sequence[Candidate]], tuple[Candidate, float]]
"""From the candidates of a prompt, in the order of their seeds, to one and the seconds it took."""


def first(candidates: Sequence[Candidate]) -> tuple[Candidate, float]:
    """The first candidate, scored."""
    return candidates[0], _whole(candidates[0])


def best_of(count: int) -> Choice:
    """The best score of the first `count`."""

    def choose(candidates: Sequence[Candidate]) -> tuple[Candidate, float]:
        tried = candidates[:count]
        return max(tried, key=_score), sum(map(_whole, tried))

    return choose


def preselected(candidates: Sequence[Candidate]) -> tuple[Candidate, float]:
    """The better score of the first and of the best-rated of the others, which alone are lifted."""
    head, *others = candidates
    picked = max(others, key=lambda candidate: candidate.rating)
    pictures = sum(other.picture_s + other.rate_s for other in others)
    seconds = _whole(head) + pictures + picked.object_s + picked.score_s
    return max(head, picked, key=_score), seconds


def best_possible(candidates: Sequence[Candidate]) -> tuple[Candidate, float]:
    """What a scorer that knows the truth would choose of all: a bound, not a way of working."""
    best = max(candidates, key=lambda candidate: (candidate.right, candidate.iou))
    return best, sum(map(_whole, candidates))


def ways(count: int) -> dict[str, Choice]:
    """The ways of choosing among `count` candidates, by name."""
    return {
        "first": first,
        f"best of {count}": best_of(count),
        f"{count} pictures, 2 lifted": preselected,
        f"best possible of {count}": best_possible,
    }


def worth(prompts: Sequence[Sequence[Candidate]], choose: Choice) -> dict[str, Any]:
    """What a way of choosing gives over all prompts, and how the gate does.

    Returns:
        `score`, `colour_right`, `iou` and `right` are means; `accepted` is the share with a score
        of `THRESHOLD` or more, `precision` the share of these that are right, `recall` the share of
        the right ones that are accepted, None where there are none; `seconds` is the median.
    """
    chosen, seconds = zip(*(choose(candidates) for candidates in prompts), strict=True)
    accepted = [candidate for candidate in chosen if candidate.score >= THRESHOLD]
    right = [candidate for candidate in chosen if candidate.right]
    both = sum(candidate.right for candidate in accepted)
    return {
        "score": statistics.fmean(map(_score, chosen)),
        "colour_right": statistics.fmean(candidate.colour_right for candidate in chosen),
        "iou": statistics.fmean(candidate.iou for candidate in chosen),
        "right": len(right) / len(chosen),
        "accepted": len(accepted) / len(chosen),
        "precision": both / len(accepted) if accepted else None,
        "recall": both / len(right) if right else None,
        "seconds": statistics.median(seconds),
    }


def _score(candidate: Candidate) -> float:
    return candidate.score


def _whole(candidate: Candidate) -> float:
    return candidate.picture_s + candidate.object_s + candidate.score_s
