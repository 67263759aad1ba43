"""What can be wrong with several engines, or with those in processes of their own."""

from functools import partial

from generation.settings import GenerationSettings
from miner.daemon_call import in_daemon_thread
from miner.doctor.findings import Check, Verdict, failed, ok, warning
from miner.engines.ray_cluster import Resources, close_cluster, open_cluster, require_ray
from miner.settings.engines import EnginesSettings

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
            return judge_own_cluster(engines, settings, version, gpus)
        found = await in_daemon_thread(partial(_join, engines), JOIN_LIMIT_S)
        return judge_cluster(engines, settings, version, found)

    if engines.kind == "local" and engines.count in ("auto", 1):
        return []
    fix = "`ray status` on this machine shows whether the cluster answers"
    return [Check("engines", look, JOIN_LIMIT_S + 1.0, if_slow=fix)]


def judge_local(engines: EnginesSettings, gpus: int) -> Verdict:
    """Compares the engines of the miner's process with the GPUs that torch sees.

    Args:
        engines: More than one.
        gpus: How many there are.
    """
    text = f"{engines.count} engines in the miner's process, {gpus} GPUs"
    if isinstance(engines.count, int) and gpus < engines.count:
        return failed(text, f"--engines.count {max(1, gpus)}, or see nvidia-smi")
    return ok(text)


def judge_own_cluster(
    engines: EnginesSettings, settings: GenerationSettings, version: str, gpus: int
) -> Verdict:
    """Says what Ray will find when the miner starts it on this machine.

    Args:
        engines: How many are wanted.
        settings: Their preset.
        version: Of Ray.
        gpus: How many torch sees.
    """
    if not settings.device.startswith("cuda"):
        return ok(f"Ray {version}, on this machine alone; preset {settings.name} needs no GPU")
    text = f"Ray {version}, on this machine alone: {gpus} GPUs"
    if gpus == 0:
        return failed(text, "see nvidia-smi; --engines.address joins a cluster that has some")
    return _judge_count(engines, gpus, "GPUs", text)


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
    has, kind = (found.gpus, "GPUs") if gpu else (found.cores, "cores")
    nodes = ", ".join(f"{name} {count}" for name, count in sorted(found.nodes.items()))
    text = f"Ray {version}, {has} {kind} on {len(found.nodes)} machines; GPUs: {nodes}"
    if has == 0:
        return failed(text, "`ray start --address=...` on a machine with a GPU")
    return _judge_count(engines, has, kind, text)


def _judge_count(engines: EnginesSettings, has: int, kind: str, text: str) -> Verdict:
    if isinstance(engines.count, int) and engines.count > has:
        return warning(
            f"{text}; --engines.count {engines.count} is more",
            f"the others wait for more {kind}: add a machine, or --engines.count {has}",
        )
    return ok(f"{text}; engines: {engines.count}")


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _join(engines: EnginesSettings) -> Resources:
    found = open_cluster(engines)
    close_cluster()
    return found
