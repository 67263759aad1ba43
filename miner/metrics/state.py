"""Gauges of what the miner is now, read when they are asked for."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from miner.chain.metagraph import Chain
from miner.life import State
from miner.metrics import PREFIX
from miner.metrics.gpu import GpuMemory
from miner.problems import Problems
from miner.snapshot import ServiceSnapshot


@dataclass(frozen=True)
class Place:
    """The miner's place on a subnet.

    Attributes:
        chain: The subnet.
        hotkey: The miner's.
    """

    chain: Chain
    hotkey: str


class StateCollector(Collector):
    """Series that say what the miner is now.

    Args:
        snapshot: Reads the service; called in its event loop, as `collect` is.
        problems: What keeps files from being written.
        last_completed: When a request was last completed, in seconds since the epoch, if ever.
        gpu_memory: As it was read last.
        transports: Their names.
        place: On a subnet, if there is one.
        validator_waits: Returns the seconds until each validator may be asked for a task, by uid.
        clock: Monotonic clock, in seconds; that of the chain's readings.
    """

    def __init__(
        self,
        snapshot: Callable[[], ServiceSnapshot],
        *,
        problems: Problems,
        last_completed: Callable[[], float | None],
        gpu_memory: GpuMemory,
        transports: Iterable[str] = (),
        place: Place | None = None,
        validator_waits: Callable[[], Mapping[int, float]] = dict,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._snapshot = snapshot
        self._problems = problems
        self._last_completed = last_completed
        self._gpu_memory = gpu_memory
        self._transports = tuple(transports)
        self._place = place
        self._validator_waits = validator_waits
        self._clock = clock

    def collect(self) -> Iterator[Metric]:
        """Yields the series as they are now."""
        yield from self._of_service(self._snapshot())
        yield _gauge(
            "problems", "Problems that last, such as a full disk", len(self._problems.sentences)
        )
        if (completed := self._last_completed()) is not None:
            yield _gauge(
                "last_completed_timestamp_seconds",
                "When a request was last completed, in seconds since the epoch",
                completed,
            )
        if self._place is not None:
            yield from self._of_chain(self._place)
        waits = _gauge(
            "validator_wait_seconds",
            "Seconds until a validator may be asked for a task",
            label="uid",
        )
        for uid, seconds in self._validator_waits().items():
            waits.add_metric((str(uid),), seconds)
        yield waits
        memory = GaugeMetricFamily(
            f"{PREFIX}_gpu_memory_bytes", "Memory of a GPU in bytes", labels=("device", "kind")
        )
        for labels, size in self._gpu_memory.sizes.items():
            memory.add_metric(labels, size)
        yield memory

    def _of_service(self, now: ServiceSnapshot) -> Iterator[Metric]:
        state = _gauge("state", "1 for the state of the service, 0 for the others", label="state")
        for each in State:
            state.add_metric((each.value,), each.value == now.state)
        yield state
        active = _gauge(
            "active_requests", "Admitted requests that have no answer yet", label="transport"
        )
        for name in self._transports:
            active.add_metric((name,), now.active.get(name, 0))
        yield active
        backlog = _gauge(
            "backlog_seconds", "Seconds until an engine has done what it may have to do",
            label="engine",
        )  # fmt: skip
        up = _gauge("engine_up", "Whether an engine takes requests: 1, or 0", label="engine")
        held = _gauge("engine_requests", "Admitted requests that an engine has", label="engine")
        for engine in now.engines:
            backlog.add_metric((engine.name,), engine.backlog_s)
            up.add_metric((engine.name,), engine.up and not engine.suspect)
            held.add_metric((engine.name,), engine.active)
        yield from (backlog, up, held)
        yield _gauge("waiting_requests", "Admitted requests that no engine has yet", now.waiting)

    def _of_chain(self, place: Place) -> Iterator[Metric]:
        reading = place.chain.snapshot
        age = self._clock() - reading.taken_at
        yield _gauge("chain_age_seconds", "Age of the last reading of the metagraph", age)
        yield _gauge(
            "registered", "Whether that reading lists the miner's hotkey: 1, or 0",
            place.hotkey in reading.neurons,
        )  # fmt: skip


def _gauge(
    name: str, text: str, value: float | None = None, *, label: str | None = None
) -> GaugeMetricFamily:
    labels = None if label is None else (label,)
    return GaugeMetricFamily(f"{PREFIX}_{name}", text, value=value, labels=labels)
