"""The scorer of the preset `embedded` tells what was asked for from what was not."""

import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from generation.pictures.framing import composite_on_grey, resize_foreground
from generation.presets import preset
from generation.scoring import embedded
from generation.scoring.embedded import EmbeddedScorer, ScorerNetwork
from generation.scoring.validity import check
from generation.stage import Asset, Cutout
from protocol import spz
from protocol.errors import SetupError
from protocol.gaussians import SH_C0
from protocol.tasks import ImageTask, TextTask
from scripts.benchmarks.rendering import sphere
from scripts.train_embedded.evaluate import picture_of
from scripts.train_embedded.lifted import exact_picture
from scripts.train_embedded.objects import SHAPES
from scripts.train_embedded.palette import COLOURS
from scripts.train_embedded.prompts import COLOUR_NAMES, OBJECT_NAMES, held_out_pairs
from scripts.train_embedded.shading import Light
from tests.support.pictures import encoded

THRESHOLD = 0.6
PAIRS = ["red car", "white tree", "cyan tree", "blue house", "purple house", "green mug"]
"""Half of them were held out from every network."""


@pytest.fixture(scope="module")
def scorer() -> EmbeddedScorer:
    return embedded.load(preset("embedded"), None, torch.device("cpu"))


@pytest.fixture(scope="module")
def red_sphere() -> Asset:
    return painted_sphere("red")


def painted_sphere(colour: str, count: int = 20_000) -> Asset:
    """An exact sphere, painted in the canonical light of the world."""
    cloud = sphere(count)
    # The subnet's (x, y, z) is the world's (y, z, x).
    normals = torch.from_numpy(cloud.colors_dc)[:, [2, 0, 1]]
    shade = Light.canonical(1, "cpu").shade(normals[None])[0, :, None].numpy()
    rgb = (np.array(COLOURS[colour]) * shade).clip(0, 1)
    cloud = replace(cloud, colors_dc=((rgb - 0.5) / SH_C0).astype(np.float32))
    return Asset(cloud, spz.encode(cloud), check(cloud))


def text(prompt: str) -> TextTask:
    return TextTask(id="t", prompt=prompt)


def numbers(pair: str) -> tuple[int, int]:
    colour, shape = pair.split()
    return COLOUR_NAMES.index(colour), OBJECT_NAMES.index(shape)


@cache
def drawn(pair: str) -> tuple[Image.Image, Cutout]:
    """The exact picture of a pair, and its exact cut-out, framed."""
    image, rgba = exact_picture(*numbers(pair), seed=7, size=128)
    framed = resize_foreground(picture_of(rgba))
    picture = picture_of(image)
    grey = composite_on_grey(framed)
    return picture, Cutout(np.asarray(picture), np.asarray(framed), np.asarray(grey))


def test_half_of_the_pairs_here_were_held_out() -> None:
    assert sum(numbers(pair) in held_out_pairs() for pair in PAIRS) == 3


@pytest.mark.parametrize("pair", PAIRS)
def test_an_exact_picture_scores_above_the_threshold_for_its_words_alone(
    scorer: EmbeddedScorer, pair: str
) -> None:
    _, cutout = drawn(pair)
    colour, shape = pair.split()
    assert scorer.rate(cutout, text(f"a {pair}")) >= THRESHOLD
    others = [name for name in COLOUR_NAMES if name != colour]
    assert max(scorer.rate(cutout, text(f"a {o} {shape}")) for o in others) < THRESHOLD
    others = [name for name in OBJECT_NAMES if name != shape]
    assert max(scorer.rate(cutout, text(f"a {colour} {o}")) for o in others) < THRESHOLD


def test_a_cloud_scores_above_the_threshold_for_its_words_alone(
    scorer: EmbeddedScorer, red_sphere: Asset
) -> None:
    score = scorer.score(red_sphere, text("a red sphere"))
    assert score.value >= THRESHOLD
    assert set(score.parts) == {"colour", "object"}
    assert (score.scorer, score.problem) == ("embedded", "")
    assert scorer.score(red_sphere, text("a blue sphere")).value < 0.1
    assert scorer.score(red_sphere, text("a red cube")).value < 0.1


def test_the_same_asset_has_the_same_score(scorer: EmbeddedScorer, red_sphere: Asset) -> None:
    task = text("a red sphere")
    again = embedded.load(preset("embedded"), None, torch.device("cpu"))
    assert scorer.score(red_sphere, task) == again.score(red_sphere, task)


def test_a_shape_with_a_piece_missing_scores_lower(
    scorer: EmbeddedScorer, red_sphere: Asset
) -> None:
    cloud = red_sphere.cloud
    left = cloud.positions[:, 0] < 0.25
    halved = replace(cloud, **{name: rows[left] for name, rows in vars(cloud).items()})
    task = text("a red sphere")
    asset = Asset(halved, spz.encode(halved), check(halved))
    assert scorer.score(asset, task).value < scorer.score(red_sphere, task).value - 0.1


@pytest.mark.parametrize(
    "same", ["red spheres", "a CRIMSON ball!", "a red orb on a blue background"]
)
def test_other_words_for_the_same_thing_give_the_same_score(
    scorer: EmbeddedScorer, red_sphere: Asset, same: str
) -> None:
    expected = scorer.score(red_sphere, text("a red sphere"))
    assert scorer.score(red_sphere, text(same)) == expected


