"""Label values: every label of a series has few, whatever the events hold."""

import re
import threading
from collections.abc import Iterable
from typing import get_args

from miner.request import Outcome, ReasonCode
from miner.transports.gateway.endings import Ending
from miner.transports.pull.validators import Fate

OTHER = "other"
"""The value of a label for all words that it does not know."""

WORDS = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,39}")
NAMES = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/+(), -]{0,99}")
"""Names of several words, as scorers have them."""


class Label:
    """The values that a label may take; may be used from several threads.

    Args:
        values: Taken from the start.
        most: Further words that are taken, the first that come: names that only the running miner
            knows, such as those of its engines.
        pattern: What such a word looks like: up to 40 of `A-Z a-z 0-9 _ . : -`, unless given.
    """

    def __init__(
        self, values: Iterable[str] = (), *, most: int = 0, pattern: re.Pattern[str] = WORDS
    ) -> None:
        self._values = set(values)
        self._room = most
        self._pattern = pattern
        self._lock = threading.Lock()

    def __call__(self, value: object) -> str:
        """Returns the value if the label takes it, else `OTHER`."""
        with self._lock:
            if not isinstance(value, str):
                return OTHER
            if value in self._values:
                return value
            if self._room <= 0 or not self._pattern.fullmatch(value):
                return OTHER
            self._room -= 1
            self._values.add(value)
            return value


class UidLabel(Label):
    """Uids of a subnet: whole numbers from 0 to 65535, at most 256 of them."""

    def __init__(self) -> None:
        super().__init__(most=256)

    def __call__(self, value: object) -> str:
        """Returns the uid in digits, else `OTHER`."""
        if type(value) is not int or not 0 <= value < 65536:
            return OTHER
        return super().__call__(str(value))


OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
REASON_CODES: tuple[ReasonCode, ...] = get_args(ReasonCode)
FATES: tuple[Fate, ...] = get_args(Fate)
VERDICTS = ("passed", "gated", "probe")
"""What the gate said: a probe is below its limit and submitted all the same."""
KINDS = ("text", "image")
ENDINGS: tuple[Ending, ...] = get_args(Ending)
TRANSPORTS = ("axon", "pull", "http", "gateway")
METRICS = "metrics"
"""What the score log and the series call the port of the metrics themselves."""
