"""What an engine in a process of its own reports."""

import asyncio
from pathlib import Path

from generation.engine import Engine
from generation.plan import Plan
from generation.settings import GenerationSettings
from miner.engines.host import EngineHost
from miner.engines.wire import Ended, Order
from protocol.tasks import TextTask
from tests.support.fake_stages import FakeStages
from tests.support.far_engines import far_settings


async def test_a_run_whose_cancellation_arrives_before_its_order_is_never_begun() -> None:
    """An order with a picture is slower than the call that takes it back."""
    stages = FakeStages()
    settings = far_settings()

    def make_engine(settings: GenerationSettings, models_dir: Path | None) -> Engine:
        return Engine(settings, functions=stages.functions(), progress=False)

    host = EngineHost(make_engine=make_engine)
    await host.load(settings.model_dump_json(), None)
    task = TextTask(id="t", prompt="a red car")
    rung = settings.ladder[0]
    plan = Plan(rung, host._loaded.route(task, rung))
    try:
        await host.cancel(7)
        await host.run(Order(7, task, plan, 30.0, (1.0, 1), None))
        await asyncio.sleep(0.1)
        assert stages.calls == []
        (ended,) = await host.poll()
        assert isinstance(ended, Ended)
        assert ended.run == 7
    finally:
        await host.close()
