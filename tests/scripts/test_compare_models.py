"""`scripts.compare_models` draws with several models and scores what becomes of the pictures."""

import json
from dataclasses import replace
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from generation.lift import stages_of
from generation.loading import LoadedStages, load
from generation.presets import preset
from generation.stage import StepContext, route
from protocol.errors import SetupError
from protocol.tasks import TextTask
from scripts.compare_models import PROMPTS, main
from scripts.making import comparison
from scripts.making.comparison_sheet import MAX_PROMPTS, MAX_SEEDS, draw_sheet
from tests.support.tiny_networks import save_tiny_klein

QUICK = (
    *("--text_to_image.size", "64", "--text_to_image.steps", "2", "--seeds", "2"),
    *("--splats.max_gaussians", "8000", "--splats.resolution", "32"),
)


@pytest.fixture(scope="module")
def klein(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_klein(tmp_path_factory.mktemp("models") / "tiny-klein")


@pytest.fixture(scope="module")
def compared(klein: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "comparison"
    prompts = out.parent / "prompts.txt"
    prompts.write_text("a red car\na blue cube\n")
    arguments = ["embedded", str(klein), "--prompts", str(prompts), "--out", str(out), *QUICK]
    assert main(arguments) == 0
    return out


def _figures(compared: Path) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads((compared / "comparison.json").read_text())
    return figures


def test_every_picture_of_every_model_is_scored(compared: Path, klein: Path) -> None:
    figures = _figures(compared)
    assert (figures["preset"], figures["scorer"], figures["seeds"]) == ("embedded", "embedded", 2)
    assert list(figures["models"]) == ["embedded", str(klein)]
    for row in figures["models"].values():
        found = [(attempt["prompt"], attempt["seed"]) for attempt in row["attempts"]]
        assert found == [(p, seed) for p in ("a red car", "a blue cube") for seed in (0, 1)]
        assert all(attempt["draw_s"] > 0 for attempt in row["attempts"])
        assert row["made"] == sum(not attempt["problem"] for attempt in row["attempts"])
        for attempt in row["attempts"]:
            assert bool(attempt["parts"]) is not bool(attempt["problem"])


def test_a_model_that_draws_the_prompt_is_ahead_of_one_that_draws_noise(
    compared: Path, klein: Path
) -> None:
    models = _figures(compared)["models"]
    trained, random = models["embedded"], models[str(klein)]
    assert trained["score"] > random["score"]
    assert (trained["ahead"], trained["ahead_error"]) == (0, 0)
    assert random["ahead"] == pytest.approx(random["score"] - trained["score"])
    assert random["ahead_error"] > 0
    assert trained["best"] >= trained["score"]


def test_every_picture_is_a_file_that_its_attempt_names(compared: Path) -> None:
    for row in _figures(compared)["models"].values():
        for attempt in row["attempts"]:
            with Image.open(compared / attempt["picture"]) as picture:
                assert (picture.size, picture.mode) == ((64, 64), "RGB")
    assert len(list(compared.glob("pictures/*/*.png"))) == 8


def test_an_object_that_cannot_be_scored_is_not_counted_as_none(
    klein: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def load_failing(*arguments: Any, **named: Any) -> LoadedStages:
        # All pictures are on the disk before the first one is judged.
        assert len(list(tmp_path.glob("o/pictures/*/*.png"))) == 4
        stages = load(*arguments, **named)
        right, calls = stages.functions["score"], count()

        def score(asset: Any, context: StepContext) -> Any:
            if next(calls) == 0:
                raise ValueError("bad shape")
            return right(asset, context)

        return replace(stages, functions={**stages.functions, "score": score})

    monkeypatch.setattr(comparison, "load", load_failing)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a blue cube\n")
    arguments = ["embedded", str(klein), "--prompts", str(prompts), "--out", str(tmp_path / "o")]
    assert main([*arguments, *QUICK]) == 0
    row = _figures(tmp_path / "o")["models"]["embedded"]
    failed, scored = row["attempts"]
    assert (failed["score"], failed["problem"]) == (None, "")
    assert failed["unscored"] == "score failed: ValueError: bad shape"
    assert scored["score"] > 0
    assert (row["made"], row["unscored"], row["score"]) == (2, 1, scored["score"])
    told = " ".join(capsys.readouterr().out.split())
    assert "count in no mean: 1; the first: score failed: ValueError" in told


def test_means_of_prompts_without_a_score_are_none() -> None:
    def attempt(prompt: str, score: float | None) -> comparison.Attempt:
        return comparison.Attempt(prompt, 0, Path("o/x.png"), 1.0, score)

    rows = {
        "a": [attempt("car", None), attempt("cube", 0.5)],
        "b": [attempt("car", 0.9), attempt("cube", 0.7)],
        "c": [attempt("car", None), attempt("cube", None)],
    }
    figures = comparison._figures(rows, Path("o"))
    assert [figures[name]["score"] for name in "abc"] == [0.5, pytest.approx(0.8), None]
    assert [figures[name]["ahead"] for name in "abc"] == [0, pytest.approx(0.2), None]


def test_a_sheet_shows_the_first_prompts_and_seeds_of_many(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), "red").save(tmp_path / "red.png")
    prompts, seeds = MAX_PROMPTS + 2, MAX_SEEDS + 3
    cells = [(f"{n}", tmp_path / "red.png", "0.5") for n in range(prompts) for _ in range(seeds)]
    with Image.open(BytesIO(draw_sheet({"klein": cells}))) as sheet:
        assert sheet.size == (MAX_SEEDS * 160 + 12, 22 + MAX_PROMPTS * (160 + 2 * 22))
        assert sheet.getpixel((MAX_SEEDS * 160 - 80, sheet.height - 100)) == (255, 0, 0)


def test_the_sheet_has_a_block_for_each_model(compared: Path) -> None:
    with Image.open(compared / "comparison.png") as sheet:
        assert sheet.width == 2 * (2 * 160 + 12)
        left, right = (sheet.crop((x, 44, x + 160, 204)) for x in (0, 332))
    assert left.tobytes() != right.tobytes()


def test_the_same_seed_is_scored_as_in_the_miner(compared: Path) -> None:
    """The first attempt, made again by the stages of the miner, text to image among them."""
    attempt = _figures(compared)["models"]["embedded"]["attempts"][0]
    settings = preset("embedded")
    drawing = settings.text_to_image.model_copy(update={"size": 64, "steps": 2})
    splats = settings.splats.model_copy(update={"max_gaussians": 8000, "resolution": 32})
    settings = settings.model_copy(update={"text_to_image": drawing, "splats": splats})
    stages = load(settings, None, lambda what: None)
    task, rung = TextTask(id="x", prompt="a red car", seed=0), settings.ladder[0]
    value: Any = task
    for step in route(stages_of(settings, "triposr"), task, rung):
        value = stages.functions[step.stage](value, StepContext(task, rung, step.index))
    assert value.score.value == pytest.approx(attempt["score"], abs=1e-6)


def test_the_table_names_every_model(
    compared: Path, klein: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    comparison._show(_figures(compared), compared)
    out = capsys.readouterr().out
    for word in ("embedded", klein.name, "best of seeds", "±", "comparison.png"):
        assert word in out


def test_folders_of_one_name_are_told_apart(klein: Path, tmp_path: Path) -> None:
    other = tmp_path / klein.name
    other.symlink_to(klein)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red car\na  blue cube\na red car\n")
    arguments = [str(klein), str(other), "--prompts", str(prompts), "--out", str(tmp_path / "o")]
    assert main([*arguments, *QUICK, "--seeds", "1"]) == 0
    assert comparison._labels([str(klein), str(other), "klein"]) == {
        str(klein): str(klein),
        str(other): str(other),
        "klein": "klein",
    }
    with Image.open(tmp_path / "o" / "comparison.png") as sheet:
        # Two models, two prompts: one that comes twice is drawn once.
        assert sheet.size == (2 * (160 + 12), 22 + 2 * (160 + 2 * 22))
    rows = _figures(tmp_path / "o")["models"][str(other)]["attempts"]
    assert [row["prompt"] for row in rows] == ["a red car", "a blue cube"]


def test_a_prompt_that_no_task_can_have_is_refused_before_anything_is_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(f"a red car\n{'red ' * 300}\n")
    assert main(["embedded", "klein", "--prompts", str(prompts)]) == 2
    error = capsys.readouterr().err
    assert "prompt 2 of --prompts is none that a task can have: prompt has 1199 char" in error


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "at least two different models, got ''"),
        (["klein"], "at least two different models, got 'klein'"),
        (["klein", "klein"], "at least two different models"),
        (["klein", "schnel"], "'schnel' is neither a known model nor a folder"),
        (["embedded", "klein", "--prompts", "/none.txt"], "cannot read /none.txt"),
        (["embedded", "klein", "--seeds", "0"], "--seeds cannot be '0'"),
    ],
)
def test_wrong_arguments_are_named(
    arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert problem in capsys.readouterr().err


def test_a_model_that_is_not_there_is_named_with_the_command_that_brings_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["embedded", "schnell", "--models.dir", str(tmp_path), "--out", str(tmp_path / "o")]
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert "black-forest-labs/FLUX.1-schnell has not been downloaded" in error
    assert "scripts.fetch_models --preset gpu24 --text_to_image.model schnell --models" in error
    assert not (tmp_path / "o").exists()


def test_without_a_scorer_there_is_nothing_to_compare(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["embedded", "klein", "--scoring.scorer", "none"]) == 1
    assert "needs a scorer" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(SetupError, match="cannot be written"):
        comparison._picture_folder(tmp_path / "file" / "out", 1, "klein")
    assert len(set(PROMPTS)) == len(PROMPTS)
