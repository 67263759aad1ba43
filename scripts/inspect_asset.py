"""Tells what a validator will make of a PLY or SPZ file: `python -m scripts.inspect_asset FILE`.

Prints counts, sizes, the box, summaries of opacity, scale and rotation, and the validator's checks,
and writes the picture that the duel judge sees; with --prompt, also the score of a preset's scorer.
Exit status: 0 the cloud passes the checks, 1 it does not, 2 the file cannot be read or not scored.
"""

import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field
from pydantic_settings import CliPositionalArg

from miner.interpreter import program_name
from miner.settings.model import ANY_NAME
from miner.settings.reader import Settings, read_settings
from miner.surroundings import settle_terminal, tell
from protocol.errors import CodecError, SetupError, TaskError

if TYPE_CHECKING:
    from rich.console import Console

    from generation.scoring.validity import ValidityReport
    from generation.stage import Asset
    from protocol.gaussians import Float32Array, GaussianCloud

Judge = Callable[["Asset"], str]

VALID, INVALID, UNREADABLE = 0, 1, 2

MAX_BYTES = 4 << 30
"""The largest file that is read; 10 million Gaussians with all harmonics take 2.5 GB as PLY."""

MAX_SIZE = 2048
"""Pixels per view of the preview; four of this size take 1.1 GB."""

_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


class InspectSettings(Settings):
    """Shows what a subnet 17 validator will make of a PLY or SPZ file.

    Exit status: 0 passes the validator's checks, 1 fails them, 2 cannot be read or not scored.
    """

    file: Annotated[CliPositionalArg[Path], ANY_NAME]
    """A .ply or .spz Gaussian cloud."""
    out: Annotated[Path | None, ANY_NAME] = None
    """Preview picture; FILE.preview.png if not given."""
    size: Annotated[int, Field(ge=1, le=MAX_SIZE)] = 518
    """Pixels per view of the preview."""
    prompt: str | None = None
    """What it should show: then a scorer tells the score that a validator is expected to give."""
    preset: str = "embedded"
    """Preset whose scorer that is: embedded knows few words, the others have the validator's
    networks."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Inspects one file and returns the exit status."""
    settle_terminal()
    try:
        asked = read_settings(
            InspectSettings, prog=program_name("scripts.inspect_asset"), argv=arguments
        )
    except SetupError as error:
        tell(error)
        return UNREADABLE
    try:
        judge = None if asked.prompt is None else _judge(asked.prompt, asked.preset)
    except SetupError as error:
        tell(error)
        return UNREADABLE
    except TaskError as error:
        print(f"error: {error}", file=sys.stderr)
        return UNREADABLE
    return inspect(asked.file, out=asked.out, size=asked.size, judge=judge)


def _judge(prompt: str, preset_name: str) -> "Judge":
    """Loads the scorer of a preset; the judge says the score, and the words that it rests on.

    Raises:
        SetupError: The scorer cannot be loaded.
        TaskError: The prompt cannot be scored; without a known word, every object would fit it.
    """
    from generation.loading import load_scorer, require_device
    from generation.presets import preset
    from generation.words import in_one_line, refusal, understand
    from protocol.tasks import parse_task

    task = parse_task(kind="text", task_id="", prompt=prompt)
    settings = preset(preset_name)
    if reason := refusal(prompt, settings.vocabulary):
        raise TaskError(reason)
    scorer = load_scorer(settings, None, require_device(settings))
    if scorer is None:
        raise SetupError(f"the preset {preset_name} has no scorer", fix="--preset embedded")
    words = ""
    if settings.vocabulary:
        known = understand(prompt, settings.vocabulary)
        words = f"\n  {in_one_line(known.understood, known.ignored)}"
    return lambda asset: scorer.score(asset, task).in_words + words


def inspect(
    file: Path, *, out: Path | None = None, size: int = 518, judge: "Judge | None" = None
) -> int:
    """Prints the report on one file and writes its preview.

    Args:
        file: A PLY or SPZ file, told apart by its content.
        out: Where the preview goes; beside the file, as FILE.preview.png, if not given.
        size: Pixels per side of each of the preview's four views.
        judge: Says the score of the cloud as it would travel.

    Returns:
        VALID, INVALID or UNREADABLE.
    """
    from rich.console import Console

    from protocol import spz
    from protocol.text import printable

    console = Console()
    try:
        data = _read(file)
        is_ply = data.startswith(b"ply")
        cloud = _decode(data, file.name)
    except OSError as error:
        reason = error.strerror or error
        print(f"cannot read {printable(str(file))}: {reason}", file=sys.stderr)
        return UNREADABLE
    except CodecError as error:
        print(f"{printable(str(file))} is not a readable asset: {error}", file=sys.stderr)
        return UNREADABLE

    from generation.scoring import validity
    from generation.stage import Asset

    _print_facts(console, cloud, "PLY" if is_ply else "SPZ", len(data))
    wire = b""
    try:
        wire = spz.encode(cloud) if is_ply else data
        report = validity.check(cloud, wire_bytes=len(wire))
    except CodecError as error:
        console.print(f"cannot be sent as SPZ: {error}", style="red", markup=False)
        report = validity.check(cloud)
    _print_checks(console, report)
    if judge is not None and wire:
        print(judge(Asset(cloud, wire, report)))
    preview = out or file.with_name(f"{file.name}.preview.png")
    drawn = _write_preview(console, cloud, preview, size)
    return VALID if report.passed and wire and drawn else INVALID


