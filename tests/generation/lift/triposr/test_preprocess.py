from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from generation.lift.triposr import TripoSR
from generation.lift.triposr.preprocess import image_to_tensor


@pytest.mark.parametrize(
    ("source", "size", "expected"),
    [
        ("expected_rgb.png", 96, "resized_96.npy"),
        ("expected_rgb.png", 32, "resized_32.npy"),
        ("input_rgba.png", 48, "resized_nonsquare_48.npy"),
    ],
)
@pytest.mark.parametrize("as_array", [False, True])
def test_resampling_is_the_references(
    golden: Path, source: str, size: int, expected: str, as_array: bool
) -> None:
    image = Image.open(golden / "prep" / source).convert("RGB")
    found = image_to_tensor(np.asarray(image) if as_array else image, size)
    assert found.shape == (1, 3, size, size)
    reference = np.load(golden / "prep" / expected)
    assert np.abs(found[0].permute(1, 2, 0).numpy() - reference).max() <= 1e-6


def test_a_tensor_is_resampled_as_its_array_is(golden: Path) -> None:
    image = np.array(Image.open(golden / "prep" / "expected_rgb.png").convert("RGB"))
    found = image_to_tensor(torch.from_numpy(image), 32)
    assert torch.equal(found, image_to_tensor(image, 32))


@pytest.mark.parametrize("tensor", [torch.zeros(4, 4, 3), torch.zeros(3, 4, 4).byte()])
def test_other_tensors_are_refused(tensor: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"a tensor of torch\..*expected torch\.uint8"):
        image_to_tensor(tensor, 8)


def test_the_right_size_is_returned_bit_for_bit(golden: Path) -> None:
    image = np.load(golden / "tiny" / "input.npy")
    found = image_to_tensor(image, 96)
    assert np.array_equal(found[0].permute(1, 2, 0).numpy(), image)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.new("RGBA", (4, 4)), "transparency .* lay it over grey"),
        (np.zeros((4, 4), np.float32), r"shape \(4, 4\), expected"),
        (np.zeros((4, 4, 4), np.float32), r"shape \(4, 4, 4\), expected"),
        (np.zeros((0, 4, 3), np.float32), r"shape \(0, 4, 3\), expected"),
        (np.full((4, 4, 3), 255.0), "runs from 255.0 to 255.0, expected 0..1"),
        (np.full((4, 4, 3), np.nan), "runs from nan"),
        (np.zeros((4, 4, 3), np.int64), "holds int64, expected"),
    ],
)
def test_other_images_are_refused(tiny: TripoSR, image: Image.Image, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny.scene_codes(image)


def test_grey_and_palette_pictures_are_taken() -> None:
    for mode in ("L", "P"):
        assert image_to_tensor(Image.new(mode, (5, 5)), 8).shape == (1, 3, 8, 8)
