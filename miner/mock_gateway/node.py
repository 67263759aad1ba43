"""A node of the mock gateway, and a cluster of them in one process."""

import random
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from miner.mock_gateway.checks import Verify, WorkerChecks
from miner.mock_gateway.client_routes import ApiKeys, ClientRoutes
from miner.mock_gateway.faults import FaultPlan
from miner.mock_gateway.limits import MinuteWindows
from miner.mock_gateway.replies import GatewayReply, as_json
from miner.mock_gateway.rules import GatewayRules
from miner.mock_gateway.store import StoredResult, StoredTask, TaskStore
from miner.mock_gateway.worker_routes import ResultForm, add_result, get_tasks

Ends = Callable[[StoredTask], None]
Arrives = Callable[[StoredTask, StoredResult], None]


class MockNode(Collector):
    """One node: its tasks are known here and nowhere else.

    Args:
        cluster: What it belongs to.
        node_id: Its number.
        domain: The host that the list of gateways names.
        port: The port that the list of gateways names.

    Attributes:
        store: Its tasks.
        clients: Answers clients.
        origins: Counted values of `x-client-origin`.
    """

    def __init__(self, cluster: "MockCluster", node_id: int, domain: str, port: int) -> None:
        self.cluster = cluster
        self.node_id, self.domain, self.port = node_id, domain, port
        rules, clock = cluster.rules, cluster.clock
        self.results = MinuteWindows(rules.results_per_minute, clock)
        self.submissions = MinuteWindows(rules.tasks_per_minute, clock)
        self.statuses = MinuteWindows(rules.statuses_per_minute, clock)
        self.origins: Counter[str] = Counter()
        self._asked_at = 0
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self.restart()

    def restart(self) -> None:
        """Forgets every task, as the real one does."""
        cluster = self.cluster
        self.store = TaskStore(
            cluster.rules,
            clock=cluster.clock,
            new_id=cluster.new_id,
            on_end=lambda task: cluster.on_end(task),
            on_result=lambda task, result: cluster.on_result(task, result),
        )
        self.clients = ClientRoutes(self.submit, self.store, cluster.new_id, cluster.chance)

    def submit(self, task: StoredTask) -> bool:
        """Queues a task; False if the queue is full."""
        added = self.store.add(task)
        if added:
            self.cluster.on_submit(task)
        return added

    def get_tasks(self, body: bytes, *, accept: str = "", unstored: bool = False) -> GatewayReply:
        """Answers `POST /get_tasks`; see `worker_routes.get_tasks`."""
        return get_tasks(
            body,
            checks=self.cluster.checks,
            store=self.store,
            gateways=self.cluster.gateways,
            called=self._called,
            accept=accept,
            unstored=unstored,
        )

    def add_result(self, parts: Iterable[tuple[str | None, bytes]]) -> GatewayReply:
        """Answers `POST /add_result`; see `worker_routes.add_result`."""
        return add_result(parts, checks=self.cluster.checks, store=self.store)

    def result_form(self) -> ResultForm:
        """Returns a form for a body that arrives in pieces."""
        return ResultForm(self.cluster.checks, self.store)

    def entry(self) -> dict[str, Any]:
        """Returns this node's entry of the list of gateways."""
        return {
            "node_id": self.node_id,
            "domain": self.domain,
            "ip": self.domain,
            "name": f"node-{self.node_id}",
            "http_port": self.port,
            "available_tasks": self.store.queued,
            "last_task_acquisition": self._asked_at,
            "last_update": int(self.cluster.clock()),
        }

    def metrics(self) -> GatewayReply:
        """Answers `GET /metrics`."""
        body = generate_latest(self._registry)
        return GatewayReply(200, body, "text/plain; version=0.0.4; charset=utf-8")

    def describe(self) -> Iterable[Metric]:
        """Nothing: the registry asks this when the collector is registered."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yields the counters of workers and the queue."""
        self.store.sweep()
        counts, hotkeys = self.store.counts, {hotkey for hotkey, _ in self.store.counts}
        for name, kind in (
            ("tasks_received", "task_assigned"),
            ("tasks_completed", "result_success"),
            ("tasks_failed", "result_failure"),
            ("timeout_failures", "timeout"),
            ("results_dropped", "dropped"),
        ):
            family = CounterMetricFamily(name, f"{kind}, by worker", labels=["worker"])
            for hotkey in sorted(hotkeys):
                family.add_metric([hotkey], counts[hotkey, kind])
            yield family
        for name, of in (("avg", lambda seconds: sum(seconds) / len(seconds)), ("max", max)):
            gauge = GaugeMetricFamily(
                f"completion_time_{name}_seconds", "From the submission", labels=["worker"]
            )
            for hotkey, seconds in sorted(self.store.answer_s.items()):
                gauge.add_metric([hotkey], of(seconds))
            yield gauge
        origins = CounterMetricFamily("request_origins", "Tasks by origin", labels=["origin"])
        for origin, count in sorted(self.origins.items()):
            origins.add_metric([origin], count)
        yield origins
        yield GaugeMetricFamily("task_queue_length", "Tasks in the queue", value=self.store.queued)

    def _called(self) -> None:
        self._asked_at = int(self.cluster.clock())
        self.cluster.on_call()


class MockCluster:
    """Nodes that share their rules, their clock and nothing else.

    Args:
        rules: The numbers.
        verify: Whether a signature over a payload is a hotkey's.
        is_hotkey: Whether a text is an address of format 42.
        clock: The gateway's clock, in seconds since the epoch.
        faults: Injected into the calls of workers.
        random_numbers: Of ids, seeds and tokens.
        on_call: Called when a worker asks for tasks, before it gets any.
        on_submit: Called with every task that is queued.
        on_end: Called with every task that is done or has timed out.
        on_result: Called with every result that counts.

    Attributes:
        nodes: In the order in which they were added.
        checks: Of workers' requests.
        keys: Knows the keys of clients; the nodes share them.
    """

    def __init__(
        self,
        rules: GatewayRules,
        *,
        verify: Verify,
        is_hotkey: Callable[[str], bool],
        clock: Callable[[], float],
        faults: FaultPlan | None = None,
        random_numbers: random.Random | None = None,
        on_call: Callable[[], None] = lambda: None,
        on_submit: Callable[[StoredTask], None] = lambda task: None,
        on_end: Ends = lambda task: None,
        on_result: Arrives = lambda task, result: None,
    ) -> None:
        self.rules, self.clock = rules, clock
        self.faults = faults or FaultPlan()
        self.on_call, self.on_submit = on_call, on_submit
        self.on_end, self.on_result = on_end, on_result
        self.nodes: list[MockNode] = []
        self.checks = WorkerChecks(rules, clock, verify, is_hotkey)
        self.keys = ApiKeys(rules, clock)
        self._random = random_numbers or random.Random()
        self.chance = self._random.random

    def new_id(self) -> str:
        """Returns a UUID of version 4."""
        return str(uuid.UUID(int=self._random.getrandbits(128), version=4))

    def add_node(self, domain: str, port: int) -> MockNode:
        """Adds a node that is reached at this host and port."""
        self.nodes.append(MockNode(self, len(self.nodes) + 1, domain, port))
        return self.nodes[-1]

    def gateways(self) -> list[dict[str, Any]]:
        """Returns the list of gateways."""
        return [node.entry() for node in self.nodes]

    def load(self) -> GatewayReply:
        """Answers `GET /get_load`."""
        return as_json(200, {"gateways": self.gateways()})
