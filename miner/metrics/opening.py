"""Puts the metrics of a miner together."""

from collections.abc import Callable, Mapping, Sequence

from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)

from miner.metrics.events import EventMetrics
from miner.metrics.gpu import GpuMemory
from miner.metrics.server import MetricsServer
from miner.metrics.state import Place, StateCollector
from miner.metrics.status import StatusDocument
from miner.score.log import ScoreLog
from miner.service import MinerService


def count_events(score_log: ScoreLog) -> EventMetrics:
    """Counts the events of the score log from now on, in a registry of its own."""
    # Prometheus would store each as a series of its own.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    events = EventMetrics(CollectorRegistry())
    score_log.listen(events.on_event)
    return events


def open_metrics(
    events: EventMetrics,
    service: MinerService,
    score_log: ScoreLog,
    *,
    ip: str,
    port: int,
    preset: str,
    budget_s: float,
    transports: Sequence[str],
    scores: bool = False,
    place: Place | None = None,
    validator_waits: Callable[[], Mapping[int, float]] = dict,
) -> MetricsServer:
    """Binds the port, which `serve` then opens.

    Args:
        events: From `count_events`; its registry receives all other series.
        service: Serves the requests.
        score_log: Receives `refused` lines, and knows the problems.
        ip: Address to listen on.
        port: Port to listen on.
        preset: Name of the preset.
        budget_s: Seconds from the receipt of a request to the arrival of its answer.
        transports: Names of the transports in use.
        scores: Whether the miner scores what it makes.
        place: On a subnet, if there is one.
        validator_waits: Returns the seconds until each validator may be asked for a task, by uid.

    Raises:
        SetupError: The port cannot be used.
    """
    gpu_memory = GpuMemory()
    server = MetricsServer(
        events.registry,
        score_log,
        state=lambda: service.state,
        status=StatusDocument(
            service.snapshot, events, score_log.problems, preset=preset, budget_s=budget_s
        ),
        gpu_memory=gpu_memory,
        ip=ip,
        port=port,
    )
    events.expect(transports, scores=scores)
    events.registry.register(
        StateCollector(
            service.snapshot,
            problems=score_log.problems,
            last_completed=lambda: events.last_completed,
            gpu_memory=gpu_memory,
            transports=transports,
            place=place,
            validator_waits=validator_waits,
        )
    )
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=events.registry)
    return server
