import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from generation.errors import NoObject
from generation.lift.triposplat.prepare import CANVAS, prepare
from generation.pictures.framing import frame

GOLDEN = Path(__file__).parents[3] / "golden" / "triposplat" / "prep"
CASES = json.loads((GOLDEN / "prep.json").read_text())


def cutout(width: int, height: int, box: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    """An orange box, left, top, right and bottom, on transparent blue."""
    left, top, right, bottom = box
    picture = np.full((height, width, 4), (0, 0, 255, 0), dtype=np.uint8)
    picture[top:bottom, left:right] = (250, 120, 10, 255)
    return picture


def seen_box(prepared: NDArray[np.uint8]) -> list[int]:
    """Left, top, right and bottom of what is orange."""
    rows, columns = np.nonzero(prepared[..., 0] > 125)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


@pytest.mark.parametrize("name", CASES)
def test_every_pixel_is_the_references(name: str) -> None:
    case = CASES[name]
    found = prepare(
        Image.open(GOLDEN / case["input"]),
        canvas=case["canvas"],
        erode_radius=case["erode_radius"],
    )
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, np.asarray(Image.open(GOLDEN / name)))


def test_an_array_and_a_picture_give_the_same_and_stay_as_they_are() -> None:
    image = Image.open(GOLDEN / "wide.png")
    array = np.array(image)
    np.testing.assert_array_equal(prepare(image, canvas=96), prepare(array, canvas=96))
    np.testing.assert_array_equal(np.asarray(image), array)


def test_a_cut_out_as_the_pipeline_frames_it_fills_five_sixths_of_the_canvas() -> None:
    rgba = torch.from_numpy(cutout(300, 200, (20, 30, 140, 90)))
    levels = rgba[..., 3].contiguous()
    framed = frame(rgba[..., :3], levels, levels.numpy(), 0.85).numpy()
    for picture in (rgba.numpy(), framed):
        left, top, right, bottom = seen_box(prepare(picture, canvas=384))
        # The erosion takes up to three pixels of either side.
        assert (left, right) == pytest.approx((32, 352), abs=4)
        assert (top, bottom) == pytest.approx((112, 272), abs=5)


def test_no_colour_of_the_background_is_left() -> None:
    prepared = prepare(cutout(100, 80, (30, 20, 70, 60)), canvas=128)
    assert prepared[0, 0].tolist() == [0, 0, 0]
    assert prepared[..., 2].max() < 20


@pytest.mark.parametrize("size", [(1, 5_000), (30_000, 2)])
def test_a_line_of_a_picture_is_scaled_to_four_canvases_at_most(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    resize = Image.Image.resize

    def noted(self: Image.Image, size: tuple[int, int], *options: Any) -> Image.Image:
        sizes.append(size)
        return resize(self, size, *options)

    monkeypatch.setattr(Image.Image, "resize", noted)
    width, height = size
    picture = cutout(width, height, (width // 4, height // 4, width, height))
    assert prepare(picture, canvas=64).shape == (64, 64, 3)
    assert max(max(size) for size in sizes) == 256


def test_a_palette_with_transparency_counts_as_cut_out() -> None:
    rgba = Image.fromarray(cutout(60, 60, (10, 10, 50, 50)))
    palette = rgba.quantize(4)
    assert palette.mode == "P"
    assert seen_box(prepare(palette, canvas=96)) == seen_box(prepare(rgba, canvas=96))


@pytest.mark.parametrize(
    "box",
    [(0, 0, 0, 0), (20, 20, 21, 40), (20, 20, 40, 21)],
    ids=["empty", "upright line", "level line"],
)
def test_what_is_transparent_after_the_erosion_shows_no_object(
    box: tuple[int, int, int, int],
) -> None:
    with pytest.raises(NoObject, match="transparent throughout, or shows only lines thinner than"):
        prepare(cutout(64, 64, box), canvas=32)


def test_a_single_pixel_is_no_object() -> None:
    with pytest.raises(NoObject, match="no object was found"):
        prepare(cutout(64, 64, (20, 20, 21, 21)), canvas=64, erode_radius=0)


def test_an_opaque_picture_shows_no_object() -> None:
    with pytest.raises(NoObject, match=r"opaque throughout.*remove its background first"):
        prepare(cutout(40, 30, (0, 0, 40, 30)), canvas=64)


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (Image.new("RGB", (8, 8)), r"no transparency \(mode RGB\), expected RGBA"),
        (np.zeros((8, 8, 3), np.uint8), r"uint8 and has shape \(8, 8, 3\).*\(height, width, 4\)"),
        (np.zeros((8, 8, 4), np.float32), "holds float32"),
        (Image.new("RGBA", (0, 8)), "is 0 x 8 pixels"),
    ],
    ids=["no alpha", "three channels", "floats", "empty"],
)
def test_what_is_no_cut_out_is_refused(
    picture: Image.Image | NDArray[np.uint8], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        prepare(picture)


def test_the_canvas_is_the_models() -> None:
    config = json.loads((GOLDEN.parent / "config.json").read_text())
    assert config["canvas"] == CANVAS
