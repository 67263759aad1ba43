"""What the candidates were worth, as a plot and as pictures."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from protocol.errors import SetupError
from scripts.benchmarks.quality.choosing import best_of, best_possible, worth
from scripts.benchmarks.quality.making import CELL, Candidate
from scripts.train_embedded.train_scorer import THRESHOLD

_LABEL = 16
_RIGHT, _WRONG, _BOUND = "#2c6fbb", "#b5484a", "#999999"


def plot(prompts: Sequence[Sequence[Candidate]], file: Path) -> None:
    """Writes two panels: what more candidates are worth, and the scores of right and wrong ones.

    Raises:
        SetupError: matplotlib is missing.
    """
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise SetupError("matplotlib is missing", fix="pip install -e '.[plots]'") from error
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3.2))
    numbers = list(range(1, len(prompts[0]) + 1))
    by_score = [worth(prompts, best_of(number)) for number in numbers]
    bound = [
        worth([candidates[:number] for candidates in prompts], best_possible) for number in numbers
    ]
    for key, label, style in (("right", "right", "o-"), ("iou", "shape IoU", "s--")):
        left.plot(numbers, [w[key] for w in bound], style, color=_BOUND, label=f"{label}, bound")
        left.plot(numbers, [w[key] for w in by_score], style, color=_RIGHT, label=label)
    left.set_xticks(numbers)
    left.set_xlabel("candidates, the best score wins")
    left.set_ylabel("mean over the prompts")
    everything = [candidate for candidates in prompts for candidate in candidates]
    edges = [number / 20 for number in range(21)]
    scores = [[c.score for c in everything if c.right is kind] for kind in (True, False)]
    right.hist(scores, edges, stacked=True, color=(_RIGHT, _WRONG), label=("right", "wrong"))
    right.axvline(THRESHOLD, color="black", linestyle="--", linewidth=1)
    right.set_yscale("symlog", linthresh=1)
    right.set_xlabel("embedded score")
    right.set_ylabel("objects")
    for panel in (left, right):
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8, ncol=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    figure.tight_layout()
    figure.savefig(file, dpi=90)
    plt.close(figure)


def draw_sheet(rows: Sequence[tuple[str, Sequence[Candidate], Path]], file: Path) -> None:
    """Writes the candidates of some prompts, a row each, with their scores; the best one is framed.

    Args:
        rows: Prompt, candidates, and the picture of them side by side.
        file: The PNG.
    """
    height = CELL + 2 * _LABEL
    columns = max(len(candidates) for _, candidates, _ in rows)
    sheet = Image.new("RGB", (columns * CELL, len(rows) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for line, (prompt, candidates, strip) in enumerate(rows):
        top = line * height
        draw.text((3, top + 2), prompt, fill="black", font_size=11)
        with Image.open(strip) as picture:
            sheet.paste(picture, (0, top + _LABEL))
        best = max(range(len(candidates)), key=lambda number: candidates[number].score)
        for column, candidate in enumerate(candidates):
            text = f"{candidate.score:.2f}, IoU {candidate.iou:.2f}"
            ink = _RIGHT if candidate.right else _WRONG
            at = (column * CELL + 3, top + _LABEL + CELL)
            draw.text(at, text, fill=ink, font_size=11)
        left = best * CELL
        draw.rectangle(
            (left, top + _LABEL, left + CELL - 1, top + _LABEL + CELL - 1), outline=_RIGHT
        )
    sheet.save(file, optimize=True)
