"""The loss curves as one picture."""

import json
import math
from pathlib import Path

from PIL import Image, ImageDraw

_WIDTH, _HEIGHT, _MARGIN = 480, 300, 36
_INK = ((200, 40, 40), (40, 90, 200), (40, 150, 70), (150, 80, 170))


def plot_losses(folder: Path, file: Path) -> None:
    """Draws every `*.losses.jsonl` of a folder: logarithm of each loss over the steps.

    Args:
        folder: Where the loss logs are.
        file: The PNG to write; panels stand side by side.
    """
    logs = sorted(folder.glob("*.losses.jsonl"))
    picture = Image.new("RGB", (_WIDTH * max(1, len(logs)), _HEIGHT), "white")
    for column, log in enumerate(logs):
        entries = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
        panel = _panel(log.name.split(".")[0], entries)
        picture.paste(panel, (column * _WIDTH, 0))
    picture.save(file)


def _panel(title: str, entries: list[dict[str, float]]) -> Image.Image:
    panel = Image.new("RGB", (_WIDTH, _HEIGHT), "white")
    draw = ImageDraw.Draw(panel)
    draw.text((_MARGIN, 4), title, fill="black")
    names = [name for name in (entries[-1] if entries else {}) if name not in ("step", "minutes")]
    curves = {n: _smooth([math.log10(max(e[n], 1e-6)) for e in entries]) for n in names}
    if not curves:
        return panel
    low = math.floor(min(min(curve) for curve in curves.values()))
    high = math.ceil(max(max(curve) for curve in curves.values()))
    last = entries[-1]["step"]
    left, right, top, bottom = _MARGIN, _WIDTH - 8, 22, _HEIGHT - 20
    for power in range(low, high + 1):
        y = bottom - (power - low) / max(1, high - low) * (bottom - top)
        draw.line((left, y, right, y), fill=(225, 225, 225))
        draw.text((2, y - 6), f"1e{power}", fill="black")
    draw.text((right - 70, bottom + 4), f"{int(last)} steps", fill="black")
    for index, (name, curve) in enumerate(curves.items()):
        ink = _INK[index % len(_INK)]
        points = [
            (
                left + entry["step"] / last * (right - left),
                bottom - (value - low) / max(1, high - low) * (bottom - top),
            )
            for entry, value in zip(entries, curve, strict=True)
        ]
        draw.line(points if len(points) > 1 else points * 2, fill=ink)
        draw.text((left + 110 + 90 * index, 4), f"{name} {entries[-1][name]:.4g}", fill=ink)
    return panel


def _smooth(values: list[float]) -> list[float]:
    smooth, level = [], values[0] if values else 0.0
    for value in values:
        level += 0.15 * (value - level)
        smooth.append(level)
    return smooth
