"""Before a plain wall the pixels show the object; where they leave a doubt there is no mask."""

import time

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from generation.pictures.cutout import BackgroundRemover
from generation.pictures.flux1 import Flux1
from generation.pictures.plain_border import LARGEST_NOISE, LARGEST_SLOPE, plain_border_mask
from generation.presets import preset
from generation.weights.store import ModelPaths

SIDE = 256
WALL, RED = (214, 218, 222), (180, 40, 30)
CENTRED = (60, 70, 190, 200)
Box = tuple[float, float, float, float]


def _coverage(*boxes: Box, side: int = SIDE) -> NDArray[np.float64]:
    """Share of each pixel that ellipses in these boxes cover."""
    fine = Image.new("L", (side * 8, side * 8))
    for box in boxes:
        ImageDraw.Draw(fine).ellipse([8 * edge for edge in box], fill=255)
    return np.asarray(fine.resize((side, side), Image.Resampling.BOX)) / 255


def _picture(
    coverage: NDArray[np.float64],
    colour: tuple[int, int, int] = RED,
    wall: tuple[int, int, int] = WALL,
    *,
    slope: float = 0.0,
    noise: float = 0.0,
) -> Image.Image:
    """An object before a wall that gets lighter from left to right."""
    side = len(coverage)
    background = np.array(wall) + slope * np.linspace(-1, 1, side)[None, :, None]
    pixels = background + coverage[..., None] * (np.array(colour) - background)
    pixels = pixels + np.random.default_rng(0).normal(0, max(noise, 1e-6), (side, side, 3))
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


def _mask(image: Image.Image) -> NDArray[np.uint8]:
    mask = plain_border_mask(image)
    assert mask is not None
    assert (mask.mode, mask.size) == ("L", image.size)
    return np.asarray(mask)


