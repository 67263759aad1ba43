"""What DreamGaussian makes is measured like what the others make, and runs add up."""

from pathlib import Path

from PIL import Image

from scripts.train_embedded import evaluate_dream
from scripts.train_embedded.evaluate_dream import ALONE, GUIDED, TRIPOSR, WAYS, Result
from scripts.train_embedded.prompts import COLOUR_NAMES, OBJECT_NAMES
from scripts.train_embedded.true_views import draw_example
from scripts.train_embedded.views import exact_views


def result(number: int, way: str, iou: float, shape: str = "cube") -> Result:
    return Result(number, way, shape, number % 2 == 0, iou, 20.0 + iou, 2.0 * number, valid=True)


def test_the_table_has_a_line_for_every_way_that_was_measured() -> None:
    measured = [result(n, way, 0.5 + 0.1 * n) for n in range(2) for way in (TRIPOSR, GUIDED)]
    lines = evaluate_dream.table(measured).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line]
    assert cells[2] == [TRIPOSR, "50.0%", "0.550", "0.550", "20.55 dB", "1.0", "2.0", "100%"]
    assert cells[3][0] == GUIDED
    # Kinds are compared only where all ways are there.
    assert len(cells) == 6
    everything = [result(0, way, 0.25) for way in WAYS]
    assert evaluate_dream.table(everything).splitlines()[-1] == (
        "| cube | 0.25 | 0.25 | 0.25 | 0.25 |"
    )


def test_the_grid_shows_the_first_example_of_every_kind(tmp_path: Path) -> None:
    results, side = [], 96
    for number, shape in enumerate(("cube", "cube", "car")):
        Image.new("RGB", (side, side), (80 * number, 0, 0)).save(tmp_path / f"{number:02}.png")
        for way in WAYS[:-1]:
            results.append(result(number, way, 0.5, shape))
            picture = Image.new("RGB", (3 * side, side), (0, 80 * number, 0))
            picture.save(tmp_path / f"{number:02}-{way}.png")
    evaluate_dream.draw_grid(results, tmp_path)
    with Image.open(tmp_path / "back-ends.png") as opened:
        grid = opened.convert("RGB")
    assert grid.size == (10 * side, 2 * side)
    assert grid.getpixel((5, 5)) == (0, 0, 0)
    assert grid.getpixel((5, side + 5)) == (160, 0, 0)
    assert grid.getpixel((10 * side - 5, side + 5)) == (0, 160, 0)


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    assert evaluate_dream.read_results(tmp_path / "results.json") == []
    written = [result(0, way, 0.3) for way in WAYS]
    evaluate_dream.write_results(written, tmp_path / "results.json")
    assert evaluate_dream.read_results(tmp_path / "results.json") == written


def test_a_dream_is_compared_with_its_object() -> None:
    example = draw_example(2, OBJECT_NAMES.index("sphere"), COLOUR_NAMES.index("red"), 64)
    exact = exact_views(example.solid, example.colours[0])
    cloud = evaluate_dream.dream_of(example, None, steps=2, seed=1)
    found = evaluate_dream.measure(7, ALONE, example, "red", exact, cloud, 1.5)
    assert (found.number, found.way, found.shape, found.seconds) == (7, ALONE, "sphere", 1.5)
    # Two steps leave a grey ball, which is nearly a sphere.
    assert not found.named
    assert found.valid
    assert found.iou > 0.7
    assert 5 < found.psnr < 20
