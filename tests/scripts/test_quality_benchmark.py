"""Choosing among candidates, and a run that goes on where it stopped."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from PIL import Image

from scripts.benchmark import main
from scripts.benchmarks.quality.choosing import best_of, best_possible, first, preselected, worth
from scripts.benchmarks.quality.making import CANDIDATES, CELL, Candidate, Maker
from scripts.train_embedded.prompts import evaluation_prompts


def candidate(
    score: float, *, rating: float = 0.5, right: bool = True, iou: float = 0.8
) -> Candidate:
    return Candidate(
        seed=0,
        rating=rating,
        score=score,
        colour_right=right,
        shape_right=True,
        iou=iou,
        picture_s=0.1,
        rate_s=0.01,
        object_s=0.6,
        score_s=0.09,
    )


MADE = [
    candidate(0.5, right=False),
    candidate(0.7, rating=0.9),
    candidate(0.9, rating=0.1, iou=0.7),
    candidate(0.8, rating=0.3, iou=0.95),
]


def test_each_way_chooses_what_it_says_and_pays_for_what_it_made() -> None:
    whole = 0.79
    for choose, number, seconds in (
        (first, 0, whole),
        (best_of(2), 1, 2 * whole),
        (best_of(4), 2, 4 * whole),
        # The first, three pictures with ratings, and the best-rated of these lifted and scored.
        (preselected, 1, whole + 3 * 0.11 + 0.69),
        (best_possible, 3, 4 * whole),
    ):
        chosen, took = choose(MADE)
        assert chosen is MADE[number]
        assert took == pytest.approx(seconds)


def test_the_first_candidate_stays_where_the_picked_one_is_worse() -> None:
    made = [candidate(0.95), *MADE[1:]]
    assert preselected(made)[0] == made[0]


def test_the_gate_is_measured_against_the_truth() -> None:
    prompts = [
        [candidate(0.9)],
        [candidate(0.6, right=False)],
        [candidate(0.59)],
        [candidate(0.1, right=False)],
    ]
    found = worth(prompts, first)
    assert (found["accepted"], found["precision"], found["recall"]) == (0.5, 0.5, 0.5)
    assert (found["right"], found["colour_right"]) == (0.5, 0.5)
    assert found["score"] == pytest.approx(0.5475)
    assert worth([[candidate(0.1, right=False)]], first)["precision"] is None


def keep(maker: Maker, index: int, prompt: str) -> None:
    """What a run leaves behind of a finished prompt."""
    maker.folder.mkdir(parents=True, exist_ok=True)
    content = {"prompt": prompt, "candidates": [asdict(candidate) for candidate in MADE]}
    (maker.folder / f"{index:04}.json").write_text(json.dumps(content))
    Image.new("RGB", (CANDIDATES * CELL, CELL), "white").save(maker.strip(index))


def test_a_finished_prompt_is_not_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for index, prompt in enumerate(evaluation_prompts(2)):
        keep(Maker(tmp_path), index, prompt.text)
    out, plots = tmp_path / "quality.json", tmp_path / "plots"
    command = ["quality", "--prompts", "2", "--cache", str(tmp_path), "--plots", str(plots)]
    assert main([*command, "--json", str(out)]) == 0
    figures = json.loads(out.read_text())
    assert figures["ways"]["first"]["right"] == 0
    assert figures["ways"]["best of 4"]["right"] == 1
    assert "| best of 4 | 0.900 | 100.0 % | 0.700 | 100.0 % | 100.0 % |" in capsys.readouterr().out
    for name in ("quality.png", "quality-candidates.png"):
        with Image.open(plots / name) as picture:
            assert picture.width > 300


def test_candidates_of_other_networks_are_not_taken_for_these(tmp_path: Path) -> None:
    maker = Maker(tmp_path)
    assert maker.folder.parent == tmp_path
    assert len(maker.folder.name) == 12
