"""text_to_3d makes objects of words in every format, and says what it understood."""

import io
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
import trimesh
from numpy.typing import NDArray
from PIL import Image

from generation.weights import store
from protocol import ply, spz
from scripts.making import maker
from scripts.text_to_3d import main

PROMPTS = ("a shiny red car", "a blue mug")
NAMES = {"a-shiny-red-car": 0, "a-blue-mug": 2}
"""The names of the files, and which of red, green and blue is the object's colour."""

STAGES = ("prompt", "denoise", "decode", "cutout", "lift", "splats", "encode", "score")
SIZE, FRAMES = 64, 6
VIDEO = ("--video.size", str(SIZE), "--video.seconds", "0.5", "--video.fps", "12")
SMALL = ("--splats.max_gaussians", "8000")
MESH = ("--mesh.resolution", "64", "--mesh.triangles", "4000")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@dataclass(frozen=True)
class Run:
    """What one command left."""

    status: int
    out: str
    err: str
    folder: Path
    loads: int


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, cache: None) -> Run:
    """Both prompts in every format, by one command that is not told the preset."""
    folder = tmp_path_factory.mktemp("made")
    loads = 0
    locate = store.locate_models

    def counted(*arguments: object, **options: object) -> store.ModelPaths:
        nonlocal loads
        loads += 1
        return locate(*arguments, **options)  # type: ignore[arg-type]

    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", out)
        patch.setattr("sys.stderr", err)
        patch.setattr("generation.loading.locate_models", counted)
        patch.setattr(torch.cuda, "is_available", lambda: False)
        also = ("--also", "ply,glb,obj,png,mp4")
        status = main([*PROMPTS, "--out", f"{folder}/{{name}}.spz", *also, *VIDEO, *SMALL, *MESH])
    return Run(status, out.getvalue(), err.getvalue(), folder, loads)


def hue(pixels: NDArray[Any]) -> int:
    """Which of red, green and blue is the strongest in what is not white."""
    shown = pixels[(pixels < 200).any(axis=-1)]
    assert len(shown) > 0.02 * pixels[..., 0].size
    return int(shown.mean(axis=0).argmax())


def test_several_prompts_are_made_in_one_load(run: Run) -> None:
    assert run.status == 0, run.err
    assert run.loads == 1
    ends = ("spz", "ply", "glb", "obj", "png", "mp4")
    made = {file.name for file in run.folder.iterdir()}
    assert made == {f"{name}.{end}" for name in NAMES for end in ends}


def test_every_object_has_its_lines(run: Run) -> None:
    lines = run.out.splitlines()
    assert len(lines) == 2 * (3 + 6)
    for start, prompt in ((0, "a shiny red car"), (9, "a blue mug")):
        head = lines[start]
        assert head.startswith(f"{prompt}: ")
        stages = re.findall(r"([a-z]+) \d+\.\d\d", head)
        assert stages == [*STAGES, "mesh"]
        score = r"  score \d\.\d{3} \(colour \d\.\d{3}, object \d\.\d{3}\) by embedded"
        assert re.fullmatch(score, lines[start + 1])
        assert "8,000 Gaussians, valid" in head
        assert "triangles" in head
    assert lines[2] == "  understood: red, car; ignored: shiny"
    assert lines[11] == "  understood: blue, mug; ignored: nothing"
    for line in lines[3:9]:
        name, size = line.strip().removesuffix(" bytes").rsplit(": ", 1)
        assert Path(name).stat().st_size == int(size.replace(",", ""))


def test_a_plain_notice_says_why_the_small_networks_draw(run: Run) -> None:
    assert run.err == (
        "preset embedded: there is no CUDA GPU here; it knows one object in one colour, such as "
        "'a red car' (docs/embedded-models.md)\n"
    )


