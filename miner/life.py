"""The states of a miner, and their order."""

from enum import StrEnum

from loguru import logger

from miner.score.log import ScoreLog


class State(StrEnum):
    """Where the service is in its life: it moves down this list, and from suspect back to ready."""

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
        self.state = State.STARTING

    def move(self, state: State, reason: str | None = None) -> None:
        """Moves to a later state, or from suspect back to ready; does nothing otherwise."""
        order = list(State)
        back = self.state is State.SUSPECT and state is State.READY
        if order.index(state) <= order.index(self.state) and not back:
            return
        previous, self.state = self.state, state
        logger.info("state: {}", state)
        self._score_log.write("state_changed", state=state, previous=previous, reason=reason)
