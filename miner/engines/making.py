"""Makes the engines that the settings ask for."""

import atexit
from pathlib import Path

from loguru import logger

from generation.presets import preset
from generation.settings import GenerationSettings
from miner.engines import EngineClient
from miner.engines.local import LocalEngine
from miner.engines.ray_cluster import Resources, some, usable_cores
from miner.settings.engines import MOST_ENGINES, EnginesSettings
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
    count = engine_count(engines, settings, await process.open())
    return [
        LinkedEngine(
            settings,
            process.opener(settings, number),
            name=f"ray{number}",
            models_dir=models_dir,
        )
        for number in range(count)
    ]


def engine_count(engines: EnginesSettings, settings: GenerationSettings, found: Resources) -> int:
    """Returns how many engines there will be; logs what the cluster has, and what it lacks.

    Args:
        engines: How many are wanted.
        settings: The preset of all.
        found: What the cluster has.

    Raises:
        SetupError: The engines need GPUs, and it has none.
    """
    gpu, own = settings.device.startswith("cuda"), engines.address is None
    has, kind = (found.gpus, "GPU") if gpu else (found.cores, "core")
    if own and not gpu:
        has = min(has, usable_cores())  # Ray's number is the one that it was started with.
    where = ", ".join(found.nodes)
    count = min(has, MOST_ENGINES) if engines.count == "auto" else engines.count
    if count == 0:
        raise _no_gpu(settings, where)
    logger.info("Ray has {} on {}; {}", some(has, kind), where, some(count, "engine"))
    if count < has and engines.count == "auto":
        logger.warning("Ray has {}, and a miner has at most {} engines", some(has, kind), count)
    elif count > has and own and not gpu:
        logger.warning("{} engines share {}, and each is slower for it", count, some(has, kind))
    elif count > has:
        waiting = some(count - has, "engine")
        logger.warning("no {} for {} yet: tried again until the cluster has more", kind, waiting)
    return count


def _no_gpu(settings: GenerationSettings, where: str) -> SetupError:
    if not preset(settings.name).device.startswith("cuda"):
        return SetupError(
            f"--device {settings.device} needs a GPU, and Ray finds none on {where}",
            fix="leave out --device, or see whether nvidia-smi lists the GPU",
        )
    return SetupError(
        f"preset {settings.name} needs a GPU, and Ray finds none on {where}",
        fix="see whether nvidia-smi lists it; `ray start --num-gpus=N` states how many there "
        "are. --preset embedded needs none",
    )
