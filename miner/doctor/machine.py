"""What can be wrong with this machine: Python, packages, GPU, memory, weights, disk."""

import importlib
import os
import shutil
import sys
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from generation.quiet import quiet_libraries
from generation.settings import GenerationSettings
from generation.weights.acceptance import terms_of
from generation.weights.cache_dir import cache_dir
from generation.weights.store import (
    ModelStore,
    default_models_dir,
    fetch_command,
    locate_models,
)
from miner import file_lock
from miner.daemon_call import in_daemon_thread
from miner.doctor.engines import JOIN_LIMIT_S, engines_here
from miner.doctor.findings import Check, Status, Verdict, failed, ok, warning
from miner.doctor.needs import (
    GB,
    LOADING_BYTES,
    RESIDENT_BYTES,
    download_bytes,
    form_of,
    taken_gb,
)
from miner.doctor.scorer import judge_scorer, require_packages, scoring_models
from miner.file_lock import FOLDER_LOCK, Holder
from miner.logs import FILE_NAME as MINER_LOG
from miner.score import FILE_NAME as SCORE_LOG
from miner.settings.engines import EnginesSettings
from miner.surroundings import FOLDER, starting_up
from protocol.errors import SetupError

PACKAGE = "splat-miner"
PYTHONS = ((3, 11), (3, 12))
LIBRARIES = ("bittensor", "torch", "diffusers", "transformers", "onnxruntime", "rembg")
COMPILERS = ("gcc", "clang")
LOG_FILES = (FOLDER_LOCK, SCORE_LOG, MINER_LOG)
LOG_BYTES = 1 * GB

ONE_ENGINE = EnginesSettings()

HASHING_LIMIT_S = 60.0
IMPORT_LIMIT_S = 60.0
FIRST_IMPORT_LIMIT_S = 180.0


@dataclass(frozen=True)
class Device:
    """What torch says: its version and that of its CUDA, and the GPU's name and bytes, if any."""

    torch: str
    cuda: str | None = None
    name: str | None = None
    total_bytes: int = 0


def machine_checks(
    settings: GenerationSettings,
    models_dir: Path | None,
    log_dir: Path,
    *,
    stands_in: Path | SetupError | None = None,
    engines: EnginesSettings = ONE_ENGINE,
) -> list[Check]:
    """Lists the checks of this machine against a preset, cheapest first.

    Args:
        settings: The preset.
        models_dir: The models folder; the default one when None.
        log_dir: The folder of the logs.
        stands_in: What `miner.surroundings.settle` returned or raised.
        engines: How many run here.
    """
    models = models_dir or default_models_dir()

    async def python() -> Verdict:
        return judge_python(sys.version_info[:3], sys.executable)

    async def packages() -> Verdict:
        try:
            required = metadata.requires(PACKAGE) or []
        except metadata.PackageNotFoundError:
            return failed(f"{PACKAGE} is not installed", _install(settings))
        verdict = judge_packages(required, installed_version, fix=_install(settings))
        if verdict.status is not Status.FAILED:
            await in_daemon_thread(import_libraries, FIRST_IMPORT_LIMIT_S)
        return verdict

    async def home() -> Verdict:
        return judge_home(stands_in, log_dir)

    async def folder() -> Verdict:
        return judge_lock(*file_lock.look(log_dir / FOLDER_LOCK))

    async def disk() -> Verdict:
        needs = [(log_dir, LOG_BYTES, "--log.dir")]
        missing = download_bytes(settings, ModelStore(models).lock) if settings.models else 0
        if missing:
            needs.append((models, missing, "--models.dir"))
        return judge_disk(needs, [log_dir / name for name in LOG_FILES])

    async def memory() -> Verdict:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return judge_memory(settings, total, await engines_here(engines, settings))

    async def device() -> Verdict:
        return judge_device(
            settings, await in_daemon_thread(partial(read_device, settings.device), IMPORT_LIMIT_S)
        )

    async def compiler() -> Verdict:
        names = (os.environ.get("CC", ""), *COMPILERS)
        header = Path(sysconfig.get_path("include")) / "Python.h"
        return judge_compiler(settings, [shutil.which(name) for name in names], header)

    async def scorer() -> Verdict:
        await in_daemon_thread(partial(require_packages, settings), IMPORT_LIMIT_S)
        locked = set(ModelStore(models).lock) if scoring_models(settings) else set()
        return judge_scorer(settings, locked, models)

    async def weights() -> Verdict:
        if not settings.models:
            return ok(f"the preset {settings.name} needs no download")
        await in_daemon_thread(lambda: locate_models(settings, models_dir), HASHING_LIMIT_S)
        found = f"{len(settings.models)} models in {models}, as locked"
        accepted = "".join(f"; {terms.name} is accepted" for terms in terms_of(settings))
        return ok(found + accepted)

    return [
        Check("python", python),
        *([Check("home", home)] if stands_in is not None else []),
        Check(
            "packages",
            packages,
            FIRST_IMPORT_LIMIT_S + 1,
            if_slow="the first import compiles for a minute; look again",
        ),
        Check("disk", disk),
        *([Check("log folder", folder)] if file_lock.look(log_dir / FOLDER_LOCK)[0] else []),
        Check("memory", memory, JOIN_LIMIT_S + 1.0),
        Check("torch, GPU", device, IMPORT_LIMIT_S),
        Check("compiler", compiler),
        Check("scorer", scorer, IMPORT_LIMIT_S),
        Check(
            "weights",
            weights,
            HASHING_LIMIT_S,
            if_slow=f"{fetch_command(settings, models_dir)} hashes them without a time limit",
        ),
    ]


