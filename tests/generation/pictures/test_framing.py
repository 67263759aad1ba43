"""Foreground resize and grey compositing equal TripoSR's own preparation, byte for byte."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from generation.errors import GenerationError
from generation.pictures.framing import composite_on_grey, resize_foreground

PREP = Path(__file__).parents[2] / "golden" / "triposr" / "prep"


def test_foreground_resize_equals_the_reference() -> None:
    found = resize_foreground(Image.open(PREP / "input_rgba.png"), 0.85)
    expected = Image.open(PREP / "expected_rgba.png")
    assert (found.mode, found.size) == (expected.mode, expected.size)
    assert np.array_equal(np.asarray(found), np.asarray(expected))


def test_compositing_equals_the_reference() -> None:
    found = composite_on_grey(Image.open(PREP / "expected_rgba.png"))
    expected = Image.open(PREP / "expected_rgb.png")
    assert (found.mode, found.size) == (expected.mode, expected.size)
    assert np.array_equal(np.asarray(found), np.asarray(expected))


def test_opaque_pixels_keep_every_value() -> None:
    pixels = np.full((16, 16, 4), 255, dtype=np.uint8)
    pixels[..., 0] = np.arange(256).reshape(16, 16)
    found = np.asarray(composite_on_grey(Image.fromarray(pixels)))
    assert np.array_equal(found, pixels[..., :3])


def test_every_colour_under_every_alpha_is_blended_in_single_precision() -> None:
    colours, alphas = np.meshgrid(np.arange(256), np.arange(256))
    pixels = np.stack([colours, 255 - colours, colours, alphas], axis=-1).astype(np.uint8)
    scaled = pixels.astype(np.float32) / 255
    alpha = scaled[..., 3:]
    expected = ((scaled[..., :3] * alpha + 0.5 * (1 - alpha)) * 255).astype(np.uint8)
    assert np.array_equal(np.asarray(composite_on_grey(Image.fromarray(pixels))), expected)


def test_the_background_is_127() -> None:
    grey = np.asarray(composite_on_grey(Image.new("RGBA", (4, 4), (255, 0, 0, 0))))
    assert (grey == 127).all()


@pytest.mark.parametrize("ratio", [0.5, 0.85, 1.0])
@pytest.mark.parametrize("box", [(10, 20, 30, 80), (0, 0, 100, 40), (5, 5, 7, 7)])
def test_the_object_takes_its_share_of_a_square(
    box: tuple[int, int, int, int], ratio: float
) -> None:
    image = Image.new("RGBA", (100, 100))
    image.paste((200, 100, 50, 255), box)
    found = np.asarray(resize_foreground(image, ratio))
    longest = max(box[2] - box[0], box[3] - box[1]) - 1
    assert found.shape == (int(longest / ratio), int(longest / ratio), 4)
    rows, columns = np.nonzero(found[..., 3])
    for places in (rows, columns):
        before, after = places.min(), len(found) - 1 - places.max()
        assert abs(before - after) <= 2
    opaque = (found[..., 3] == 255).sum()
    assert opaque == (box[2] - box[0] - 1) * (box[3] - box[1] - 1)


@pytest.mark.parametrize("size", [(0, 0), (1, 1), (1, 30)])
def test_nothing_to_frame_is_an_error(size: tuple[int, int]) -> None:
    image = Image.new("RGBA", (40, 40))
    image.paste((255, 255, 255, 255), (3, 3, 3 + size[0], 3 + size[1]))
    with pytest.raises(GenerationError, match="no foreground"):
        resize_foreground(image)
