"""Every program treats a licence to accept alike; printed commands fetch weights."""

import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from generation.presets import PRESETS, changes
from generation.settings import GenerationSettings
from generation.weights.acceptance import DINOV3, OPENRAIL
from generation.weights.sources import FILE_LICENCES, TRIPOSPLAT, ZERO123
from generation.weights.store import LOCK_NAME, ModelStore, fetch_command
from miner.settings.generation import GeneratingSettings
from miner.settings.miner import MinerConfig
from miner.settings.reader import read_settings
from scripts import compare_models, fetch_models, image_to_3d, text_to_3d
from scripts.fetch_models import FetchConfig
from tests.support.local_hub import LocalHub, serve

FLAG = DINOV3.flag
ACCEPTED = (FLAG, "true")
DREAM = ("--lift.backend", "dreamgaussian")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, no_pins: None) -> Iterator[LocalHub]:
    """A hub with the back ends alone, and a preset that needs nothing else."""
    with serve() as hub:
        hub.repos = {TRIPOSPLAT.repo: {name: name.encode() for name in TRIPOSPLAT.files}}
        files = {name.replace("*", "model"): name.encode() for name in ZERO123.files}
        hub.repos[ZERO123.repo] = files | {"clip_camera_projection/zero123.py": b"code"}
        hub.repos["me/mine"] = dict(hub.repos[TRIPOSPLAT.repo])
        embedded, splat = PRESETS["embedded"], PRESETS["gpu24-splat"]
        kept = {name: getattr(embedded, name) for name in ("text_to_image", "cutout", "scoring")}
        monkeypatch.setitem(PRESETS, "gpu24-splat", splat.model_copy(update=kept))
        yield hub


def fetch(hub: LocalHub, folder: Path, *more: str) -> int:
    arguments = ["--preset", "gpu24-splat", "--models.dir", str(folder), *more]
    return fetch_models.main(arguments, endpoint=hub.address)


