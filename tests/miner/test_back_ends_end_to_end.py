"""The miner's own engine with each 3D back end, from the settings to the answer."""

import time
from pathlib import Path

import pytest

from generation.plan import Output
from generation.settings import BackEndName
from miner.engines.local import LocalEngine
from miner.request import Answer, Caller, Request
from miner.score.log import ScoreLog
from miner.service import MinerService
from miner.settings.miner import MinerConfig
from miner.settings.reader import read_settings
from protocol import spz
from protocol.tasks import TextTask

OWN_STAGES = {
    "triposr": {"lift", "splats"},
    "triposplat": {"prepare", "features", "flow", "gaussians", "splats"},
    "dreamgaussian": {"prepare", "dream", "splats"},
}
# One level, and less of everything.
SMALL = (
    *("--rungs", "[]", "--scoring.scorer", "none", "--text_to_image.steps", "2"),
    *("--splats.max_gaussians", "8000", "--mesh.resolution", "32", "--mesh.triangles", "500"),
    *("--triposplat.steps", "2", "--triposplat.max_gaussians", "8000"),
    *("--dreamgaussian.steps", "4", "--dreamgaussian.max_gaussians", "8000"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The log folder with the estimates, which all runs share."""
    return tmp_path_factory.mktemp("miner")


@pytest.mark.parametrize("back_end", ["triposplat", "dreamgaussian", "triposr"])
async def test_one_flag_switches_a_running_configuration(
    folder: Path, back_end: BackEndName
) -> None:
    """The same folder and the same other settings, one run after the other."""
    made, mesh = await served(folder, back_end)
    assert (made.outcome, made.rung) == ("completed", "full"), made.reason
    own = OWN_STAGES[back_end]
    assert set(made.timings) == {"prompt", "denoise", "decode", "cutout", "encode", *own}
    assert made.validity is not None
    assert made.validity.passed
    assert 7_000 <= made.gaussians <= 8_000
    assert len(spz.decode(made.asset)) == made.gaussians
    if back_end == "triposr":
        assert mesh.outcome == "completed", mesh.reason
        assert mesh.mesh is not None
    else:
        assert (mesh.outcome, mesh.reason_code) == ("rejected", "bad_task")
        assert "--lift.backend triposr" in mesh.reason


async def served(folder: Path, back_end: BackEndName) -> tuple[Answer, Answer]:
    """What a miner with this back end answers to a text, and to one for a mesh."""
    argv = ("--transports", "http", "--preset", "embedded", *SMALL, "--lift.backend", back_end)
    config = read_settings(MinerConfig, prog="miner", argv=argv, environ={})
    log = ScoreLog(folder)
    service = MinerService([LocalEngine(config.generation)], log, budget_s=60.0, margin_s=1.0)
    await service.start()

    async def ask(output: Output) -> Answer:
        task = TextTask(id=output, prompt="a red car", seed=1)
        return await service.handle(
            Request(task, Caller("caller"), "http", time.monotonic(), output=output)
        )

    try:
        return await ask("splats"), await ask("mesh")
    finally:
        await service.drain()
        await service.close()
        log.close()
