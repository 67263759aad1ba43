"""What decoding pictures takes, measured in a process of its own.

`python -m tests.support.decoding SIDE` reads files from standard input, each after its length in
eight bytes, and writes one JSON line for each.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image

from protocol.errors import TaskError
from protocol.images import decode_image

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Decoding:
    """What became of one file.

    Attributes:
        outcome: Mode of the picture; "refused"; or the name of an exception that is no TaskError.
        message: What the exception said.
        cpu_s: Seconds of one core.
        peak_mb: Resident memory at its largest, beyond what the process held before, in 10^6 bytes.
    """

    outcome: str
    message: str
    cpu_s: float
    peak_mb: float


def decode_all(files: Iterable[bytes], *, side: int | None = None) -> list[Decoding]:
    """Decodes files one after another in a fresh process."""
    sent = b"".join(len(data).to_bytes(8, "big") + data for data in files)
    command = [sys.executable, "-m", "tests.support.decoding", str(side or 0)]
    done = subprocess.run(command, input=sent, capture_output=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    return [Decoding(**json.loads(line)) for line in done.stdout.splitlines()]


def _resident(name: str) -> float:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (line,) = (line for line in status.splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024 / 1e6


def _decode(data: bytes, side: int | None) -> Decoding:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak
    held, started = _resident("VmRSS"), time.process_time()
    message = ""
    try:
        outcome = decode_image(data, side=side).mode
    except TaskError as error:
        outcome, message = "refused", str(error)
    except Exception as error:
        outcome, message = type(error).__name__, str(error)
    took = time.process_time() - started
    return Decoding(outcome, message, took, _resident("VmHWM") - held)


def _main() -> None:
    side = int(sys.argv[1]) or None
    for format in ("PNG", "JPEG", "WEBP"):  # what a first decoding loads is not the file's
        file = BytesIO()
        Image.new("RGB", (64, 64)).save(file, format)
        decode_image(file.getvalue(), side=side)
    while length := sys.stdin.buffer.read(8):
        data = sys.stdin.buffer.read(int.from_bytes(length, "big"))
        sys.stdout.write(json.dumps(asdict(_decode(data, side))) + "\n")


if __name__ == "__main__":
    _main()
