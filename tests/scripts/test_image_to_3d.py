"""image_to_3d makes clouds and meshes of one object in one frame, and says what is wrong."""

import errno
import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import trimesh
from PIL import Image, ImageDraw
from scipy.spatial import cKDTree

from protocol import ply, spz
from protocol.gaussians import Float32Array
from scripts.image_to_3d import main

PICTURE = Path(__file__).parents[1] / "golden" / "triposr" / "prep" / "input_rgba.png"


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def make(out: Path, *arguments: str, picture: Path = PICTURE) -> int:
    quick = ("--preview", "false", "--preset", "embedded")
    return main([str(picture), "--out", str(out), *quick, *arguments])


def boxed(points: Float32Array) -> Float32Array:
    low, high = points.min(axis=0), points.max(axis=0)
    return np.asarray((points - (low + high) / 2) / (high - low).max(), dtype=np.float32)


def test_clouds_and_meshes_are_the_same_object(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("toy.spz", "toy.ply"):
        assert make(tmp_path / name) == 0
        assert f"{name}: {(tmp_path / name).stat().st_size:,} bytes" in capsys.readouterr().out
    for name in ("toy.glb", "toy.obj"):
        assert make(tmp_path / name, "--mesh.resolution", "64") == 0
    cloud = ply.decode((tmp_path / "toy.ply").read_bytes())
    assert len(spz.decode((tmp_path / "toy.spz").read_bytes())) == len(cloud) > 7_000
    for name in ("toy.glb", "toy.obj"):
        data = io.BytesIO((tmp_path / name).read_bytes())
        loaded = trimesh.load(data, file_type=name[-3:], process=False)
        (mesh,) = loaded.geometry.values() if name == "toy.glb" else [loaded]
        assert mesh.is_watertight
        assert mesh.volume > 0
        colours = (
            mesh.visual.vertex_attributes["color"] / 257
            if name == "toy.glb"
            else mesh.visual.vertex_colors
        )
        assert np.ptp(np.asarray(colours)[:, :3], axis=0).max() > 5
        np.testing.assert_allclose(mesh.bounds[0], cloud.positions.min(axis=0), atol=0.02)
        np.testing.assert_allclose(mesh.bounds[1], cloud.positions.max(axis=0), atol=0.02)
        near = cKDTree(boxed(np.asarray(mesh.vertices, np.float32)))
        here, turned, turned_back = (
            near.query(boxed(cloud.positions[:, axes]))[0].mean()
            for axes in ([0, 1, 2], [1, 2, 0], [2, 0, 1])
        )
        assert here < 0.01
        assert min(turned, turned_back) > 4 * here


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("toy.ply", ["--splats.resolution", "1"], "splats.resolution"),
        ("toy.ply", ["--splats.threshold", "-1"], "splats.threshold"),
        ("toy.ply", ["--cutout.foreground_ratio", "2"], "cutout.foreground_ratio"),
        ("toy.ply", ["--splats.thresh", "3"], "did you mean --splats.threshold?"),
        ("toy.glb", ["--mesh.resolution", "7"], "mesh.resolution"),
        ("toy.glb", ["--mesh.triangles", "9"], "100"),
    ],
)
def test_wrong_arguments(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, arguments: list[str], said: str
) -> None:
    assert make(tmp_path / name, *arguments) == 2
    assert said in capsys.readouterr().err


def test_a_mesh_keeps_to_its_number_of_triangles(tmp_path: Path) -> None:
    assert make(tmp_path / "toy.glb", "--mesh.triangles", "2000") == 0
    mesh = trimesh.load(tmp_path / "toy.glb", force="mesh", process=False)
    assert 1800 < len(mesh.faces) <= 2000


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("toy.stl", "must end in .spz, .ply, .glb, .obj"),
        ("no/toy.ply", "there is no folder"),
        ("toy.ply/toy.ply", "there is no folder"),
        ("folder.ply", "is no plain file"),
        ("x" * 300 + ".ply", "File name too long"),
    ],
)
def test_wrong_outputs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], out: str, said: str
) -> None:
    (tmp_path / "folder.ply").mkdir()
    assert make(tmp_path / out) == 2
    assert said in capsys.readouterr().err


def test_failures_leave_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty, out = tmp_path / "empty.png", tmp_path / "toy.ply"
    Image.new("RGBA", (40, 40)).save(empty)
    for arguments, picture, said in (
        ((), empty, "no foreground"),
        (("--splats.threshold", "1e30"), PICTURE, "no surface"),
        (("--device", "abacus"), PICTURE, "'abacus' is no device of torch's"),
        (("--preset", "gpu80", "--device", "cpu"), PICTURE, "scripts.fetch_models --preset gpu80"),
    ):
        assert make(out, *arguments, picture=picture) == 1
        assert said in capsys.readouterr().err
        assert not out.exists()


