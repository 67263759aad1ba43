"""Makes the engines that the settings ask for."""

import atexit
from pathlib import Path

from loguru import logger

from generation.settings import GenerationSettings
from miner.engines import EngineClient
from miner.engines.local import LocalEngine
from miner.settings.engines import EnginesSettings
from protocol.errors import SetupError


async def make_engines(
    engines: EnginesSettings, settings: GenerationSettings, models_dir: Path | None
) -> list[EngineClient]:
    """Returns engines that are not started; starts or joins the Ray cluster that they need.

    With Ray, it takes seconds.

    Args:
        engines: How many, and where.
        settings: The preset of all.
        models_dir: The models folder; the default one, on each machine, when None.

    Raises:
        SetupError: There is no room for them, or no Ray.
    """
    engines.require_room(settings.device)
    if engines.kind == "ray":
        return await _ray_engines(engines, settings, models_dir)
    count = 1 if engines.count == "auto" else engines.count
    if count == 1:
        return [LocalEngine(settings, models_dir=models_dir)]
    return [
        LocalEngine(
            settings.model_copy(update={"device": f"cuda:{number}"}),
            models_dir=models_dir,
            name=f"local{number}",
        )
        for number in range(count)
    ]


async def _ray_engines(
    engines: EnginesSettings, settings: GenerationSettings, models_dir: Path | None
) -> list[EngineClient]:
    from miner.engines.ray_engine import RayProcess
    from miner.engines.remote import LinkedEngine

    gpu = settings.device.startswith("cuda")
    wanted = None if engines.count == "auto" else engines.count
    process = RayProcess(engines, cores=None if gpu else wanted)
    atexit.register(process.close)
    found = await process.open()
    has = found.gpus if gpu else found.cores
    count = has if wanted is None else wanted
    if count == 0:
        raise SetupError(
            f"Ray finds no GPU on {', '.join(found.nodes)}; preset {settings.name} needs one",
            fix="see whether nvidia-smi lists it; `ray start --num-gpus=N` states how many there "
            "are. --preset embedded needs none",
        )
    kind = "GPUs" if gpu else "cores"
    logger.info("Ray has {} {} on {}; {} engines", has, kind, ", ".join(found.nodes), count)
    if count > has:
        logger.warning("{} engines wait until the cluster has as many {}", count - has, kind)
    return [
        LinkedEngine(
            settings,
            process.opener(settings, number),
            name=f"ray{number}",
            models_dir=models_dir,
        )
        for number in range(count)
    ]
