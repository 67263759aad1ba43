"""The files that a trial leaves in its folder, for people and for reports.

NAME is the number of a task and its prompt in the letters of file names (`01-a-blue-cube`).

- `NAME.spz`: the asset, `NAME.ply`: the same cloud, `NAME.png`: its preview grid. Only if there was
  an asset.
- `results.jsonl`: one `TrialRecord` per line, in the order of completion, written at once.
- `results.json`: a list of all records in the order of the tasks, written at the end.

`read_records(folder)` reads the last one.
"""

import io
import json
import re
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from generation.scoring.validity import check, figure
from protocol import ply, spz
from protocol.errors import CodecError
from protocol.files import replace_file
from protocol.gaussians import GaussianCloud

LINES_FILE = "results.jsonl"
RESULTS_FILE = "results.json"
PREVIEW_SIZE = 256


class CheckRecord(BaseModel):
    """One of the validator's checks, or a piece of advice, on the decoded cloud."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    passed: bool
    measured: float | None
    limit: float | None
    explanation: str
    wanted: str
    advice: bool = False

    @property
    def found(self) -> str:
        """The measured value for people; empty if there is none."""
        return "" if self.measured is None else figure(self.measured)


class TrialRecord(BaseModel):
    """What became of one task, as the validator saw it.

    Attributes:
        name: Stem of the files.
        kind: "text" or "image".
        prompt: The text, or the name of the image file.
        task_id: The id of the task.
        seed: The seed of the task.
        status: HTTP status of the answer; 408 or 503 without one.
        protocol: "push", "pull" or "gateway"; only a pushed task's miner reports stages and totals.
        outcome: The miner's outcome: "completed", "dropped", "rejected", "failed", or "none"
            without an answer. Of a pulled task: "completed", "skipped" (an empty result), "refused"
            (a bad signature) or "none". Of a gateway's: "completed", "failed" or "none".
        reason_code: The miner's reason code, as in docs/score-log.md.
        reason: The miner's reason, or that of the transport if there was no answer.
        timings: Seconds per stage, as reported by the miner.
        total_s: Seconds from receipt to answer, as reported by the miner.
        elapsed_s: Seconds from sending to the decoded answer, measured by the validator; of a
            pulled or a gateway's task from its assignment to the arrival of its result.
        gaussians: Size of the decoded cloud.
        size_bytes: Size of the SPZ file.
        checks: Results of the validator's data checks, and advice.
        early_pulls: Of a pulled task: the miner's pulls during a cooldown, since the task before.
        problems: Everything that is wrong with the answer; empty if it is good.
        spz: Name of the file in the folder, if there is one; `ply` and `png` alike.
        miner_version: The miner's version, as it reports it; of a gateway's task its worker_id.
        understood: Words of the prompt that the miner's networks know, as it reports them.
        ignored: The other words.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    kind: Literal["text", "image"]
    prompt: str
    task_id: str
    seed: int | None = None
    protocol: Literal["push", "pull", "gateway"] = "push"
    status: int = 0
    outcome: str = "none"
    reason_code: str = ""
    reason: str = ""
    timings: dict[str, float] = Field(default_factory=dict)
    total_s: float = 0.0
    elapsed_s: float = 0.0
    gaussians: int = 0
    size_bytes: int = 0
    checks: tuple[CheckRecord, ...] = ()
    early_pulls: int = 0
    problems: tuple[str, ...] = ()
    spz: str | None = None
    ply: str | None = None
    png: str | None = None
    miner_version: str = ""
    understood: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()

    @property
    def good(self) -> bool:
        """Whether nothing is wrong with the answer."""
        return not self.problems


