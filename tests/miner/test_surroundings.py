"""A user without a home that can be written runs every program, or learns why not."""

import io
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from miner import surroundings
from miner.surroundings import settle, settle_terminal, starting_up, unforeseen
from protocol.errors import SetupError

VARIABLES = [*surroundings._caches(), "XDG_CACHE_HOME", "HF_HOME", "READ_ONLY", "TMPDIR", "HOME"]
VARIABLES += ["ORT_DISABLE_TELEMETRY", "NUMBA_DISABLE_JIT"]
VARIABLES += ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"]
STOOD_IN = {"TORCHINDUCTOR_CACHE_DIR", "TORCH_EXTENSIONS_DIR", "MPLCONFIGDIR"}
STOOD_IN |= {"TRITON_CACHE_DIR", "HF_HUB_CACHE", "HF_XET_CACHE"}


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A home that can be written, and nothing set; what a test sets is undone."""
    before = dict(os.environ)
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield
    for name in set(os.environ) - set(before):
        del os.environ[name]


@pytest.fixture(params=["a file", "below a file", "in /proc", "unknown"])
def homeless(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A home in which nobody, not even root, can write."""
    (tmp_path / "file").touch()
    match request.param:
        case "a file":
            monkeypatch.setenv("HOME", str(tmp_path / "file"))
        case "below a file":
            monkeypatch.setenv("HOME", str(tmp_path / "file" / "home"))
        case "in /proc":
            monkeypatch.setenv("HOME", "/proc/home")
        case "unknown":
            monkeypatch.delenv("HOME")
            home = Path.home

            def unknown() -> Path:
                if "HOME" in os.environ:
                    return home()
                raise RuntimeError("Could not determine home directory.")

            monkeypatch.setattr(Path, "home", unknown)
            # As root, / can be written.
            monkeypatch.setenv("XDG_CACHE_HOME", "/proc/cache")
            takes = surroundings._takes_files
            monkeypatch.setattr(
                surroundings,
                "_takes_files",
                lambda path: (
                    not path.is_relative_to("/.bittensor")
                    and not path.is_relative_to("/.triton")
                    and takes(path)
                ),
            )


def changed() -> set[str]:
    return {name for name in STOOD_IN if name in os.environ}