def _read(file: Path) -> bytes:
    if file.is_dir():
        raise CodecError("it is a folder; name a .ply or .spz file in it")
    if file.exists() and not file.is_file():
        raise CodecError("it is a device or a pipe; write its content to a file first")
    if (size := file.stat().st_size) > MAX_BYTES:
        raise CodecError(f"it has {size:,} bytes, the limit is {MAX_BYTES:,}")
    return file.read_bytes()


def _decode(data: bytes, name: str) -> "GaussianCloud":
    from protocol import ply, spz
    from protocol.foreign_formats import describe
    from protocol.gaussians import MAX_GAUSSIANS_OF_A_FILE

    if data.startswith(b"ply"):
        return ply.decode(data, max_points=MAX_GAUSSIANS_OF_A_FILE, max_text_bytes=len(data))
    if data.startswith(_ZSTD_MAGIC):
        return spz.decode(data, max_points=MAX_GAUSSIANS_OF_A_FILE)
    raise CodecError(f"neither PLY nor zstd SPZ: it is {describe(data, name)}")


def _print_facts(console: "Console", cloud: "GaussianCloud", form: str, size: int) -> None:
    import numpy as np
    from rich.table import Table

    def row(name: str, values: "Float32Array") -> list[str]:
        points = np.quantile(values, [0.0, 0.05, 0.5, 0.95, 1.0])
        return [name, *(f"{point:.3g}" for point in points)]

    console.print(
        f"{form}, {size:,} bytes, {len(cloud):,} Gaussians, {size / len(cloud):.1f} bytes each",
        highlight=False,
    )
    table = Table(title="values")
    for heading in ("", "min", "5 %", "median", "95 %", "max"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for axis, name in enumerate("xyz"):
        table.add_row(*row(name, cloud.positions[:, axis]))
    table.add_row(*row("opacity", cloud.opacities))
    scales = np.sort(np.exp(cloud.log_scales), axis=1)
    for axis, name in enumerate(("scale, thin", "scale, middle", "scale, wide")):
        table.add_row(*row(name, scales[:, axis]))
    norms = np.linalg.norm(cloud.rotations, axis=1)
    cosines = np.abs(cloud.rotations[:, 0]) / np.maximum(norms, np.finfo(np.float32).tiny)
    angles = np.degrees(2 * np.arccos(np.minimum(cosines, 1.0)))
    table.add_row(*row("rotation, degrees", angles))
    for axis, name in enumerate(("red", "green", "blue")):
        table.add_row(*row(name, cloud.rgb[:, axis]))
    console.print(table)


def _print_checks(console: "Console", report: "ValidityReport") -> None:
    from rich.table import Table

    from generation.scoring.validity import figure

    table = Table(title="passes" if report.passed else "fails: a validator scores this 0")
    for heading in ("check", "result", "measured", "wanted"):
        table.add_column(heading, justify="left" if heading in ("check", "result") else "right")
    unmet = []
    for group, failed in ((report.checks, "FAILS"), (report.advice, "warning")):
        for item in group:
            figures = (figure(item.measured), item.wanted)
            table.add_row(item.name, "ok" if item.passed else failed, *figures)
            unmet += [] if item.passed else [f"{item.name}: {item.explanation}"]
    console.print(table)
    for line in unmet:
        console.print(line, markup=False, highlight=False)


def _write_preview(console: "Console", cloud: "GaussianCloud", out: Path, size: int) -> bool:
    """Returns whether a validator could draw the cloud; failing to save it is only reported."""
    from generation.rendering import preview_grid
    from protocol.files import replace_file
    from protocol.text import printable

    try:
        preview = preview_grid(cloud, size)
    except ValueError as error:
        console.print(f"no preview: {error}", style="red", markup=False)
        return False
    try:
        picture = io.BytesIO()
        preview.save(picture, format="PNG")
        replace_file(out, picture.getvalue())
    except OSError as error:
        reason = error.strerror or error
        print(f"cannot write {printable(str(out))}: {reason}; name another with --out")
    else:
        print(f"preview: {printable(str(out))}")
    return True


if __name__ == "__main__":
    sys.exit(main())