def record_name(number: int, prompt: str) -> str:
    """Returns a file stem such as `01-a-blue-cube`."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:48].strip("-")
    return f"{number:02d}-{words or 'task'}"


def judge(record: TrialRecord, asset: bytes, folder: Path, *, limit_s: float) -> TrialRecord:
    """Decodes and checks an answer as a validator would, and writes its files.

    Takes seconds, most of them for the preview: call it off the event loop.

    Args:
        record: The record with outcome and times.
        asset: The SPZ file; empty if there is none.
        folder: An existing folder for the files.
        limit_s: Seconds that the answer may have taken.

    Returns:
        The record, with size, checks, file names and problems added.
    """
    problems: list[str] = []
    withheld = record.reason_code == "below_threshold" and not asset
    if record.outcome != "completed" or withheld:
        end = "withheld by the miner's gate" if withheld else record.outcome
        return record.model_copy(
            update={"problems": (f"{end}: {record.reason or 'no reason given'}",)}
        )
    if record.elapsed_s > limit_s:
        problems.append(f"took {record.elapsed_s:.2f} s, the limit is {limit_s:.2f} s")
    written = _Written(folder, record.name)
    file: dict[str, object] = {"size_bytes": len(asset), "spz": written.file("spz", asset)}
    try:
        cloud = spz.decode(asset)
    except CodecError as error:
        problems += [f"the answer is not SPZ: {error}", *written.problems]
        return record.model_copy(update={**file, "problems": tuple(problems)})
    if record.protocol == "push" and record.gaussians != len(cloud):
        problems.append(f"the miner says {record.gaussians} Gaussians, the file has {len(cloud)}")
    checks = _checks(cloud, len(asset))
    problems += [f"{item.name}: {item.explanation}" for item in checks if not _harmless(item)]
    file["ply"] = written.file("ply", ply.encode(cloud))
    preview = _preview(cloud)
    file["png"] = written.file("png", preview) if preview else None
    return record.model_copy(
        update={
            **file,
            "gaussians": len(cloud),
            "checks": checks,
            "problems": (*problems, *written.problems),
        }
    )


def append_record(folder: Path, record: TrialRecord) -> None:
    """Adds a record to `results.jsonl`."""
    with (folder / LINES_FILE).open("a", encoding="utf-8") as file:
        file.write(record.model_dump_json() + "\n")


def write_records(folder: Path, records: list[TrialRecord]) -> None:
    """Writes `results.json`."""
    plain = [record.model_dump(mode="json") for record in records]
    replace_file(folder / RESULTS_FILE, (json.dumps(plain, indent=2) + "\n").encode())


def read_records(folder: Path) -> list[TrialRecord]:
    """Reads `results.json`, in the order of the tasks."""
    plain = json.loads((folder / RESULTS_FILE).read_text(encoding="utf-8"))
    return [TrialRecord.model_validate(item) for item in plain]


def _checks(cloud: GaussianCloud, size: int) -> tuple[CheckRecord, ...]:
    report = check(cloud, wire_bytes=size)
    both = ((report.checks, False), (report.advice, True))
    return tuple(
        CheckRecord(
            name=item.name,
            passed=bool(item.passed),
            measured=_finite(item.measured),
            limit=_finite(item.limit),
            explanation=item.explanation,
            wanted=item.wanted,
            advice=advice,
        )
        for items, advice in both
        for item in items
    )


def _harmless(item: CheckRecord) -> bool:
    return item.passed or item.advice


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _preview(cloud: GaussianCloud) -> bytes | None:
    from generation.rendering.preview import preview_grid

    file = io.BytesIO()
    try:
        preview_grid(cloud, PREVIEW_SIZE).save(file, "PNG")
    except ValueError:
        return None  # A cloud without extent cannot be shown; the checks have said so already.
    return file.getvalue()


class _Written:
    """The files of one answer, and what kept them from being written: not the miner's fault."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = name
        self.problems: list[str] = []

    def file(self, kind: str, data: bytes) -> str | None:
        """Writes a file and returns its name; None if it could not be written."""
        name = f"{self._name}.{kind}"
        try:
            replace_file(self._folder / name, data)
        except OSError as error:
            self.problems.append(f"{name} is not written: {error.strerror or error}")
            return None
        return name
