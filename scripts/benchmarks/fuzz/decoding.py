"""Feeds damaged files to decoders and measures each: `... .decoding COUNT SEED TARGET ...`.

Runs in a process of its own, since only a process knows what it held at most. Prints a line of JSON
for each target, `Findings`.
"""

import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice, zip_longest
from pathlib import Path

from loguru import logger

from scripts.benchmarks.fuzz.chunks import damaged
from scripts.benchmarks.fuzz.targets import TARGETS, Target

LONGEST_MESSAGE = 2000
"""Characters. The errors of settings quote the value and list the names that may be meant."""


@dataclass
class Findings:
    """What a decoder has made of damaged files.

    Attributes:
        outcomes: How many files ended how; documented errors are "refused".
        faults: Undocumented errors and messages that harm a terminal, with the seed of the file.
        slowest_s: Most seconds of one core that a file took.
        grew_mb: Most resident memory that a file took, in 10**6 bytes.
    """

    outcomes: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    grew_mb: float = 0.0


def files(target: Target, count: int, seed: int) -> Iterator[bytes]:
    """Yields damaged copies of every original in turn."""
    originals = target.originals()
    copies = (
        damaged(data, count, seed=seed + number, other=originals[number - 1])
        for number, data in enumerate(originals)
    )
    every = (data for group in zip_longest(*copies) for data in group)
    return islice(every, count)


def examine(name: str, count: int, seed: int) -> Findings:
    """Decodes damaged files in this process."""
    target, found, outcomes = TARGETS[name], Findings(), Counter[str]()
    logger.remove()  # What is set aside is logged, a line each.
    with tempfile.TemporaryDirectory() as folder:
        for data in target.originals():
            target.read(data, Path(folder))  # What a first call loads is not the file's.
        for number, data in enumerate(files(target, count, seed)):
            _forget_peak()
            held, started = _resident_mb("VmRSS"), time.process_time()
            try:
                outcomes[target.read(data, Path(folder))] += 1
            except target.errors as error:
                outcomes["refused"] += 1
                message = getattr(error, "problem", str(error))
                if not message.isprintable() or len(message) > LONGEST_MESSAGE:
                    found.faults.append(f"file {number}: says {ascii(message)[:200]}")
            except Exception as error:
                found.faults.append(f"file {number}: {type(error).__name__}: {error!s:.200}")
            found.slowest_s = max(found.slowest_s, time.process_time() - started)
            found.grew_mb = max(found.grew_mb, _resident_mb("VmHWM") - held)
    found.outcomes = dict(outcomes)
    return found


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _resident_mb(name: str) -> float:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (line,) = (line for line in status.splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024 / 1e6


if __name__ == "__main__":
    count, seed, *names = sys.argv[1:]
    for name in names:
        print(json.dumps(asdict(examine(name, int(count), int(seed)))), flush=True)
