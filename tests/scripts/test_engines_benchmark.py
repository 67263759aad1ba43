"""The benchmark of engines: networks with random weights behind the link, and its figures."""

import time
from pathlib import Path

from generation.settings import ScoringSettings
from miner.engines.link import Link
from miner.engines.remote import LinkedEngine
from scripts.benchmarks import engines
from tests.support.fake_stages import FakeStages
from tests.support.far_engines import HostLink
from tests.support.tiny_networks import SIZES, tiny_settings


class TinyActor(engines.RandomActor):
    sizes = SIZES


async def test_networks_of_random_weights_serve_behind_the_link(tmp_path: Path) -> None:
    settings = tiny_settings(model="klein").model_copy(update={"scoring": ScoringSettings()})

    async def open_link() -> Link:
        link = HostLink(FakeStages(), time.monotonic)
        link.host = TinyActor()
        return link

    engine = LinkedEngine(
        settings, open_link, name="tiny", identify=lambda text, folder: engines._ANY
    )
    row = await engines._throughput([engine], 3, tmp_path)
    assert (row["completed"], row["asked"], row["reasons"]) == (3, 3, {"ok": 3})
    assert row["by_engine"] == {"tiny": 3}
    assert row["objects_per_s"] > 0 < row["start_s"]
    assert row["hand_over_ms_p95"] >= row["hand_over_ms_p50"] > 0
