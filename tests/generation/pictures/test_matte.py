"""Which pictures count as cut out, and what dust, haze and marks do to an object's frame."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from generation.errors import NoObject
from generation.pictures.cutout import BackgroundRemover
from generation.pictures.framing import resize_foreground
from generation.pictures.matte import object_box, opacity, outlines_object
from generation.settings import CutoutSettings
from generation.weights.store import ModelPaths
from protocol.images import decode_image
from tests.support.pictures import case

SIDE = 512
Levels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def remover(embedded_paths: ModelPaths) -> BackgroundRemover:
    return BackgroundRemover(embedded_paths.cutout, CutoutSettings())


def ball(level: int = 255, background: int = 0) -> Image.Image:
    alpha = Image.new("L", (SIDE, SIDE), background)
    ImageDraw.Draw(alpha).ellipse((180, 200, 330, 350), fill=level)
    return alpha


def rounded(
    radius: int, box: tuple[int, int, int, int] = (0, 0, SIDE - 1, SIDE - 1)
) -> Image.Image:
    alpha = Image.new("L", (SIDE, SIDE))
    ImageDraw.Draw(alpha).rounded_rectangle(box, radius, fill=255)
    return alpha


def boxed(box: tuple[int, int, int, int], level: int = 255, outside: int = 0) -> Image.Image:
    alpha = Image.new("L", (SIDE, SIDE), outside)
    alpha.paste(level, box)
    return alpha


def vignette() -> Image.Image:
    axis = np.linspace(-1, 1, SIDE)
    away = np.hypot(*np.meshgrid(axis, axis))
    return Image.fromarray((255 * np.clip(1.35 - away, 0, 1)).astype(np.uint8))


def corners() -> Image.Image:
    alpha = Image.new("L", (SIDE, SIDE), 255)
    for x in (0, SIDE - 1):
        for y in (0, SIDE - 1):
            alpha.putpixel((x, y), 0)
    return alpha


def drawn(draw: Callable[[ImageDraw.ImageDraw], None], base: Image.Image | None = None) -> Levels:
    alpha = base or ball()
    draw(ImageDraw.Draw(alpha))
    return np.asarray(alpha)


PHOTOS = {
    "opaque throughout": Image.new("L", (SIDE, SIDE), 255),
    "254 throughout": Image.new("L", (SIDE, SIDE), 254),
    "half transparent throughout": Image.new("L", (SIDE, SIDE), 120),
    "four corner pixels": corners(),
    "rounded corners": rounded(30),
    "an icon's round corners": rounded(110),
    "a border of one pixel": boxed((1, 1, SIDE - 1, SIDE - 1)),
    "margins": boxed((8, 8, SIDE - 8, SIDE - 8)),
    "bars above and below": boxed((0, 90, SIDE, SIDE - 90)),
    "bars with haze": boxed((0, 90, SIDE, SIDE - 90), outside=5),
    "vignette": vignette(),
    "a hole": ImageChops.invert(ball()),
}

CUTOUTS = {
    "a ball": ball(),
    "a ball in haze": ball(background=8),
    "a soft ball": ball().filter(ImageFilter.GaussianBlur(4)),
    "a ball of glass": ball(level=150),
    "a square": boxed((0, 0, 210, 210)),
    "a bust at the lower edge": boxed((120, 150, 400, SIDE)),
    "a close crop": rounded(250),
    "a thin pole": boxed((250, 0, 262, SIDE)).rotate(20),
}


@pytest.mark.parametrize("name", PHOTOS)
def test_transparency_that_outlines_nothing_is_no_cut_out(name: str) -> None:
    alpha = np.asarray(PHOTOS[name])
    assert not outlines_object(alpha, opacity(alpha, 0.001))


@pytest.mark.parametrize("name", CUTOUTS)
def test_transparency_around_an_object_is_a_cut_out(name: str) -> None:
    alpha = np.asarray(CUTOUTS[name])
    assert outlines_object(alpha, opacity(alpha, 0.001))


def test_one_pixel_of_254_does_not_switch_the_removal_off(remover: BackgroundRemover) -> None:
    plain = remover(decode_image(case("photo_opaque.png")))
    dotted = remover(decode_image(case("photo_one_pixel_alpha254.png")))
    assert plain.tobytes() == dotted.tobytes()
    assert plain.size != (602, 602)  # the whole picture was not framed as the object


def test_margins_are_taken_off_before_the_background(remover: BackgroundRemover) -> None:
    photo = decode_image(case("photo_opaque.png"))
    wide = Image.new("RGBA", (photo.width, photo.height + 200))
    wide.paste(photo, (0, 100))
    assert remover(wide).tobytes() == remover(photo).tobytes()


@pytest.mark.parametrize("level", [0, 8, 25])
def test_a_picture_that_shows_nothing_is_refused_with_a_reason(
    remover: BackgroundRemover, level: int
) -> None:
    image = Image.new("RGBA", (64, 64), (200, 30, 30, level))
    with pytest.raises(NoObject, match=r"no foreground was found in the image: 0\.000% of its"):
        remover(image)


def test_an_object_that_is_translucent_as_a_whole_becomes_opaque(
    remover: BackgroundRemover,
) -> None:
    faded = Image.new("RGBA", (SIDE, SIDE), (10, 200, 30, 0))
    faded.putalpha(ball(level=100))
    alpha = np.asarray(remover(faded).getchannel("A"))
    assert alpha.max() == 255


def test_dust_far_off_changes_neither_frame_nor_object(remover: BackgroundRemover) -> None:
    clean = remover(decode_image(case("cutout_clean.png")))
    dusty = remover(decode_image(case("cutout_two_dust_pixels.png")))
    assert clean.tobytes() == dusty.tobytes()


@pytest.mark.parametrize(
    ("name", "alpha"),
    [
        ("two opaque pixels", drawn(lambda draw: draw.point([(3, 3), (508, 508)], fill=255))),
        ("haze", np.asarray(ball(background=8))),
        ("denser haze", np.asarray(ball(background=20))),
        (
            "haze at one side",
            np.maximum(np.asarray(ball()), np.asarray(boxed((0, 0, 140, 512), 8))),
        ),
        ("a line", drawn(lambda draw: draw.line([(0, 508), (511, 508)], fill=255))),
        ("a slanted line", drawn(lambda draw: draw.line([(0, 300), (120, 511)], fill=255))),
        ("a frame", drawn(lambda draw: draw.rectangle((0, 0, 511, 511), outline=255))),
        ("a mark in the corner", drawn(lambda draw: draw.text((440, 490), "(c) me", fill=255))),
        ("a faint mark", drawn(lambda draw: draw.rectangle((440, 480, 480, 500), fill=90))),
    ],
)
def test_what_is_no_body_of_the_object_does_not_move_its_frame(name: str, alpha: Levels) -> None:
    assert object_box(alpha) == (180, 200, 331, 351)


@pytest.mark.parametrize(
    ("name", "alpha", "box"),
    [
        (
            "two chairs",
            drawn(lambda draw: draw.rectangle((20, 250, 90, 350), fill=255)),
            (20, 200, 331, 351),
        ),
        (
            "a cup beside a plate",
            drawn(lambda draw: draw.ellipse((400, 300, 440, 340), fill=255)),
            (180, 200, 441, 351),
        ),
        (
            "an aerial on the body",
            drawn(lambda draw: draw.line([(255, 40), (255, 220)], fill=255)),
            (180, 40, 331, 351),
        ),
        (
            "wires alone",
            drawn(
                lambda draw: draw.line([(50, 60), (400, 60), (400, 420), (50, 420)], fill=255),
                Image.new("L", (SIDE, SIDE)),
            ),
            (50, 60, 401, 421),
        ),
    ],
)
def test_every_body_of_the_object_is_inside_its_frame(
    name: str, alpha: Levels, box: tuple[int, int, int, int]
) -> None:
    assert object_box(alpha) == box


def test_a_soft_edge_belongs_to_the_object() -> None:
    alpha = np.zeros((60, 60), dtype=np.uint8)
    alpha[20:40, 20:40] = 255
    alpha[19, 25:35], alpha[18, 28:32] = 20, 3
    assert object_box(alpha) == (20, 18, 40, 40)


def test_nothing_but_haze_has_no_box() -> None:
    assert object_box(np.full((40, 40), 25, dtype=np.uint8)) is None
    hazy = Image.new("RGBA", (40, 40), (9, 9, 9, 20))
    with pytest.raises(NoObject):
        resize_foreground(hazy)
