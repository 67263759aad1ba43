"""What can be wrong with several engines, or with those in processes of their own."""

from functools import partial

from generation.settings import GenerationSettings
from miner.daemon_call import in_daemon_thread
from miner.doctor.findings import Check, Verdict, failed, ok, warning
from miner.engines.ray_cluster import (
    Resources,
    close_cluster,
    open_cluster,
    require_ray,
    some,
    usable_cores,
)
from miner.settings.engines import MOST_ENGINES, EnginesSettings

JOIN_LIMIT_S = 40.0


def engine_checks(engines: EnginesSettings, settings: GenerationSettings) -> list[Check]:
    """Lists the check of the engines; none for a single one in the miner's process.

    Args:
        engines: How many, and where.
        settings: The preset of all.
    """

    async def look() -> Verdict:
        engines.require_room(settings.device)
        if engines.kind == "local":
            return judge_local(engines, await in_daemon_thread(_gpus, JOIN_LIMIT_S))
        version = require_ray()
        if engines.address is None:
            gpus = await in_daemon_thread(_gpus, JOIN_LIMIT_S)
            return judge_own_cluster(engines, settings, version, gpus, usable_cores())
        found = await in_daemon_thread(partial(_join, engines), JOIN_LIMIT_S)
        return judge_cluster(engines, settings, version, found)

    if engines.kind == "local" and engines.count in ("auto", 1):
        return []
    fix = "`ray status` on this machine shows whether the cluster answers"
    return [Check("engines", look, JOIN_LIMIT_S + 1.0, if_slow=fix)]


async def engines_here(engines: EnginesSettings, settings: GenerationSettings) -> int:
    """Returns how many engines load on this machine at once; 1 where only the cluster knows."""
    if engines.address is not None or not settings.device.startswith("cuda"):
        return 1
    if engines.kind == "local":
        return 1 if engines.count == "auto" else engines.count
    gpus = await in_daemon_thread(_gpus, JOIN_LIMIT_S)
    return max(1, min(gpus, MOST_ENGINES if engines.count == "auto" else engines.count))


def judge_local(engines: EnginesSettings, gpus: int) -> Verdict:
    """Compares the engines of the miner's process with the GPUs that torch sees.

    Args:
        engines: More than one.
        gpus: How many there are.
    """
    text = f"{engines.count} engines in the miner's process, {some(gpus, 'GPU')}"
    if isinstance(engines.count, int) and gpus < engines.count:
        return failed(text, f"--engines.count {max(1, gpus)}, or see nvidia-smi")
    return ok(text)


def judge_own_cluster(
    engines: EnginesSettings, settings: GenerationSettings, version: str, gpus: int, cores: int
) -> Verdict:
    """Says what Ray will find when the miner starts it on this machine.

    Args:
        engines: How many are wanted.
        settings: Their preset.
        version: Of Ray.
        gpus: How many torch sees.
        cores: How many this process may use.
    """
    gpu = settings.device.startswith("cuda")
    has, kind = (gpus, "GPU") if gpu else (cores, "core")
    text = f"Ray {version}, on this machine alone: {some(has, kind)}"
    if has == 0:
        return failed(text, "see nvidia-smi; --engines.address joins a cluster that has some")
    others = "the others wait in vain" if gpu else "engines share cores, and each is slower for it"
    return _judge_count(engines, has, kind, text, f"{others}: --engines.count {has}")


def judge_cluster(
    engines: EnginesSettings, settings: GenerationSettings, version: str, found: Resources
) -> Verdict:
    """Says what the cluster has, machine by machine.

    Args:
        engines: How many are wanted.
        settings: Their preset.
        version: Of Ray.
        found: What the cluster has.
    """
    gpu = settings.device.startswith("cuda")
    has, kind = (found.gpus, "GPU") if gpu else (found.cores, "core")
    nodes = ", ".join(f"{name} {count}" for name, count in sorted(found.nodes.items()))
    machines = some(len(found.nodes), "machine")
    text = f"Ray {version}, {some(has, kind)} on {machines}; GPUs: {nodes}"
    if has == 0:
        return failed(text, "`ray start --address=...` on a machine with a GPU")
    fix = f"the others wait for more {kind}s: add a machine, or --engines.count {has}"
    return _judge_count(engines, has, kind, text, fix)


def _judge_count(
    engines: EnginesSettings, has: int, kind: str, text: str, fix_if_more: str
) -> Verdict:
    if isinstance(engines.count, int) and engines.count > has:
        return warning(f"{text}; --engines.count {engines.count} is more", fix_if_more)
    if engines.count == "auto" and has > MOST_ENGINES:
        return warning(
            f"{text}; a miner has at most {MOST_ENGINES} engines",
            f"the other {kind}s stay idle; a second miner with its own hotkey can use them",
        )
    return ok(f"{text}; engines: {engines.count}")


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _join(engines: EnginesSettings) -> Resources:
    found = open_cluster(engines)
    close_cluster()
    return found