@pytest.mark.parametrize("name", NAMES)
def test_clouds_are_the_same_object(run: Run, name: str) -> None:
    exact = ply.decode((run.folder / f"{name}.ply").read_bytes())
    sent = spz.decode((run.folder / f"{name}.spz").read_bytes())
    assert len(exact) == len(sent) == 8_000
    np.testing.assert_allclose(sent.positions, exact.positions, atol=1 / 4096)
    assert int(exact.rgb.mean(axis=0).argmax()) == NAMES[name]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("end", ["glb", "obj"])
def test_meshes_are_of_the_clouds_size_and_colour(run: Run, name: str, end: str) -> None:
    loaded = trimesh.load(run.folder / f"{name}.{end}", process=False)
    (mesh,) = loaded.geometry.values() if end == "glb" else [loaded]
    cloud = ply.decode((run.folder / f"{name}.ply").read_bytes())
    assert 3000 < len(mesh.faces) <= 4000
    assert mesh.is_watertight
    np.testing.assert_allclose(mesh.bounds[0], cloud.positions.min(axis=0), atol=0.03)
    np.testing.assert_allclose(mesh.bounds[1], cloud.positions.max(axis=0), atol=0.03)
    colours = np.asarray(
        mesh.visual.vertex_attributes["color"] if end == "glb" else mesh.visual.vertex_colors
    )
    assert int(colours[:, :3].mean(axis=0).argmax()) == NAMES[name]


@pytest.mark.parametrize("name", NAMES)
def test_the_picture_is_the_sheet_of_four_views(run: Run, name: str) -> None:
    with Image.open(run.folder / f"{name}.png") as picture:
        assert (picture.format, picture.size) == ("PNG", (1041, 1041))
        sheet = np.asarray(picture.convert("RGB"))
    for rows in (slice(0, 518), slice(523, 1041)):
        for columns in (slice(0, 518), slice(523, 1041)):
            assert hue(sheet[rows, columns]) == NAMES[name]