def judge_python(version: tuple[int, int, int], executable: str) -> Verdict:
    """Only versions that the tests run on will do."""
    text = f"Python {'.'.join(map(str, version))} ({executable})"
    if version[:2] in PYTHONS:
        return ok(text)
    return failed(f"{text}; 3.11 or 3.12 is needed", "make install PYTHON=python3.12")


def installed_version(name: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def judge_packages(
    required: Sequence[str], version: Callable[[str], str | None], *, fix: str
) -> Verdict:
    """Compares what is installed with the requirements of the project.

    Args:
        required: Requirements as packages state them, extras included.
        version: Gives the installed version of a distribution, None if there is none.
        fix: How to install.
    """
    wanted = [r for r in map(Requirement, required) if not r.marker or r.marker.evaluate()]
    found = {requirement.name: version(requirement.name) for requirement in wanted}
    wrong = [
        f"{requirement} is {found[requirement.name] or 'not installed'}"
        for requirement in wanted
        if not requirement.specifier.contains(found[requirement.name] or "0", prereleases=True)
        or found[requirement.name] is None
    ]
    runtimes = [name for name in ("onnxruntime", "onnxruntime-gpu") if version(name)]
    if not runtimes:
        wrong.append("neither onnxruntime nor onnxruntime-gpu is installed")
    if wrong:
        return failed("; ".join(wrong), fix)
    if len(runtimes) > 1:
        return warning(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other",
            f"pip uninstall -y {' '.join(runtimes)}; {fix}",
        )
    shown = [
        f"{name} {found[name]}" for name in ("bittensor", "torch", "diffusers") if name in found
    ]
    return ok(f"{len(wanted)} as required: {', '.join(shown)}, ...")


def import_libraries() -> None:
    """Imports what the miner will import, which may fail where a home or a library is damaged.

    Raises:
        SetupError: One of them cannot be imported.
    """
    with starting_up(), quiet_libraries():
        for name in LIBRARIES:
            importlib.import_module(name)


def judge_home(stands_in: Path | SetupError | None, log_dir: Path) -> Verdict:
    """Says where libraries keep what they compile if this user's own caches cannot be written."""
    if isinstance(stands_in, SetupError):
        return failed(stands_in.problem, stands_in.fix)
    if stands_in is None:
        return ok(f"{cache_dir()} can be written")
    return warning(
        f"{cache_dir()} and its like cannot be written; the miner keeps what it compiles in "
        f"{log_dir / FOLDER}, or among the temporary files",
        "give this user a home, or set XDG_CACHE_HOME to a folder that it may write",
    )


def judge_lock(held: bool | None, holder: Holder | None) -> Verdict:
    """Says whether a miner runs with this folder of logs."""
    if not held:
        return ok("no miner uses it")
    who = f"process {holder.pid} on {holder.host} since {holder.since}" if holder else "a process"
    return warning(
        f"a miner uses it already: {who}",
        "a second one needs its own --log.dir, and its own ports",
    )


def judge_disk(needs: Sequence[tuple[Path, int, str]], logs: Sequence[Path] = ()) -> Verdict:
    """Looks for room in folders that may not exist yet, and for logs that cannot be continued.

    Args:
        needs: (folder, bytes, setting).
        logs: Files that the miner appends to if they exist.
    """
    for file in logs:
        if os.path.exists(file) and not os.access(file, os.R_OK | os.W_OK):
            return failed(
                f"{file} cannot be written by this user",
                "run as the user that owns it, or give another folder with --log.dir",
            )
    rooms = []
    for folder, needed, setting in needs:
        # Not Path.exists, which fails below a folder that may not be entered.
        paths = (folder, *folder.absolute().parents)
        existing = next(path for path in paths if os.path.exists(path))
        if not existing.is_dir():
            return failed(f"{existing} is a file", f"give a folder with {setting}")
        if not os.access(existing, os.W_OK | os.X_OK):
            return failed(f"{existing} cannot be written", f"give another folder with {setting}")
        free = shutil.disk_usage(existing).free
        if free < needed:
            return failed(
                f"{folder} has {free / GB:.1f} GB of room, {needed / GB:.0f} GB are needed",
                f"make room, or give another folder with {setting}",
            )
        rooms.append(f"{free / GB:.0f} GB free for {folder}")
    return ok(", ".join(rooms))


def judge_memory(settings: GenerationSettings, total_bytes: int, engines: int = 1) -> Verdict:
    """Weights are read into main memory before they reach the GPU, by all engines at once.

    Args:
        settings: The preset of all.
        total_bytes: Main memory of this machine.
        engines: How many load here.
    """
    text = f"{total_bytes / GB:.0f} GB of main memory"
    needed = LOADING_BYTES[form_of(settings)] if _has_flux_on_gpu(settings) else 0
    if total_bytes < engines * needed:
        who = f"the preset {settings.name} reads"
        if engines > 1:
            who = f"{engines} engines of the preset {settings.name} read"
        return warning(
            f"{text}; {who} {engines * needed / GB:.0f} GB of weights through it",
            "if the miner is killed while it loads, add memory or swap",
        )
    return ok(text)


def read_device(wanted: str = "cuda") -> Device:
    """Asks torch; importing it takes seconds.

    Args:
        wanted: The device of the settings.

    Raises:
        SetupError: There are CUDA devices, but not this one.
    """
    import torch

    version = str(torch.__version__)
    if not torch.cuda.is_available():
        return Device(version, torch.version.cuda)
    index = int(wanted.partition(":")[2] or 0)
    count = torch.cuda.device_count()
    if index >= count:
        raise SetupError(
            f"the settings name {wanted}, but torch finds CUDA devices only up to cuda:{count - 1}",
            fix="name one of these with --device, or check nvidia-smi and CUDA_VISIBLE_DEVICES",
        )
    properties = torch.cuda.get_device_properties(index)
    return Device(version, torch.version.cuda, properties.name, properties.total_memory)


def judge_device(settings: GenerationSettings, device: Device) -> Verdict:
    """Compares the GPU with what the preset is made for."""
    build = f"torch {device.torch}" + (f" for CUDA {device.cuda}" if device.cuda else "")
    if not settings.device.startswith("cuda"):
        return ok(f"{build}; the preset {settings.name} runs on the CPU")
    if device.name is None:
        cause = "finds no GPU" if device.cuda else "is a build without CUDA"
        return failed(
            f"{build} {cause}; the preset {settings.name} needs one",
            "see whether nvidia-smi lists the GPU and its driver is as new as this CUDA"
            if device.cuda
            # Pip keeps a torch that is there, so the environment has to go first.
            else f"make clean && {_install(settings)}, with PIP_EXTRA_INDEX_URL unset",
        )
    text = f"{build}; {device.name} with {device.total_bytes / GB:.0f} GB"
    taken, smaller = taken_gb(settings) or 0.0, _smaller(settings)
    if _has_flux_on_gpu(settings) and device.total_bytes < RESIDENT_BYTES[form_of(settings)]:
        return failed(f"{text}, less than the weights of {settings.name} take", smaller)
    if device.total_bytes < taken * GB:
        return warning(f"{text}; {settings.name} took {taken:.0f} GB where it was tried", smaller)
    return ok(text)


def judge_compiler(
    settings: GenerationSettings, found: Sequence[str | None], header: Path
) -> Verdict:
    """TorchInductor and Triton build what they generate with a C compiler.

    Args:
        settings: The preset.
        found: Paths of the compilers that Triton looks for; None for one that is not there.
        header: Where Python's own header should be.
    """
    if not settings.accelerate:
        return ok(f"the preset {settings.name} compiles nothing")
    paths = [path for path in found if path]
    missing = [] if paths else ["no C compiler is there ($CC, gcc, clang)"]
    missing += [] if header.is_file() else [f"{header} is not there"]
    if missing:
        return warning(
            f"{' and '.join(missing)}: the large networks will run eagerly, which is slower",
            "apt install gcc python3-dev",
        )
    return ok(f"{paths[0]}, {header}")


def _has_flux_on_gpu(settings: GenerationSettings) -> bool:
    return settings.device.startswith("cuda") and settings.text_to_image.model is not None


def _smaller(settings: GenerationSettings) -> str:
    """What to do where the GPU is too small."""
    model, width = form_of(settings)
    small = "--preset gpu16"
    if settings.lift.backend != "triposr":
        small += f" --lift.backend {settings.lift.backend}"
    if width == "16 bits":
        option = small if model == "klein" else "--text_to_image.eight_bit true"
        return f"use {option}, or a larger GPU"
    return "use a larger GPU" if model == "klein" else f"use {small}, or a larger GPU"


def _install(settings: GenerationSettings) -> str:
    extras = ["gpu"] if settings.device.startswith("cuda") else []
    extras += ["score"] if settings.scoring.scorer == "validator" else []
    return f"make install EXTRAS={','.join(extras)}" if extras else "make install"
