"""What a scorer says of a picture or an object, before a validator does. No torch here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from protocol.tasks import Task

if TYPE_CHECKING:
    from generation.stage import Asset, Cutout


@dataclass(frozen=True)
class Score:
    """The score that a validator is expected to give.

    Attributes:
        value: On the validator's scale: comparable with its threshold, 0.6 as a rule.
        parts: What it is made of, by name; which names there are depends on the scorer.
        scorer: Which scorer it was, with what stands in for a part that it cannot compute.
        problem: Why it is 0 regardless of the parts; empty otherwise.
    """

    value: float
    parts: Mapping[str, float] = field(default_factory=dict)
    scorer: str = ""
    problem: str = ""

    @property
    def in_words(self) -> str:
        """The score with its parts and its scorer's name, or why it is 0."""
        parts = ", ".join(f"{name} {value:.3f}" for name, value in self.parts.items())
        line = f"score {self.value:.3f}{parts and f' ({parts})'} by {self.scorer}"
        return f"{line}: {self.problem}" if self.problem else line


class Scorer(Protocol):
    """Loaded networks that judge results; they are called in the thread of a lane, and block."""

    def rate(self, cutout: "Cutout", task: Task) -> float:
        """Returns how good a drawn picture is, before it is lifted.

        Only the order of the ratings of one task's pictures has a meaning.
        """

    def score(self, asset: "Asset", task: Task) -> Score:
        """Returns the score of a cloud as it travels: of its SPZ file, read again."""

    def drop_caches(self) -> None:
        """Gives back all memory that is only kept to save time. Callable from any thread."""