def test_where_a_home_can_be_written_nothing_changes(tmp_path: Path) -> None:
    before = dict(os.environ)
    assert settle(tmp_path / "own") is None
    switches = {"ORT_DISABLE_TELEMETRY": "1", "NUMBA_DISABLE_JIT": "1"}
    switches["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
    assert dict(os.environ) == before | switches
    assert list((tmp_path / "home").iterdir()) == []
    assert not (tmp_path / "own").exists()


@pytest.mark.usefixtures("homeless")
def test_without_a_home_every_library_gets_a_folder_that_is_ours(tmp_path: Path) -> None:
    own = tmp_path / "logs" / "cache"
    assert settle(own) == own
    assert stat.S_IMODE(own.stat().st_mode) == 0o700
    assert changed() == STOOD_IN
    assert all(Path(os.environ[name]).parent == own for name in STOOD_IN)
    assert os.environ["READ_ONLY"] == "1"
    assert Path.home().is_absolute()


@pytest.mark.usefixtures("homeless")
@pytest.mark.parametrize("given", [None, Path("/proc/own")])
def test_without_a_folder_for_them_caches_are_among_the_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: Path | None
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert settle(given) == tmp_path / f"splat-miner-{os.geteuid()}"


@pytest.mark.parametrize("how", ["writable by all", "a link"])
def test_a_folder_in_which_others_may_plant_code_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setenv("HOME", "/proc/home")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    planted = tmp_path / f"splat-miner-{os.geteuid()}"
    if how == "a link":
        planted.symlink_to(tmp_path / "home")
    else:
        planted.mkdir()
        planted.chmod(0o777)
    folder = settle()
    assert folder is not None
    assert folder != planted
    assert folder.parent == tmp_path
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_only_what_cannot_be_written_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPLCONFIGDIR", "/proc/matplotlib")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    monkeypatch.setenv("HF_HUB_CACHE", "/proc/models-to-be-read")
    assert settle(tmp_path / "own") == tmp_path / "own"
    assert os.environ["MPLCONFIGDIR"] == str(tmp_path / "own" / "matplotlib")
    assert os.environ["TRITON_CACHE_DIR"] == str(tmp_path / "triton")
    assert os.environ["HF_HUB_CACHE"] == "/proc/models-to-be-read"
    assert changed() == {"MPLCONFIGDIR", "TRITON_CACHE_DIR", "HF_HUB_CACHE"}


def test_a_missing_folder_for_temporary_files_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> str:
        if tempfile.tempdir is None:
            raise FileNotFoundError(2, "No usable temporary directory found")
        return str(tempfile.tempdir)

    monkeypatch.setattr(tempfile, "gettempdir", none)
    assert settle(tmp_path / "own") == tmp_path / "own"
    with tempfile.NamedTemporaryFile() as file:
        assert Path(file.name).parent == tmp_path / "own"


def test_where_nothing_can_be_written_one_sentence_says_what_to_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(surroundings, "_takes_files", lambda folder: False)
    with pytest.raises(SetupError, match="no folder can be written") as caught:
        settle()
    assert "XDG_CACHE_HOME" in caught.value.fix


def test_a_terminal_of_ascii_shows_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    settle_terminal()
    sys.stdout.write("caf\xe9 \udcff \u2713\n")
    sys.stdout.flush()
    assert stream.buffer.getvalue() == b"caf\\xe9 \\udcff \\u2713\n"


@pytest.mark.parametrize(
    ("error", "problem", "fix"),
    [
        (
            ModuleNotFoundError("No module named 'x'"),
            "cannot be imported: ModuleNot",
            "make install",
        ),
        (
            PermissionError(13, "Permission denied", "/a/b"),
            "/a/b cannot be used: Perm",
            "permissions",
        ),
        (MemoryError(), "not enough memory", "swap"),
        (RuntimeError("a\nb\x1b[2J"), "unexpected RuntimeError: a b\\x1b[2J", "scripts.doctor"),
        (ValueError("x" * 10_000), "unexpected ValueError: xxx", "scripts.doctor"),
    ],
)
def test_any_failure_at_the_start_is_a_sentence_with_a_fix(
    error: Exception, problem: str, fix: str
) -> None:
    with pytest.raises(SetupError) as caught, starting_up():
        raise error
    assert problem in caught.value.problem
    assert fix in caught.value.fix
    assert len(caught.value.problem) < 500
    assert caught.value.__cause__ is error
    assert str(unforeseen(error)) == str(caught.value)


def test_a_reason_not_to_start_passes_as_it_is() -> None:
    error = SetupError("a", fix="b")
    with pytest.raises(SetupError) as caught, starting_up():
        raise error
    assert caught.value is error


def test_libraries_of_a_user_without_a_home_cache_in_our_folder_and_compile_no_matting(
    tmp_path: Path,
) -> None:
    script = (
        "from pathlib import Path\nfrom miner.surroundings import settle\n"
        f"settle(Path({str(tmp_path / 'own')!r}))\n"
        "import bittensor, huggingface_hub.constants as hub, matplotlib, onnxruntime, rembg\n"
        "from numba.core.dispatcher import Dispatcher\nfrom pymatting.util import kdtree\n"
        "assert not any(isinstance(each, Dispatcher) for each in vars(kdtree).values())\n"
        "print(hub.HF_HUB_CACHE, matplotlib.get_cachedir(), sep='\\n')\n"
    )
    (tmp_path / "script.py").write_text(script)
    environ = {**os.environ, "HOME": "/proc/home", "PYTHONPATH": os.getcwd()}
    environ.pop("NUMBA_DISABLE_JIT", None)
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py"],
        env=environ,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "telemetry" not in done.stderr
    assert all(line.startswith(str(tmp_path / "own")) for line in done.stdout.split())


@pytest.mark.parametrize("program", ["neurons.miner", "neurons.mock_validator", "scripts.doctor"])
def test_a_failure_before_the_logs_are_open_is_a_sentence_too(program: str) -> None:
    script = (
        "import sys, importlib, miner.settings.reader as reader\n"
        "def fail(*_, **__):\n    raise ZeroDivisionError('oh')\n"
        f"program = importlib.import_module({program!r})\n"
        "program.read_settings = fail\n"
        "sys.exit(program.main([]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == (1 if program == "scripts.doctor" else 2)
    assert done.stderr.startswith("error: unexpected ZeroDivisionError: oh\n  fix: ")
    assert "Traceback" not in done.stderr
