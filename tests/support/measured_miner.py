"""A miner with metrics that has had every kind of traffic, and what it exposes then."""

import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from generation.engine import Engine
from generation.errors import GenerationError
from generation.presets import preset
from generation.settings import ScoringSettings
from miner.chain.metagraph import Neuron
from miner.metrics import opening
from miner.metrics.gpu import GpuMemory
from miner.metrics.server import MetricsServer
from miner.metrics.state import Place
from miner.scheduling.candidates import CandidateLimits
from miner.score.log import ScoreLog
from miner.service import MinerService
from miner.transports.clocks import SteadyClock
from miner.transports.http.server import HttpTransport
from miner.transports.pull.calls import SubmitAnswer
from miner.transports.pull.puller import PullTransport
from miner.transports.pull.state import PullStateFile
from miner.transports.pull.validators import Selection
from protocol.synapses import Feedback
from scripts.free_port import free_port
from tests.miner.transports.push.test_axon_checks import StaticChain
from tests.support.fake_stages import FakeStages
from tests.support.fake_validators import Calls, text
from tests.support.fakes import picture
from tests.support.http_running import Reply, form
from tests.support.waiting import until

HOTKEY = "5Miner"
ACCEPTING, REFUSING, LATER = (
    Neuron(uid=uid, hotkey=f"5V{uid}", ip="1.1.1.1", port=8091, stake=900.0, validator_permit=True)
    for uid in (11, 12, 13)
)
OPENMETRICS = "application/openmetrics-text; version=1.0.0"


class MeasuredEngine(Engine):
    """A real engine for the service."""

    name = "local"
    machine = "this one"


class MeasuredMiner:
    """A service on a real engine with fake stages, its transports HTTP and pull, and its metrics.

    Args:
        folder: Of the score log.
        ip: Address that the metrics listen on.
    """

    def __init__(self, folder: Path, *, ip: str = "127.0.0.1") -> None:
        self.stages = FakeStages()
        scoring = ScoringSettings(scorer="embedded")
        settings = preset("embedded").model_copy(update={"scoring": scoring})
        self.engine = MeasuredEngine(
            settings,
            functions=self.stages.functions(),
            remembers=self.stages.remembers,
            progress=False,
        )
        self.log = ScoreLog(folder)
        self.service = MinerService(
            [self.engine],
            self.log,
            budget_s=30.0,
            margin_s=0.2,
            candidates=CandidateLimits(max=2),
        )
        self.chain = StaticChain(
            ACCEPTING, REFUSING, LATER, Neuron(uid=7, hotkey=HOTKEY, stake=1.0)
        )
        self.http = HttpTransport(
            self.service, self.log, ip="127.0.0.1", port=free_port(), api_key="secret key"
        )
        clock = SteadyClock()
        self.calls = Calls(clock)
        self.pull = PullTransport(
            self.service,
            self.chain,
            self.log,
            calls=self.calls,  # type: ignore[arg-type]
            selection=Selection(HOTKEY),
            state_file=PullStateFile(folder / "state.json", HOTKEY),
        )
        self.port = free_port()
        self.metrics: MetricsServer = opening.open_metrics(
            opening.count_events(self.log),
            self.service,
            self.log,
            ip=ip,
            port=self.port,
            preset=settings.name,
            budget_s=30.0,
            transports=("pull", "http", "gateway"),
            scores=True,
            place=Place(self.chain, HOTKEY),
            validator_waits=self.pull.validator_waits,
        )

    async def get(self, path: str, *, method: str = "GET", **headers: str) -> Reply:
        """Asks the port of the metrics."""
        sent = {"Accept-Encoding": "identity"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        url = f"http://127.0.0.1:{self.port}{path}"
        async with (
            aiohttp.ClientSession(auto_decompress=False) as session,
            session.request(method, url, headers=sent) as response,
        ):
            return Reply(response.status, response.headers, await response.read())

    async def post(self, key: str = "secret key", **fields: Any) -> int:
        """Asks for an object over HTTP; returns the status."""
        async with (
            aiohttp.ClientSession(headers={"X-API-Key": key}) as session,
            session.post(f"{self.http.url}/generate", data=form(**fields)) as response,
        ):
            await response.read()
            return response.status

    async def start(self) -> None:
        """Opens everything in the program's order."""
        await self.metrics.serve()
        self.log.write(
            "miner_started", version="9.9.9", preset="embedded", budget_s=30.0, netuid=17, uid=7,
            hotkey=HOTKEY,
        )  # fmt: skip
        self.log.write("earnings", uid=7, incentive=0.01, emission=1.5, stake=1.0, place=12)
        await self.http.serve()
        await self.service.start()

    async def traffic(self) -> None:
        """Completed, rejected, failed and refused requests, and tasks of three validators."""
        assert await self.post(prompt="a blue cube") == 200
        assert await self.post(prompt_image_file=picture()) == 200
        assert await self.post(prompt="") == 422
        assert await self.post("another key", prompt="a blue cube") == 401
        self.stages.faults["lift"] = GenerationError("a fault")
        assert await self.post(prompt="a red cube") == 500
        self.stages.faults.clear()
        later = time.time() + 1000.0
        self.calls.pulls = [text("1"), text("2")]
        self.calls.answers = [
            SubmitAnswer(
                Feedback(task_fidelity_score=score, average_fidelity_score=score / 2), later
            )
            for score in (0.8, 0.0)
        ]
        await self.pull.serve()
        await until(lambda: len(self.calls.submitted) >= 2 and self.calls.pulled >= 3)

    async def close(self) -> None:
        """Closes everything in the program's order."""
        await self.service.drain()
        await self.pull.close()
        await self.http.close()
        await self.service.close()
        await self.metrics.close()
        self.log.close()


def fake_gpu() -> GpuMemory:
    """A GPU with 24 GiB, half of it used."""
    half = 12 * 2**30
    sizes = {("cuda:0", "total"): 2 * half, ("cuda:0", "used"): half}
    own = {("cuda:0", "reserved"): half, ("cuda:0", "allocated"): half // 2}
    return GpuMemory(lambda: True, lambda: {**sizes, **own})


def samples_of(exposition: str) -> list[Sample]:
    """All samples of an exposition in the text format."""
    return [
        sample for family in text_string_to_metric_families(exposition) for sample in family.samples
    ]


class Exposition:
    """The samples of an exposition in the text format."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.samples = samples_of(text)

    def value(self, name: str, **labels: str) -> float:
        """The one sample of `splat_miner_name` with these labels among its own."""
        (found,) = self.values(name, **labels)
        return found

    def values(self, name: str, **labels: str) -> list[float]:
        """All samples of `splat_miner_name` with these labels among their own."""
        return [
            sample.value
            for sample in self.samples
            if sample.name == f"splat_miner_{name}" and labels.items() <= sample.labels.items()
        ]

    @property
    def labels(self) -> Mapping[str, set[str]]:
        """The labels of each series, by its name."""
        found: dict[str, set[str]] = {}
        for sample in self.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
        return found


async def exposed(folder: Path) -> SimpleNamespace:
    """What a miner with traffic exposes: `text`, and `openmetrics`."""
    miner = MeasuredMiner(folder)
    await miner.start()
    try:
        await miner.traffic()
        plain = await miner.get("/metrics")
        modern = await miner.get("/metrics", Accept=OPENMETRICS)
    finally:
        await miner.close()
    return SimpleNamespace(text=Exposition(plain.body.decode()), openmetrics=modern.body.decode())
