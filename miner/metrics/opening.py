"""Puts the metrics of a miner together."""

from collections.abc import Callable, Mapping, Sequence

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector

from miner.metrics.events import EventMetrics
from miner.metrics.gpu import GpuMemory
from miner.metrics.server import MetricsServer
from miner.metrics.state import Place, StateCollector
from miner.metrics.status import Status
from miner.score.log import ScoreLog
from miner.service import MinerService


def open_metrics(
    service: MinerService,
    score_log: ScoreLog,
    *,
    ip: str,
    port: int,
    preset: str,
    budget_s: float,
    transports: Sequence[str],
    place: Place | None = None,
    validator_waits: Callable[[], Mapping[int, float]] = dict,
    registry: CollectorRegistry | None = None,
) -> MetricsServer:
    """Listens to the score log from now on and binds the port; `serve` then opens it.

    Args:
        service: Serves the requests.
        score_log: Tells of every event.
        ip: Address to listen on.
        port: Port to listen on.
        preset: Name of the preset.
        budget_s: Seconds from the receipt of a request to the arrival of its answer.
        transports: Names of the transports in use.
        place: On a subnet, if there is one.
        validator_waits: Returns the seconds until each validator may be asked for a task, by uid.
        registry: Receives the series; a new one by default.

    Raises:
        SetupError: The port cannot be used.
    """
    registry = registry or CollectorRegistry()
    gpu_memory = GpuMemory()
    events = EventMetrics(registry)
    events.expect(transports)
    server = MetricsServer(
        registry,
        score_log,
        state=lambda: service.state,
        status=Status(
            service.snapshot, events, score_log.problems, preset=preset, budget_s=budget_s
        ),
        gpu_memory=gpu_memory,
        ip=ip,
        port=port,
    )
    registry.register(
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
        collector(registry=registry)
    score_log.listen(events.on_event)
    return server