def test_nothing_is_downloaded_before_the_licence_is_accepted(
    hub: LocalHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fetch(hub, tmp_path / "models") == 1
    error = capsys.readouterr().err
    assert f"{FLAG} true" in error
    assert DINOV3.read[0] in error
    # Nor from another repository, which has the same networks.
    assert fetch(hub, tmp_path / "models", "--triposplat.model.repo", "me/mine") == 1
    assert FLAG in capsys.readouterr().err
    assert hub.requests == []
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("place", ["flag", "environment", "file"])
def test_it_is_accepted_by_a_flag_the_environment_or_a_file(
    hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    file = tmp_path / "miner.yaml"
    more: tuple[str, ...] = ()
    if place == "flag":
        more = ACCEPTED
    elif place == "environment":
        monkeypatch.setenv("MINER_TRIPOSPLAT_ACCEPT_DINOV3_LICENSE", "true")
    else:
        file.write_text("triposplat:\n  accept_dinov3_license: true\n")
        more = ("--config", str(file))
    assert fetch(hub, tmp_path / "models", *more) == 0
    assert len(hub.downloads()) == len(TRIPOSPLAT.files)


def test_a_fetch_tells_the_licence_of_every_part(
    hub: LocalHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in ("4 files", "complete and verified"):
        assert fetch(hub, tmp_path, *ACCEPTED) == 0
        printed = capsys.readouterr().out
        assert words in printed
        assert TRIPOSPLAT.licence in printed
        for name, licence in FILE_LICENCES.items():
            assert f"{name}: {licence}\n" in printed
    assert fetch(hub, tmp_path, *ACCEPTED, "--triposplat.model.repo", "me/mine") == 0
    lock = ModelStore(tmp_path).lock
    assert {file.licence for file in lock["me/mine"].files.values()} == {*FILE_LICENCES.values()}
    assert (tmp_path / LOCK_NAME).is_file()


def test_zero123_is_fetched_without_its_code_once_its_licence_is_accepted(
    hub: LocalHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fetch(hub, tmp_path / "models", *DREAM) == 1
    error = capsys.readouterr().err
    assert f"{OPENRAIL.flag} true" in error
    assert OPENRAIL.read[0] in error
    assert not (tmp_path / "models").exists()
    assert fetch(hub, tmp_path / "models", *DREAM, OPENRAIL.flag, "true") == 0
    assert ZERO123.licence in capsys.readouterr().out
    assert len(hub.downloads()) == len(ZERO123.files)
    assert not any(
        name.endswith(".py") for name in ModelStore(tmp_path / "models").lock[ZERO123.name].files
    )
    # Without zero123, there is nothing to accept and nothing to fetch.
    assert fetch(hub, tmp_path / "other", *DREAM, "--dreamgaussian.guidance", "none") == 0
    assert "needs no download" in capsys.readouterr().out


PICTURE = Path(__file__).parents[1] / "golden" / "triposr" / "prep" / "input_rgba.png"


@pytest.mark.parametrize(
    ("main", "subject"),
    [
        (text_to_3d.main, ("a red car",)),
        (image_to_3d.main, (str(PICTURE),)),
        (compare_models.main, ("klein", "embedded")),
    ],
    ids=["text_to_3d", "image_to_3d", "compare_models"],
)
def test_tools_ask_for_it_before_they_look_for_weights(
    main: Callable[[Sequence[str]], int],
    subject: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    common = [*subject, "--preset", "gpu24-splat", "--device", "cpu", "--models.dir", str(tmp_path)]
    assert main(common) == 1
    assert f"{FLAG} true" in capsys.readouterr().err
    assert main([*common, *ACCEPTED]) == 1
    assert "has not been downloaded" in capsys.readouterr().err
    assert list(tmp_path.glob("*.*")) == []


def settings_of(model: type[GeneratingSettings], *argv: str) -> GenerationSettings:
    return read_settings(model, prog="program", env_prefix="MINER", argv=argv).generation


@pytest.mark.parametrize(
    "argv",
    [
        ("--preset=gpu24",),
        ("--preset=gpu24", "--lift.backend=triposplat", *ACCEPTED),
        ("--preset=gpu24-splat", *ACCEPTED),
        ("--preset=gpu80-splat", "--lift.backend=triposr"),
        ("--preset=gpu24-splat", "--lift.backend=dreamgaussian", f"{OPENRAIL.flag}=true"),
        ("--preset=gpu24", "--lift.backend=dreamgaussian", "--dreamgaussian.guidance=none"),
        ("--preset=gpu24-splat", "--triposplat.model.repo=me/my splats", *ACCEPTED),
        ("--preset=gpu16", "--text_to_image.model=schnell", "--cutout.model=birefnet"),
        ("--preset=gpu24", "--text_to_image.model=schnell", "--text_to_image.model.revision=abc"),
        ("--preset=gpu24", "--triposr.model.files=*.yaml,model.ckpt", "--triposr.model.gated=true"),
        ("--preset=gpu24", "--scoring.scorer=none"),
        ("--preset=gpu24", "--scoring.image_alignment=llm2clip"),
        ("--preset=gpu24", "--scoring.image_model=null", "--cutout.model.licence=MIT"),
        ("--preset=embedded", "--triposr.model={repo: a/b, files: [x, y], licence: MIT}"),
    ],
    ids=lambda argv: " ".join(argv).replace("--", "")[:60],
)
def test_the_command_in_a_message_fetches_what_the_settings_load(
    argv: tuple[str, ...], tmp_path: Path
) -> None:
    settings = settings_of(MinerConfig, "--chain.file=x", *argv, "--text_to_image.steps=3")
    folder = tmp_path / "my models"
    python, option, program, *arguments = shlex.split(fetch_command(settings, folder))
    assert (python, option, program) == ("python", "-m", "scripts.fetch_models")
    config = read_settings(FetchConfig, prog="fetch", env_prefix="MINER", argv=arguments)
    assert config.models.dir == folder
    assert config.generation.models == settings.models
    assert config.generation.lift == settings.lift
    # What does not decide on weights is not in it, such as the steps.
    assert set(changes(settings)) - set(changes(config.generation)) == {"text_to_image.steps"}


def test_the_command_in_a_message_names_the_back_end_and_never_accepts_by_itself() -> None:
    settings = settings_of(MinerConfig, "--preset=gpu24", "--lift.backend=triposplat")
    command = "python -m scripts.fetch_models --preset gpu24 --lift.backend triposplat"
    assert fetch_command(settings, None) == command
    accepted = settings_of(MinerConfig, "--preset=gpu24", "--lift.backend=triposplat", *ACCEPTED)
    assert fetch_command(accepted, None) == f"{command} {FLAG} true"
