"""Exact examples: the cut-out's camera and the frame of finished clouds fit each other."""

from dataclasses import replace
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from generation.lift.refine.pose import view_of
from generation.rendering.cameras import Camera
from scripts.train_embedded import evaluate_refine
from scripts.train_embedded.evaluate import BACK_ENDS
from scripts.train_embedded.evaluate_refine import (
    CAMERAS,
    DEVELOPMENT,
    Figures,
    Options,
    Result,
    measure_all,
    read_results,
    table,
    tables,
)
from scripts.train_embedded.true_views import cameras_around, draw_example, psnr


@pytest.mark.parametrize("shape", [8, 12])
def test_the_object_through_its_cutouts_camera_is_the_cutout(shape: int) -> None:
    example = draw_example(3, shape, colour=4, size=48)
    size = len(example.cutout)
    lens, pose = example.camera(size)
    matrix = view_of(pose).double().numpy()
    camera = Camera(matrix, lens.focal, lens.focal, *lens.centre, size, size)
    seen = example.views([camera])[0]
    cutout = torch.from_numpy(example.cutout).permute(2, 0, 1).float() / 255
    wanted = cutout[:3] * cutout[3:] + 1 - cutout[3:]
    found, mask = (seen < 0.99).any(0), cutout[3] > 0.5
    assert float((found & mask).sum() / (found | mask).sum()) > 0.93
    inside = cutout[3] == 1
    assert float((seen - wanted).abs()[:, inside].median()) < 0.02


def test_the_last_view_repeats_the_first_and_the_object_fills_its_frame() -> None:
    example = draw_example(0, 0, colour=1, size=32)
    cameras = cameras_around(32)
    first, last = example.views([cameras[0], cameras[-1]])
    assert float((first - last).abs().mean()) < 1e-3
    share = float((first < 0.99).any(0).float().mean())
    assert 0.15 < share < 0.6


def test_an_example_is_the_same_every_time() -> None:
    one, other = (draw_example(7, 5, colour=2, size=32) for _ in range(2))
    assert np.array_equal(one.cutout, other.cutout)


def result(number: int, before: float, after: float, score: float = 0.5, **changes: Any) -> Result:
    return replace(
        Result(
            number,
            back_end="triposr",
            camera="known",
            shape="cube",
            before=Figures(20.0, before, 0.8, 0.5),
            after=Figures(22.0, after, 0.9, score),
            changed=before != after,
            gain=1.0,
            silhouette=0.01,
        ),
        **changes,
    )


def test_the_table_says_how_many_got_worse() -> None:
    text = table([result(0, 20, 21), result(1, 20, 20), result(2, 20, 19.5), result(3, 20, 22)])
    assert "4 objects; changed 75.0%, 16 views better 50.0%, worse 25.0%" in text
    assert "mean +0.62 dB" in text
    assert "| the known view, PSNR in dB | 20.000 | 22.000 |" in text


def test_the_score_chooses_between_before_and_after() -> None:
    text = table([result(0, 20, 21), result(1, 20, 19, score=0.4), result(2, 20, 22, score=0.4)])
    chosen = text.splitlines()[-1]
    assert "better 33.3%, worse 0.0%" in chosen
    assert "mean +0.33 dB" in chosen


def test_back_ends_and_cameras_have_tables_of_their_own() -> None:
    text = tables([result(0, 20, 21), result(0, 20, 25, back_end="triposplat", camera="unknown")])
    assert text.index("triposr, camera known") < text.index("triposplat, camera unknown")
    assert text.count("1 objects;") == 2


def test_a_run_goes_on_where_another_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []

    def measure_example(task: tuple[int, Options]) -> list[Result]:
        number, options = task
        measured.append(number)
        return [
            result(options.first + number, 20, 21, back_end=name, camera=camera)
            for name in options.back_ends
            for camera in CAMERAS
        ]

    monkeypatch.setattr(evaluate_refine, "measure_example", measure_example)
    out = tmp_path / "some" / "refine.jsonl"
    options = Options(tmp_path, steps=1, size=32, back_ends=("triposr",))
    monkeypatch.setattr(evaluate_refine, "process_pool", ThreadPool)
    first = measure_all(2, options, out, jobs=1)
    both = measure_all(4, options, out, jobs=1)
    assert measured == [0, 1, 2, 3]
    assert both[: len(first)] == first
    assert read_results(out) == both
    assert len(both) == 8
    # What the file does not hold of the same examples, and other examples.
    more = measure_all(2, replace(options, back_ends=BACK_ENDS), out, jobs=1)
    assert measured[4:] == [0, 1]
    assert len({r.key for r in more}) == len(more) == 2 * 2 * len(BACK_ENDS)
    other = measure_all(2, replace(options, first=DEVELOPMENT), out, jobs=1)
    assert measured[6:] == [0, 1]
    assert {r.number for r in other} == {DEVELOPMENT, DEVELOPMENT + 1}
    assert len({r.key for r in read_results(out)}) == len(read_results(out))


def test_psnr_is_that_of_the_mean_error_of_each_picture() -> None:
    black = torch.zeros(2, 3, 4, 4)
    grey = torch.stack([black[0] + 0.1, black[1] + 0.01])
    assert psnr(grey, black).tolist() == pytest.approx([20.0, 40.0], abs=1e-3)
