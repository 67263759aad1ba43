"""What keeps the miner from keeping its files, while it goes on serving."""

from loguru import logger


class Problems:
    """The problems that last, by what they are about. Each is logged when it begins and ends.

    A problem does not stop the miner: a full disk costs nobody an answer. `GET /health` lists them,
    so that the operator sees them in time. May be used from several threads.
    """

    def __init__(self) -> None:
        self._sentences: dict[str, str] = {}

    @property
    def sentences(self) -> list[str]:
        """One sentence for each problem that lasts, the oldest first."""
        return list(self._sentences.values())

    def report(self, about: str, sentence: str) -> None:
        """Notes a problem, or what it looks like now; logs it if it is new."""
        new = about not in self._sentences
        self._sentences[about] = sentence
        if new:
            logger.error("{}", sentence)

    def clear(self, about: str, sentence: str) -> None:
        """Notes that a problem is over, if there was one, and logs the sentence."""
        if self._sentences.pop(about, None) is not None:
            logger.warning("{}", sentence)  # As loud as its beginning.