def test_only_what_a_prompt_names_counts(scorer: EmbeddedScorer, red_sphere: Asset) -> None:
    both = scorer.score(red_sphere, text("a red sphere")).parts
    colour = scorer.score(red_sphere, text("something red"))
    shape = scorer.score(red_sphere, text("a shiny sphere"))
    assert colour.parts == {"colour": both["colour"]}
    assert shape.parts == {"object": both["object"]}
    assert scorer.score(red_sphere, text("something blue")).value < 0.1


def test_of_several_colours_or_objects_the_best_counts(
    scorer: EmbeddedScorer, red_sphere: Asset
) -> None:
    expected = scorer.score(red_sphere, text("a red sphere"))
    assert scorer.score(red_sphere, text("a blue and red sphere")) == expected
    assert scorer.score(red_sphere, text("a red cube on a sphere")) == expected


def test_a_prompt_without_a_known_word_asks_for_anything_of_this_world(
    scorer: EmbeddedScorer, red_sphere: Asset
) -> None:
    assert scorer.wanted(text("a dragon")) == embedded.Wanted(tuple(range(12)), tuple(range(16)))
    expected = scorer.score(red_sphere, text("a red sphere"))
    assert scorer.score(red_sphere, text("a dragon")) == expected


@pytest.mark.parametrize("transparent", [False, True])
def test_a_picture_asks_for_what_it_shows(
    scorer: EmbeddedScorer, red_sphere: Asset, transparent: bool
) -> None:
    def task(pair: str) -> ImageTask:
        picture, cutout = drawn(pair)
        shown = Image.fromarray(cutout.rgba) if transparent else picture
        return ImageTask(id="i", image=encoded(shown, "PNG"))

    assert scorer.wanted(task("red sphere")) == embedded.Wanted(
        (COLOUR_NAMES.index("red"),), (OBJECT_NAMES.index("sphere"),)
    )
    assert scorer.score(red_sphere, task("red sphere")).value >= THRESHOLD
    assert scorer.score(red_sphere, task("blue sphere")).value < 0.1
    assert scorer.score(red_sphere, task("red cube")).value < 0.1


def test_a_picture_that_cannot_be_cut_out_asks_for_anything(scorer: EmbeddedScorer) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    task = ImageTask(id="i", image=encoded(Image.fromarray(noise), "PNG"))
    assert scorer.wanted(task) == scorer.wanted(text("a dragon"))


def test_an_asset_that_fails_the_data_checks_scores_0(scorer: EmbeddedScorer) -> None:
    score = scorer.score(painted_sphere("red", 6_999), text("a red sphere"))
    assert score.value == 0
    assert "gaussians" in score.problem


def test_a_file_that_cannot_be_read_scores_0(scorer: EmbeddedScorer, red_sphere: Asset) -> None:
    broken = replace(red_sphere, spz=red_sphere.spz[:100])
    score = scorer.score(broken, text("a red sphere"))
    assert score.value == 0
    assert score.problem


def test_colour_does_not_depend_on_where_it_is_nor_shape_on_colour() -> None:
    torch.manual_seed(0)
    network = ScorerNetwork(12, 16)
    views = torch.rand(2, 3, 4, 64, 64)
    moved = views.roll((8, 20), dims=(3, 4))
    torch.testing.assert_close(network(moved).colours, network(views).colours)
    assert not torch.allclose(network(moved).objects, network(views).objects, atol=1e-3)
    repainted = views[:, :, [2, 0, 1, 3]]
    torch.testing.assert_close(network(repainted).objects, network(views).objects)
    torch.testing.assert_close(network(repainted).likeness, network(views).likeness)
    assert not torch.allclose(network(repainted).colours, network(views).colours, atol=1e-4)


def test_the_shipped_scorer_is_under_1_megabyte() -> None:
    assert 0 < sum(file.stat().st_size for file in embedded.FOLDER.iterdir()) < 1_000_000


def test_the_shipped_scorer_knows_the_words_of_its_preset() -> None:
    content = (embedded.FOLDER / embedded.CONFIG_NAME).read_bytes()
    config = embedded.ScorerConfig.model_validate_json(content)
    assert tuple(config.colours) == COLOUR_NAMES
    assert config.objects == {shape.name: shape.synonyms for shape in SHAPES}
    words = {*config.colours, *config.objects}
    words |= {w for group in (config.colours, config.objects) for ws in group.values() for w in ws}
    assert words == set(preset("embedded").vocabulary)


@pytest.mark.parametrize("file", [embedded.CONFIG_NAME, embedded.WEIGHTS_NAME])
@pytest.mark.parametrize("damage", ["missing", "cut", "of another scorer"])
def test_a_damaged_scorer_is_refused(tmp_path: Path, file: str, damage: str) -> None:
    folder = tmp_path / "scorer"
    shutil.copytree(embedded.FOLDER, folder)
    damaged = folder / file
    if damage == "missing":
        damaged.unlink()
    elif damage == "cut":
        damaged.write_bytes(damaged.read_bytes()[:-200])
    else:
        config = embedded.ScorerConfig(colours={"red": ()}, objects={"cube": ()}, exponent=1)
        embedded.write(ScorerNetwork(1, 1), config, tmp_path / "other")
        shutil.copy(tmp_path / "other" / file, damaged)
    with pytest.raises(SetupError, match="no scorer could be loaded"):
        embedded.read(folder, torch.device("cpu"))
