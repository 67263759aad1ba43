"""What candidates and the gate are worth on the preset `embedded`, where the truth is known."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from protocol.errors import SetupError
from scripts.benchmarks.figures import write_figures
from scripts.benchmarks.quality.choosing import ways, worth
from scripts.benchmarks.quality.making import CANDIDATES, Candidate, Maker
from scripts.benchmarks.quality.showing import draw_sheet, plot
from scripts.train_embedded.prompts import evaluation_prompts

SHEET_ROWS = 6

_COLUMNS = {
    "score": "score",
    "colour_right": "colour right",
    "iou": "shape IoU",
    "right": "right",
    "accepted": "accepted",
    "precision": "of these right",
    "recall": "of right accepted",
    "seconds": "seconds",
}


def run(
    *,
    count: int = 100,
    cache: Path = Path("quality-cache"),
    plots: Path | None = None,
    out: Path | None = None,
) -> dict[str, Any]:
    """Makes the candidates of seeded prompts over the held-out pairs and prints a table.

    Args:
        count: Prompts.
        cache: Folder where finished prompts are kept, so that a run goes on where it stopped.
        plots: Folder for `quality.png` and `quality-candidates.png`, if any.
        out: File for the figures as JSON, if any.

    Returns:
        `ways`, by name, see `choosing.worth`; and `prompts`, each with its candidates.

    Raises:
        SetupError: A file cannot be written, or a package is missing.
    """
    maker = Maker(cache)
    prompts = list(evaluation_prompts(count))
    try:
        made = [
            maker.make(index, prompt)
            for index, prompt in enumerate(tqdm(prompts, desc="quality", unit="prompt"))
        ]
        found = {name: worth(made, choose) for name, choose in ways(CANDIDATES).items()}
        print(_table(found))
        if plots is not None:
            plots.mkdir(parents=True, exist_ok=True)
            plot(made, plots / "quality.png")
            rows = [(prompts[i].text, made[i], maker.strip(i)) for i in _telling(made)]
            draw_sheet(rows, plots / "quality-candidates.png")
    except OSError as error:
        raise SetupError(
            f"a file cannot be written: {error}",
            fix="name writable folders with --cache and --plots",
        ) from error
    figures = {
        "ways": found,
        "prompts": [
            {"prompt": prompt.text, "candidates": [vars(c) for c in candidates]}
            for prompt, candidates in zip(prompts, made, strict=True)
        ],
    }
    write_figures(out, figures)
    return figures


def _telling(made: Sequence[Sequence[Candidate]]) -> list[int]:
    """The prompts in which the choice makes most of a difference."""

    def gain(index: int) -> float:
        candidates = made[index]
        best = max(candidates, key=lambda candidate: candidate.score)
        return best.score - candidates[0].score

    return sorted(range(len(made)), key=gain, reverse=True)[:SHEET_ROWS]


def _table(found: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| | " + " | ".join(_COLUMNS.values()) + " |",
        "|" + " --- |" * (len(_COLUMNS) + 1),
    ]
    for name, figures in found.items():
        cells = [_cell(key, figures[key]) for key in _COLUMNS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(key: str, value: float | None) -> str:
    if value is None:
        return "-"
    if key in ("score", "iou"):
        return f"{value:.3f}"
    return f"{value:.1f} s" if key == "seconds" else f"{100 * value:.1f} %"
