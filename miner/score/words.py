"""Which words of prompts the networks knew and which they ignored, of presets that know few."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from miner.score.fields import Fields

MOST_WORDS = 1000
"""Ignored words that are told apart; a stranger may invent as many as it likes."""

MOST_SHOWN = 20
"""Ignored words in a summary."""

_MOST_OF_ONE = 17
"""Words of one prompt that a line has, with "..." for the rest."""

_REST = "..."


@dataclass
class Words:
    """The words of all prompts.

    Attributes:
        texts: Answers whose words the log tells.
        with_ignored: Those of which a word was ignored.
        ignored: Answers by ignored word. Beyond twice `MOST_WORDS`, the rarest are forgotten.
    """

    texts: int = 0
    with_ignored: int = 0
    ignored: Counter[str] = field(default_factory=Counter)

    def answered(self, fields: Fields) -> None:
        """Notes an `answered` event."""
        understood = fields.names("understood", _MOST_OF_ONE)
        ignored = fields.names("ignored", _MOST_OF_ONE)
        self.texts += bool(understood or ignored)
        self.with_ignored += bool(ignored)
        self.ignored.update(set(ignored) - {_REST})
        if len(self.ignored) > 2 * MOST_WORDS:
            self.ignored = Counter(dict(self.ignored.most_common(MOST_WORDS)))

    @property
    def most_ignored(self) -> list[tuple[str, int]]:
        """The words that were ignored most often, with the number of answers."""
        return sorted(self.ignored.items(), key=lambda item: (-item[1], item[0]))[:MOST_SHOWN]

    def as_dict(self) -> dict[str, Any]:
        """The numbers as JSON-ready values."""
        return {
            "texts": self.texts,
            "with_ignored": self.with_ignored,
            "most_ignored": dict(self.most_ignored),
        }


def words_in_short(event: Mapping[str, Any]) -> str:
    """Returns "red, car; ignored: dragon" of an `answered` event; empty if it has no words."""
    fields = Fields(event)
    understood = fields.names("understood", _MOST_OF_ONE)
    ignored = fields.names("ignored", _MOST_OF_ONE)
    parts = [", ".join(understood), f"ignored: {', '.join(ignored)}" if ignored else ""]
    return "; ".join(part for part in parts if part)