@pytest.mark.parametrize("name", NAMES)
def test_the_video_turns_the_object_once(run: Run, name: str) -> None:
    with av.open(run.folder / f"{name}.mp4", "r") as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 12
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert [frame.shape for frame in frames] == [(SIZE, SIZE, 3)] * FRAMES
    for frame in frames:
        assert hue(frame) == NAMES[name]
    first, middle = frames[0].astype(int), frames[FRAMES // 2].astype(int)
    assert np.abs(first - middle).mean() > 1


def test_a_preview_lies_beside_the_file_and_settings_are_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("# one a line\n\na green cone\n")
    out = ("--out", f"{tmp_path}/{{name}}.spz")
    few = ("--text_to_image.steps", "2", "--splats.max_gaussians", "900", "--seed", "7")
    status = main(["--prompts", str(prompts), *out, *few, "--preset", "embedded"])
    shown = capsys.readouterr()
    assert (status, shown.err) == (0, "")
    with Image.open(tmp_path / "a-green-cone.preview.png") as picture:
        assert picture.size == (1041, 1041)
    assert len(spz.decode((tmp_path / "a-green-cone.spz").read_bytes())) <= 900
    # For the user to judge, but said.
    assert "invalid; gaussians is" in shown.out


def test_no_preview_if_none_is_wanted(tmp_path: Path) -> None:
    out = ("--out", f"{tmp_path}/cube.ply")
    assert main(["a grey cube", *out, "--preview", "false", *SMALL, "--preset", "embedded"]) == 0
    assert [file.name for file in tmp_path.iterdir()] == ["cube.ply"]


@pytest.mark.parametrize("candidates", ["1", "2"])
def test_what_cannot_be_made_is_said_and_the_rest_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], candidates: str
) -> None:
    # No object covers so much of its picture.
    arguments = ["a red car", "--out", f"{tmp_path}/x.ply", "--cutout.min_coverage", "0.99"]
    assert main([*arguments, "--candidates", candidates, "--preset", "embedded"]) == 1
    shown = capsys.readouterr()
    assert shown.err.startswith("error: a red car: ")
    assert ("none of 2 candidates could be made" in shown.err) == (candidates == "2")
    assert (shown.err.count("\n"), shown.out, list(tmp_path.iterdir())) == (1, "", [])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "there is no prompt"),
        (["a", "b", "--out", "x.ply"], "x.ply is one file for 2 objects"),
        (["a", "--out", "x.stl"], "must end in .spz, .ply, .glb, .obj, .png, .mp4, got x.stl"),
        (["a", "--out", "no/x.ply"], "there is no folder no"),
        (["a", "--out", "folder.ply"], "folder.ply is no plain file"),
        (["a", "--also", "stl"], "--also takes .spz, .ply, .glb, .obj, .png, .mp4, got .stl"),
        ([""], "PROMPT is empty"),
        (["a" * 1025], "prompt has 1025 characters, the limit is 1024"),
        (["a", "--prompts", "none.txt"], "cannot read none.txt: No such file"),
        (["a", "--seed", "-1"], "--seed cannot be '-1'"),
        (["a", "--video.size", "63"], "--video.size cannot be '63'"),
        (["a", "--video.seconds", "0"], "--video.seconds cannot be '0'"),
        (["a", "--splats.resolution", "1"], "--splats.resolution cannot be '1'"),
        (["a", "--text_to_image.step", "1"], "did you mean --text_to_image.steps?"),
        (["a", "--preset", "gpu"], "there is no preset 'gpu'"),
    ],
)
def test_wrong_arguments_are_a_sentence(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.ply").mkdir()
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ")
    assert said in shown.err
    assert (shown.err.count("\n") <= 2, shown.out) == (True, "")
    assert [file.name for file in tmp_path.iterdir()] == ["folder.ply"]


def test_a_prompt_without_a_known_word_is_refused_before_anything_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("generation.loading.load", lambda *args, **kwargs: pytest.fail("loaded"))
    out = f"{tmp_path}/{{name}}.ply"
    assert main(["two red cars", "a dragon", "--preset", "embedded", "--out", out]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: a dragon: the networks know no word of the prompt; use ")
    assert "mushroom" in shown.err
    assert (shown.err.count("\n"), shown.out, list(tmp_path.iterdir())) == (1, "", [])


def test_a_video_without_pyav_is_refused_before_anything_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["a red car", "--out", f"{tmp_path}/x.mp4"]) == 2
    assert "pip install -e '.[video]'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_while_a_file_is_made_ends_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A video takes a minute on two cores."""
    went_on = []

    def encode(*_: object) -> bytes:
        signal.raise_signal(signal.SIGINT)
        went_on.append(True)
        return b""

    monkeypatch.setattr(maker, "encode", encode)
    arguments = ["--preset", "embedded", "--text_to_image.steps", "1"]
    # A shell that starts the tests in the background has it ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert main(["a red car", "--out", f"{tmp_path}/x.mp4", *arguments]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err.endswith("\ninterrupted\n")
    assert (went_on, list(tmp_path.iterdir())) == ([], [])


def test_a_cloud_is_refined_and_its_mesh_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ("--preset", "embedded", "--text_to_image.steps", "1", "--splats.max_gaussians", "500")
    refine = ("--refine.steps", "2", "--refine.size", "32", "--preview", "false", *MESH)
    out = ("--out", str(tmp_path / "car.spz"), "--also", "glb")
    assert main(["a red car", *out, *few, *refine]) == 0
    assert re.search(r"splats \d.*, refine \d.*, encode \d.*, mesh \d", capsys.readouterr().out)
    assert {path.name for path in tmp_path.iterdir()} == {"car.spz", "car.glb"}


def test_candidates_need_a_scorer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    without = ("--candidates", "2", "--scoring.scorer", "none", "--preset", "embedded")
    assert main(["a red car", "--out", str(tmp_path / "car.spz"), *without]) == 1
    err = capsys.readouterr().err
    assert "the best of several candidates cannot be told without a scorer" in err
    assert "leave out --candidates" in err
    assert list(tmp_path.iterdir()) == []