def _large_picture(path: Path) -> None:
    """A PNG that claims 200 megapixels in its header."""
    Image.new("L", (1, 1)).save(path)
    data = bytearray(path.read_bytes())
    data[16:24] = (20_000).to_bytes(4, "big") + (10_000).to_bytes(4, "big")
    path.write_bytes(data)


def test_a_picture_that_cannot_be_read_is_one_sentence_and_exit_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, large, folder = tmp_path / "text.png", tmp_path / "large.png", tmp_path / "folder.png"
    odd = tmp_path / "no-utf8-\udcff.png"
    text.write_text("no picture")
    folder.mkdir()
    _large_picture(large)
    odd.write_bytes(b"\x89PNG")
    for picture, said in (
        (text, "neither PNG, JPEG nor WebP"),
        (tmp_path / "none.png", "No such file"),
        (folder, "Is a directory"),
        (large, "20000 x 10000 pixels, the limit is 134217728"),
        (odd, r"no-utf8-\udcff.png: image is neither"),
        (Path("/dev/zero"), "67108865 bytes, the limit is 67108864"),
        (Path("x" * 300 + ".png"), "File name too long"),
    ):
        assert make(tmp_path / "toy.ply", picture=picture) == 2
        shown = capsys.readouterr()
        assert said in shown.err
        assert shown.err.startswith("error: cannot read ")
        assert (shown.err.count("\n"), shown.out) == (1, "")
    assert not (tmp_path / "toy.ply").exists()


def test_a_full_disk_is_one_sentence_and_leaves_the_good_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "toy.spz"
    out.write_bytes(b"good")

    def full(_file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert make(out) == 2
    assert capsys.readouterr().err == f"error: cannot write {out}: No space left on device\n"
    assert out.read_bytes() == b"good"
    assert [path.name for path in tmp_path.iterdir()] == ["toy.spz"]


def test_a_name_that_is_no_utf8_is_made_and_shown_harmless(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out, picture = tmp_path / "toy-\udcff.ply", tmp_path / "in-\udcff.png"
    shutil.copy(PICTURE, picture)
    assert make(out, picture=picture) == 0
    assert out.exists()
    assert r"toy-\udcff.ply: " in capfd.readouterr().out


def test_a_photo_of_a_camera_is_taken_though_no_validator_may_send_it(tmp_path: Path) -> None:
    image = Image.new("RGB", (6000, 4000), (225, 225, 225))
    ImageDraw.Draw(image).ellipse((1800, 800, 4200, 3200), fill=(60, 190, 80))
    image.save(tmp_path / "photo.jpg")
    assert make(tmp_path / "toy.ply", picture=tmp_path / "photo.jpg") == 0


def test_several_pictures_are_made_in_every_format_with_previews(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "Green Ball.png"
    image = Image.new("RGB", (300, 200), (225, 225, 225))
    ImageDraw.Draw(image).ellipse((80, 30, 220, 170), fill=(60, 190, 80))
    image.save(other)
    made = tmp_path / "made"
    made.mkdir()
    quick = ("--splats.max_gaussians", "8000", "--video.size", "64", "--video.seconds", "0.2")
    out = ("--out", f"{made}/{{name}}.mp4", "--preset", "embedded", *quick)
    assert main([str(PICTURE), str(other), *out]) == 0
    names = (PICTURE.stem, "Green Ball")
    expected = {f"{name}{end}" for name in names for end in (".mp4", ".preview.png")}
    assert {file.name for file in made.iterdir()} == expected
    with Image.open(made / "Green Ball.preview.png") as preview:
        assert preview.size == (1041, 1041)
    with av.open(made / "Green Ball.mp4", "r") as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 5
    assert frames[0][32, 32].argmax() == 1
    shown = capsys.readouterr().out
    assert f"{other}: " in shown
    assert "understood" not in shown
    assert "denoise" not in shown


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_the_stage_that_runs_and_the_pictures_that_are_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    quick = ("--splats.max_gaussians", "8000", "--video.size", "64", "--video.seconds", "0.2")
    assert make(tmp_path / "toy.mp4", "--also", "glb", *quick, "--mesh.resolution", "64") == 0
    bars = terminal.getvalue()
    for shown in ("loading background", "cutout, ", "lift, ", "splats, ", "mesh, ", "drawing"):
        assert shown in bars, shown
    # Of the steps of a cloud and a mesh, and of the video's pictures.
    assert "/8 [" in bars
    assert "/5 [" in bars


def test_text_to_image_is_neither_loaded_nor_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*_: object, **__: object) -> None:
        raise AssertionError("FLUX was loaded")

    monkeypatch.setattr("generation.loading.load_text_to_image", loaded)
    assert make(tmp_path / "toy.spz") == 0
