"""The account that a program runs under: its home, its folders for caches, its terminal.

A service user may have no home, or one that it cannot write. Libraries write there as soon as they
are imported, so every program calls `settle` before it imports them.
"""

import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from loguru import logger

from generation.weights.cache_dir import cache_dir
from miner.logs import configure_logs
from protocol.errors import SetupError
from protocol.text import printable

FOLDER = "cache"
"""Name of the folder below the logs that stands in for a home's caches."""

_PROBE_BYTES = 4096


def settle(folder: Path | None = None) -> Path | None:
    """Points libraries at a folder of ours where their usual places cannot be written.

    Also turns off what they would report to others and compile in vain, and has torch waste less of
    a GPU's memory.

    What the environment names stays, if it can be written. Compiled code is loaded from there
    again, so a folder that others may write is not used.

    Args:
        folder: Where caches go then, such as `FOLDER` below the logs. Without it, or where it
            cannot be written: a folder of this user among the temporary files.

    Returns:
        The folder that stands in, or None if none has to.

    Raises:
        SetupError: No folder can be written.
    """
    # ONNX Runtime reads it as soon as it is imported.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    # Importing rembg would compile its alpha matting, for half a minute the first time, and nothing
    # here calls it; nothing else uses numba.
    os.environ.setdefault("NUMBA_DISABLE_JIT", "1")
    if "PYTORCH_ALLOC_CONF" not in os.environ:
        # Torch's blocks of GPU memory grow in place: gpu24 takes 0.85 GB less.
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    if not _home_is_known():
        os.environ["HOME"] = "/"  # As container runtimes do.
    if not _takes_files(_bittensor_folder()):
        os.environ.setdefault("READ_ONLY", "1")  # bittensor makes no folders then.
    wanting = {
        variable: name
        for variable, (name, places) in _caches().items()
        if not any(map(_takes_files, _named(variable) or places))
    }
    if not wanting and _has_temporary_files():
        return None
    chosen = _own_folder(folder)
    for variable, name in wanting.items():
        os.environ[variable] = str(chosen / name)
    if not _has_temporary_files():
        tempfile.tempdir = str(chosen)
    return chosen


def settle_terminal() -> None:
    """Shows characters that the terminal does not know as escapes, and log lines on it.

    Call it before the program's own `configure_logs`.
    """
    configure_logs("INFO")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def tell(error: SetupError) -> None:
    """Prints why a program ends; where that fails, its exit status stays the same."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # Full, closed, none.
        sys.stderr.write(f"error: {error}\n")


def _named(variable: str) -> list[Path]:
    value = os.environ.get(variable)
    return [Path(value)] if value else []


def _caches() -> dict[str, tuple[str, list[Path]]]:
    """Variables that name a cache, with a name for it and the places used without them."""
    cache = cache_dir().parent
    caches = {
        "TORCHINDUCTOR_CACHE_DIR": ("compiled", [cache_dir() / "compiled"]),
        "TORCH_EXTENSIONS_DIR": ("torch_extensions", [cache / "torch_extensions"]),
        "TRITON_CACHE_DIR": ("triton", [Path.home() / ".triton" / "cache"]),
        "MPLCONFIGDIR": ("matplotlib", [cache / "matplotlib"]),
    }
    # One that is named may be full of models and only to be read.
    hub = Path(os.environ.get("HF_HOME") or cache / "huggingface").expanduser()
    for variable, name in (("HF_HUB_CACHE", "hub"), ("HF_XET_CACHE", "xet")):
        if not _named(variable):
            caches[variable] = (name, [hub / name])
    return caches


def _bittensor_folder() -> Path:
    return Path.home() / ".bittensor" / "wallets"


def _home_is_known() -> bool:
    try:
        return Path.home().is_absolute()
    except RuntimeError:
        return False


def _has_temporary_files() -> bool:
    try:
        return bool(tempfile.gettempdir())
    except OSError:
        return False


def _own_folder(preferred: Path | None) -> Path:
    tried = []
    makers: list[Callable[[], Path]] = [_temporary_folder, _new_temporary_folder]
    if preferred is not None:
        makers.insert(0, lambda: preferred)
    for make in makers:
        with contextlib.suppress(OSError):
            folder = make()
            tried.append(printable(str(folder)))
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if _takes_files(folder) and _is_ours(folder):
                return folder.absolute()
    raise SetupError(
        "no folder can be written for what libraries compile; tried "
        f"{', '.join([str(cache_dir()), *tried])} and the temporary files",
        fix="set XDG_CACHE_HOME to a folder that this user may write, and no other",
    )


def _temporary_folder() -> Path:
    return Path(tempfile.gettempdir()) / f"splat-miner-{os.geteuid()}"


def _new_temporary_folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="splat-miner-"))


def _is_ours(folder: Path) -> bool:
    """Whether nobody else can put compiled code there."""
    state = folder.lstat()
    return folder.is_dir() and state.st_uid == os.geteuid() and not state.st_mode & 0o022


def _takes_files(folder: Path) -> bool:
    """Tries whether files can be written in a folder, which may have to be made; leaves nothing."""
    existing = next(path for path in (folder, *folder.absolute().parents) if os.path.exists(path))
    try:
        with tempfile.TemporaryFile(dir=existing) as probe:
            probe.write(bytes(_PROBE_BYTES))
            probe.flush()
        if existing != folder:
            os.rmdir(tempfile.mkdtemp(dir=existing))
    except OSError:
        return False
    return True


@contextmanager
def starting_up() -> Iterator[None]:
    """Makes any failure in this context a reason not to start, which a restart would not change.

    The traceback goes to miner.log, if that is open.

    Raises:
        SetupError: Whatever was raised, as one sentence.
    """
    try:
        yield
    except SetupError:
        raise
    except Exception as error:
        logger.bind(only_file=True).opt(exception=error).error("the start-up failed")
        raise unforeseen(error) from error


def unforeseen(error: Exception) -> SetupError:
    """Says what stopped a program that did not expect it."""
    what = f"{type(error).__name__}: {printable(str(error), 300)}"
    match error:
        case ImportError():
            return SetupError(
                f"a library cannot be imported: {what}",
                fix="install what is required, in the environment that runs this: make install",
            )
        case MemoryError():
            return SetupError("there is not enough memory", fix="free some, or add swap")
        case OSError() if error.filename is not None:
            return SetupError(
                f"{printable(str(error.filename))} cannot be used: {error.strerror or what}",
                fix="check the permissions of this user and the room on that disk; "
                "python -m scripts.doctor looks for more",
            )
    return SetupError(
        f"unexpected {what}",
        fix="python -m scripts.doctor with the same settings looks for the cause; miner.log in "
        "the folder of the logs shows where it was raised",
    )
