"""inspect_asset reads both formats, says what a validator will say, and exits accordingly."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from protocol import ply, spz
from protocol.gaussians import MAX_GAUSSIANS, MAX_GAUSSIANS_OF_A_FILE, GaussianCloud
from scripts.benchmarks.rendering import sphere
from scripts.inspect_asset import INVALID, MAX_BYTES, UNREADABLE, VALID, main

ROOT = Path(__file__).parents[2]


def save(folder: Path, name: str, cloud: GaussianCloud) -> str:
    path = folder / name
    path.write_bytes(ply.encode(cloud) if name.endswith(".ply") else spz.encode(cloud))
    return str(path)


@pytest.mark.parametrize("name", ["ball.ply", "ball.spz"])
def test_valid_file_is_reported_and_drawn(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = save(tmp_path, name, sphere(8_000))
    out = tmp_path / "grid.png"
    assert main([file, "--out", str(out), "--size", "48"]) == VALID
    text = capsys.readouterr().out
    assert f"{name[-3:].upper()}, {Path(file).stat().st_size:,} bytes, 8,000 Gaussians" in text
    for word in ("opacity", "scale, thin", "rotation, degrees", "identity_share", "wire_bytes"):
        assert word in text
    assert "passes" in text
    assert "FAILS" not in text
    with Image.open(out) as preview:
        assert preview.format == "PNG"
        pixels = np.asarray(preview)
    assert pixels.shape == (101, 101, 3)
    assert (pixels[:48, :48] == 255).any()
    assert (pixels[24, 24] < 255).any()


def test_preview_goes_beside_the_file_by_default(tmp_path: Path) -> None:
    file = save(tmp_path, "ball.spz", sphere(7_000))
    assert main([file, "--size", "16"]) == VALID
    assert (tmp_path / "ball.spz.preview.png").is_file()


def test_invalid_cloud_is_named_and_exits_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = save(tmp_path, "few.ply", sphere(100))
    assert main([file, "--out", str(tmp_path / "few.png"), "--size", "16"]) == INVALID
    text = capsys.readouterr().out
    assert "FAILS" in text
    assert "gaussians: number of Gaussians" in text


def test_cloud_that_cannot_be_drawn_exits_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cloud = sphere(7_000)
    cloud.positions[:] = 0.25
    file = save(tmp_path, "point.ply", cloud)
    assert main([file, "--out", str(tmp_path / "point.png")]) == INVALID
    assert "no preview" in capsys.readouterr().out
    assert not (tmp_path / "point.png").exists()


def test_cloud_that_cannot_travel_exits_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cloud = sphere(7_000)
    far = replace(cloud, positions=cloud.positions * np.float32(10_000))
    file = save(tmp_path, "far.ply", far)
    assert main([file, "--out", str(tmp_path / "far.png"), "--size", "16"]) == INVALID
    assert "cannot be sent as SPZ" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "neither PLY nor zstd SPZ"),
        (b"PK\x03\x04zip", "neither PLY nor zstd SPZ"),
        (b"ply\nformat binary_little_endian 1.0\nelement vertex 5\n", "not a readable asset"),
        (b"\x28\xb5\x2f\xfd garbage", "not a readable asset"),
    ],
)
def test_garbage_exits_2_with_the_reason(
    content: bytes, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "asset.ply"
    file.write_bytes(content)
    assert main([str(file)]) == UNREADABLE
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("niantic_v2_gzip.spz", "gzip SPZ of Niantic's, version 2; `splat-transform FILE out.ply`"),
        ("niantic_v4.spz", "zstd SPZ of Niantic's, version 4; `splat-transform FILE out.ply`"),
        ("playcanvas.compressed.ply", "a compressed PLY of PlayCanvas'; `splat-transform FILE"),
        ("playcanvas.sog", "a SOG bundle of PlayCanvas'; `splat-transform FILE out.ply`"),
        ("khr_gaussian_splatting.glb", "a GLB file with Gaussian splats"),
        ("ascii_underscore_number.ply", "'1_000' is not a number"),
    ],
)
def test_foreign_formats_are_named_with_the_way_out(
    case: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(ROOT / "tests" / "golden" / "cases" / case)]) == UNREADABLE
    assert said in capsys.readouterr().err


def test_formats_without_a_mark_are_known_by_their_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("toy.splat", "toy.ksplat"):
        (tmp_path / name).write_bytes(bytes(4096 * 2))
        assert main([str(tmp_path / name)]) == UNREADABLE
        assert f"a .{name[4:]} file" in capsys.readouterr().err


def test_what_is_no_file_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = tmp_path / "pipe.ply"
    os.mkfifo(pipe)
    for place, said in ((tmp_path, "it is a folder"), (pipe, "a device or a pipe")):
        assert main([str(place)]) == UNREADABLE
        assert said in capsys.readouterr().err


def test_a_file_beyond_the_limit_is_not_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (tmp_path / "sparse.ply").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    assert main([str(tmp_path / "sparse.ply")]) == UNREADABLE
    assert "it has 4,294,967,297 bytes, the limit is 4,294,967,296" in capsys.readouterr().err


def test_names_and_headers_cannot_steer_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "a\x1b[2Jb.ply"
    header = ply.encode(sphere(100)).replace(b"float x", b"float \x1b]0;owned\x07", 1)
    (tmp_path / name).write_bytes(header)
    assert main([str(tmp_path / name)]) == UNREADABLE
    (tmp_path / name).write_bytes(ply.encode(sphere(7_000)))
    assert main([str(tmp_path / name), "--size", "16"]) == VALID
    assert (tmp_path / f"{name}.preview.png").is_file()
    said = capsys.readouterr()
    for line in (said.out + said.err).splitlines():
        assert "\x1b[2J" not in line
        assert "\x07" not in line
    assert r"a\x1b[2Jb.ply" in said.err


def test_more_gaussians_than_strangers_may_send_are_inspected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = save(tmp_path, "ball.ply", sphere(7_000))
    monkeypatch.setattr("protocol.gaussians.MAX_GAUSSIANS_OF_A_FILE", 6_999)
    assert main([file]) == UNREADABLE
    assert "claims 7000 Gaussians; 1 to 6999 are accepted" in capsys.readouterr().err
    monkeypatch.undo()
    assert MAX_GAUSSIANS_OF_A_FILE == 10 * MAX_GAUSSIANS
    assert main([file, "--size", "16"]) == VALID


def test_missing_file_exits_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "absent.ply")]) == UNREADABLE
    assert "No such file" in capsys.readouterr().err


def test_unwritable_preview_is_only_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = save(tmp_path, "ball.spz", sphere(7_000))
    assert main([file, "--out", str(tmp_path / "no" / "x.png"), "--size", "16"]) == VALID
    assert "cannot write" in capsys.readouterr().out


@pytest.mark.parametrize("option", [["--size", "0"], ["--size", "2049"], ["--colour", "red"], []])
def test_bad_usage_exits_2(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*(["x.ply"] if option else []), *option]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert (option[0] if option else "FILE") in said
    assert "inspect_asset --help" in said


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from scripts.inspect_asset import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'rich')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "FILE" in done.stdout


def test_a_prompt_brings_the_score_of_the_preset(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = save(tmp_path, "ball.ply", sphere(8_000))
    assert main([file, "--size", "16", "--prompt", "a red car"]) == VALID
    line = r"score 0\.\d{3} \(colour \d\.\d{3}, object \d\.\d{3}\) by embedded"
    assert re.search(line, capsys.readouterr().out)
    few = save(tmp_path, "few.spz", sphere(100))
    assert main([few, "--size", "16", "--prompt", "a ball"]) == INVALID
    assert "score 0.000 by embedded: " in capsys.readouterr().out


def test_the_words_that_the_score_rests_on_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = save(tmp_path, "ball.ply", sphere(8_000))
    assert main([file, "--size", "16", "--prompt", "two yelow cars"]) == VALID
    assert "understood: yellow (yelow), car (cars); ignored: two" in capsys.readouterr().out


def test_a_prompt_without_a_known_word_has_no_score(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = save(tmp_path, "ball.ply", sphere(8_000))
    assert main([file, "--size", "16", "--prompt", "a dragon"]) == UNREADABLE
    said = capsys.readouterr()
    assert "the networks know no word of the prompt; use some of automobile, ball" in said.err
    assert "score" not in said.out


def test_a_scorer_that_cannot_be_loaded_is_named_before_the_file_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = str(tmp_path / "missing.spz")
    assert main([missing, "--prompt", "a car", "--preset", "none"]) == UNREADABLE
    assert "there is no preset 'none'" in capsys.readouterr().err
    assert main([missing, "--prompt", ""]) == UNREADABLE
    assert "prompt is empty" in capsys.readouterr().err
