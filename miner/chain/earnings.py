"""Tells the score log what the chain says of this miner, and when the chain cannot be read.

Bittensor 10.5 gives a neuron's emission as the alpha that it got for the subnet's last epoch, and
its incentive and consensus as shares of 65,535. It names ranks and trust and never sets them, so
the place is counted here.
"""

import math
import time
from collections.abc import Callable

from miner.chain.metagraph import Neuron, Snapshot
from miner.score.log import ScoreLog

PAUSE_S = 300.0
"""Seconds between two lines about earnings: the stake may change with every block."""

OLD_S = 600.0
"""Age of the last reading from which the log says that it is old, and how often it repeats that."""


class EarningsLog:
    """Listens to the readings of a chain; a value that has changed is a line in the score log.

    Args:
        score_log: Receives `earnings`, `chain_old` and `chain_back` lines.
        hotkey: The miner's.
        clock: Monotonic clock, in seconds: the one of the chain's readings.
    """

    def __init__(
        self, score_log: ScoreLog, hotkey: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._score_log = score_log
        self._hotkey = hotkey
        self._clock = clock
        self._written: object = None
        self._written_at = -math.inf
        self._old_at: float | None = None

    def __call__(self, snapshot: Snapshot, problem: str) -> None:
        """Takes the last reading in after an attempt to read; see `Chain.listen`."""
        now = self._clock()
        if problem:
            self._note_age(now - snapshot.taken_at, problem, now)
            return
        if self._old_at is not None:
            self._old_at = None
            self._score_log.write("chain_back")
        neuron = snapshot.neurons.get(self._hotkey)
        if neuron is not None:
            self._note_earnings(snapshot, neuron, now)

    def _note_age(self, age_s: float, problem: str, now: float) -> None:
        repeated = self._old_at is not None and now - self._old_at < OLD_S
        if age_s >= OLD_S and not repeated:
            self._old_at = now
            self._score_log.write("chain_old", age_s=age_s, reason=problem)

    def _note_earnings(self, snapshot: Snapshot, neuron: Neuron, now: float) -> None:
        incentives = [other.incentive for other in snapshot.neurons.values()]
        place = 1 + sum(incentive > neuron.incentive for incentive in incentives)
        earners = sum(incentive > 0.0 for incentive in incentives)
        reading = (neuron, place, earners, snapshot.tempo)
        if reading == self._written or now - self._written_at < PAUSE_S:
            return
        self._written, self._written_at = reading, now
        self._score_log.write(
            "earnings",
            uid=neuron.uid,
            incentive=neuron.incentive,
            consensus=neuron.consensus,
            emission=neuron.emission,
            stake=neuron.stake,
            place=place,
            earners=earners,
            tempo=snapshot.tempo,
        )
