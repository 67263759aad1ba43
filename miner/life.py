"""The states of a miner, and their order."""

from enum import StrEnum

from loguru import logger

from miner.request import ReasonCode
from miner.score.log import ScoreLog


class State(StrEnum):
    """States of the service. It moves down this list, and from suspect back to ready."""

    STARTING = "starting"
    WARMING_UP = "warming_up"
    READY = "ready"
    SUSPECT = "suspect"
    DRAINING = "draining"
    DEAD = "dead"


class Life:
    """The state of one service.

    Args:
        score_log: Receives a `state_changed` line for each move.

    Attributes:
        state: The state.
    """

    def __init__(self, score_log: ScoreLog) -> None:
        self._score_log = score_log
        self._reason = ""
        self.state = State.STARTING

    def move(self, state: State, reason: str | None = None) -> None:
        """Moves to a later state, or from suspect back to ready; does nothing otherwise."""
        order = list(State)
        back = self.state is State.SUSPECT and state is State.READY
        if order.index(state) <= order.index(self.state) and not back:
            return
        previous, self.state = self.state, state
        self._reason = reason or ""
        logger.info("state: {}", state)
        self._score_log.write("state_changed", state=state, previous=previous, reason=reason)

    def refusal(self) -> tuple[ReasonCode, str] | None:
        """Returns why no request is taken in this state, as code and sentence; None if it is."""
        match self.state:
            case State.READY:
                return None
            case State.DRAINING:
                return "draining", "the miner is shutting down"
            case State.SUSPECT:
                return "engine_suspect", f"no engine can be used at present: {self._reason}"
            case State.DEAD:
                return "engine_dead", self._reason
            case _:
                return "not_ready", f"the miner is not ready ({self.state})"