def _overlap(mask: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    return float((mask & truth).sum() / (mask | truth).sum())


@pytest.mark.parametrize(
    ("slope", "noise"), [(0.0, 0.0), (0.9 * LARGEST_SLOPE, 0.0), (0.0, 3.0), (-15.0, 2.0)]
)
def test_the_object_before_a_plain_wall_is_found(slope: float, noise: float) -> None:
    coverage = _coverage(CENTRED)
    mask = _mask(_picture(coverage, slope=slope, noise=noise))
    assert _overlap(mask > 127, coverage > 0.5) > 0.99
    assert mask[coverage == 0].max() <= 40
    assert mask[coverage == 0].mean() < 0.1


def test_a_pixel_at_the_outline_is_as_opaque_as_it_is_covered() -> None:
    coverage = _coverage(CENTRED)
    mask = _mask(_picture(coverage))
    mixed = (coverage > 0.1) & (coverage < 0.9)
    assert np.abs(mask[mixed] / 255 - coverage[mixed]).max() < 0.05
    assert (mask[coverage == 1] == 255).all()
    assert (mask[coverage == 0] == 0).all()


def test_two_objects_are_both_found() -> None:
    coverage = _coverage((20, 60, 110, 150), (140, 90, 230, 200))
    assert _overlap(_mask(_picture(coverage)) > 127, coverage > 0.5) > 0.99


def test_dust_before_the_wall_is_left_out() -> None:
    image = _picture(_coverage(CENTRED))
    image.putpixel((20, 20), (0, 0, 0))
    image.paste((90, 90, 90), (230, 230, 233, 233))
    assert _mask(image)[:60].max() == 0
    assert _mask(image)[:, 215:].max() == 0


def test_a_small_inner_part_in_the_colour_of_the_wall_stays() -> None:
    hub = _coverage((120, 130, 132, 142))
    mask = _mask(_picture(_coverage(CENTRED) - hub))
    assert (mask[hub > 0] == 255).all()


def _floor(image: Image.Image) -> None:
    image.paste((150, 140, 130), (0, 200, SIDE, SIDE))


def _texture(image: Image.Image) -> None:
    stripes = np.arange(SIDE) // 4 % 2 * 20
    pixels = np.asarray(image) - stripes[None, :, None]
    image.paste(Image.fromarray(pixels.astype(np.uint8)))


def _soft_shadow(image: Image.Image) -> None:
    shadow = Image.new("L", image.size)
    ImageDraw.Draw(shadow).ellipse((60, 180, 220, 225), fill=110)
    shadow = shadow.filter(ImageFilter.GaussianBlur(8))
    black = Image.new("RGB", image.size)
    before = image.copy()
    image.paste(black, (0, 0), shadow)
    image.paste(before, (0, 0), Image.fromarray((_coverage(CENTRED) * 255).astype(np.uint8)))


@pytest.mark.parametrize("spoil", [_floor, _texture, _soft_shadow])
def test_a_border_or_surrounding_that_is_not_plain_gives_no_mask(spoil: object) -> None:
    image = _picture(_coverage(CENTRED))
    assert plain_border_mask(image) is not None
    spoil(image)  # type: ignore[operator]
    assert plain_border_mask(image) is None


@pytest.mark.parametrize(
    ("slope", "noise"), [(1.3 * LARGEST_SLOPE, 0.0), (0.0, 1.5 * LARGEST_NOISE)]
)
def test_a_steep_gradient_and_strong_noise_give_no_mask(slope: float, noise: float) -> None:
    assert plain_border_mask(_picture(_coverage(CENTRED), slope=slope, noise=noise)) is None


@pytest.mark.parametrize("box", [(-40, 60, 120, 200), (60, 150, 190, 300), (100, -5, 110, 100)])
def test_an_object_that_touches_the_border_gives_no_mask(box: Box) -> None:
    assert plain_border_mask(_picture(_coverage(box))) is None


@pytest.mark.parametrize("lighter", [4, 8, 15])
def test_an_object_almost_as_light_as_the_wall_gives_no_mask(lighter: int) -> None:
    white = tuple(level + lighter for level in (240, 240, 240))
    image = _picture(_coverage(CENTRED), white, (240, 240, 240), noise=1.0)  # type: ignore[arg-type]
    assert plain_border_mask(image) is None


def test_an_object_partly_as_light_as_the_wall_gives_no_mask() -> None:
    shades = ((np.arange(SIDE) - 60) / 130).clip(0, 1)  # at its left edge, the wall's colour
    assert plain_border_mask(_picture(shades * _coverage(CENTRED))) is None


def test_a_hole_gives_no_mask_as_it_could_also_be_an_inner_part() -> None:
    handle = _coverage((60, 70, 190, 200)) - _coverage((95, 105, 155, 165))
    assert plain_border_mask(_picture(handle)) is None


def test_nothing_a_speck_everything_and_a_tiny_picture_give_no_mask() -> None:
    empty = _picture(_coverage(), noise=1.0)
    assert plain_border_mask(empty) is None
    speck = _picture(_coverage((100, 100, 104, 104)))
    assert plain_border_mask(speck) is None
    assert plain_border_mask(speck, min_coverage=0.0) is not None
    everything = Image.new("RGB", (SIDE, SIDE), WALL)
    everything.paste(RED, (7, 7, SIDE - 7, SIDE - 7))
    assert plain_border_mask(everything) is None
    assert plain_border_mask(Image.new("RGB", (20, 20), WALL)) is None


def test_a_picture_of_any_shape_is_read() -> None:
    wide = Image.new("RGB", (400, 120), WALL)
    wide.paste(RED, (150, 30, 250, 90))
    assert (_mask(wide) > 0).sum() == 100 * 60


def test_512_pixels_take_less_than_15_ms_of_one_core() -> None:
    image = _picture(_coverage((100, 120, 400, 420), side=512), noise=2.0)
    seconds = []
    for _ in range(7):
        start = time.thread_time()
        plain_border_mask(image)
        seconds.append(time.thread_time() - start)
    assert min(seconds) < 0.015


def test_shipped_pictures_are_cut_out_as_by_the_shipped_network(
    embedded_paths: ModelPaths,
) -> None:
    settings = preset("embedded")
    draw = Flux1.from_pretrained(embedded_paths.text_to_image, settings.text_to_image, "cpu")
    network = BackgroundRemover(embedded_paths.cutout, settings.cutout)
    prompts = ("a red car", "a blue cube", "a green chair", "a purple ball", "a grey house")
    found = 0
    for seed, prompt in enumerate(prompts):
        picture = draw(prompt, seed)
        mask = plain_border_mask(picture)
        if mask is not None:
            found += 1
            expected = np.asarray(network.remove(picture).getchannel("A")) > 127
            assert _overlap(np.asarray(mask) > 127, expected) > 0.97
    assert found >= 3
