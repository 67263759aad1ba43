"""The process under test: started, watched through /proc, and read through its score log."""

import json
import os
import resource
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from miner.chain.metagraph import Neuron
from miner.chain.wallets import create_wallet
from miner.mock_validator.local_subnet import LocalSubnet, create_local_subnet
from protocol.errors import SetupError
from scripts.benchmarks.soak.faulty_miner import CLOCK_VARIABLE, REPEAT_VARIABLE
from scripts.free_port import free_port

HOST = "127.0.0.1"
START_LIMIT_S = 180.0
STOP_LIMIT_S = 90.0
INJECTED = "non-finite values"
"""In the error that `faulty_miner.NOT_A_NUMBER` ends in."""

_PAGE_BYTES = resource.getpagesize()
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Sample:
    """The process at one moment.

    Attributes:
        at_s: Seconds since the traffic began.
        memory_mb: Resident memory, in 10**6 bytes.
        descriptors: Open file descriptors, sockets among them.
        threads: Its threads.
        cpu_s: Seconds of CPU time since its start.
    """

    at_s: float
    memory_mb: float
    descriptors: int
    threads: int
    cpu_s: float

    def as_dict(self) -> dict[str, float]:
        """The sample as JSON-ready values."""
        return asdict(self)


class FaultyMiner:
    """A miner of `faulty_miner`, on loopback.

    Args:
        folder: Receives its logs and what it prints.
        subnet: Its wallet and its neurons.
        axon_port: Port of the axon.
        http_port: Port of the HTTP transport.
        flags: More of the miner's flags.
        repeats: Whether stages repeat what they made in the warm-up.

    Attributes:
        axon: Where its axon is.
    """

    def __init__(
        self,
        folder: Path,
        subnet: LocalSubnet,
        axon_port: int,
        http_port: int,
        *,
        flags: Sequence[str] = (),
        repeats: bool = False,
    ) -> None:
        self.folder = folder
        self.axon = Neuron(uid=0, hotkey=subnet.miner_hotkey, ip=HOST, port=axon_port)
        self.http_port = http_port
        self.log_folder = folder / "logs"
        self._clock = folder / "clock"
        self._clock.write_bytes(struct.pack("<d", 0.0))
        self._output = (folder / "miner.txt").open("wb")
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "scripts.benchmarks.soak.faulty_miner"),
                *("--chain.file", str(subnet.neurons_file), "--preset", "embedded"),
                *("--wallet.path", str(subnet.wallets), "--wallet.name", "miner"),
                *("--transports", "push,http", "--axon.ip", "127.0.0.1", "--candidates.max", "2"),
                *("--axon.port", str(axon_port), "--http.port", str(http_port)),
                *("--log.dir", str(self.log_folder), *flags),
            ],
            stdout=self._output,
            stderr=subprocess.STDOUT,
            env={
                **os.environ,
                CLOCK_VARIABLE: str(self._clock),
                REPEAT_VARIABLE: "1" if repeats else "",
            },
        )

    def wait_until_ready(self) -> None:
        """Returns once it takes requests.

        Raises:
            SetupError: It ended, or did not become ready in time.
        """
        end = time.monotonic() + START_LIMIT_S
        while not any(event.get("state") == "ready" for event in self.events()):
            if self.process.poll() is not None or time.monotonic() > end:
                tail = Path(self._output.name).read_text(errors="replace")[-2000:]
                raise SetupError(f"the miner did not become ready:\n{tail}", fix="see these lines")
            time.sleep(0.2)

    def sample(self, at_s: float) -> Sample:
        """Looks at the process.

        Raises:
            OSError: It has ended.
        """
        process = Path(f"/proc/{self.process.pid}")
        stat = (process / "stat").read_text().rpartition(")")[2].split()
        return Sample(
            at_s=at_s,
            memory_mb=int(stat[21]) * _PAGE_BYTES / 1e6,
            descriptors=len(os.listdir(process / "fd")),
            threads=int(stat[17]),
            cpu_s=(int(stat[11]) + int(stat[12])) / _TICKS_PER_S,
        )

    def set_clock(self, ahead_s: float) -> None:
        """Sets its wall clock ahead of this machine's."""
        with self._clock.open("r+b") as file:
            file.write(struct.pack("<d", ahead_s))

    def fill_disk(self, full: bool) -> None:
        """Lets every write of the process to a file fail (`RLIMIT_FSIZE`), or none."""
        _, hard = resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE)
        soft = 1 if full else hard
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (soft, hard))

    def remove_logs(self, number: int, pattern: str) -> None:
        """Moves files of the log folder, or the folder ("."), away under the process."""
        aside = self.folder / f"removed-{number}"
        if pattern == ".":
            self.log_folder.rename(aside)
            return
        aside.mkdir()
        for file in list(self.log_folder.glob(pattern)):
            file.rename(aside / file.name)

    def events(self) -> Iterator[Mapping[str, Any]]:
        """Yields every event that it has written, in the files that were moved away too."""
        for file in self.folder.rglob("score*.jsonl"):
            for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    event = json.loads(line)
                except ValueError:
                    event = {"event": "damaged", "line": line[:100]}
                yield event

    def tracebacks(self) -> list[str]:
        """Returns the last line of every traceback that it has printed or logged.

        The engine logs that of a request that fails, so the injected ones are left out.
        """
        found: list[str] = []
        for file in (Path(self._output.name), *self.folder.rglob("miner*.log")):
            lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
            for number, line in enumerate(lines):
                if line.startswith("Traceback"):
                    ends = (text for text in lines[number + 1 :] if text and text[0] not in " │╭╰")
                    end = next(ends, "")
                    if INJECTED not in end:
                        found.append(f"{file.name}: {end[:200]}")
        return found

    def stop(self) -> int:
        """Asks it to end, and returns its exit status."""
        self.process.terminate()
        return self.process.wait(STOP_LIMIT_S)

    def end(self) -> None:
        """Ends it by force if it still lives."""
        self.process.kill()
        self.process.wait()
        self._output.close()


@contextmanager
def faulty_miner(folder: Path, **settings: Any) -> Iterator[tuple[FaultyMiner, LocalSubnet]]:
    """Runs a miner on a subnet of its own until the block ends, and waits until it is ready.

    The wallets of the subnet are those of `create_local_subnet`, and one named `stranger`.

    Args:
        folder: For everything; exists and is empty.
        settings: See `FaultyMiner`.

    Raises:
        SetupError: The miner does not become ready.
    """
    ports = free_port(), free_port()
    subnet = create_local_subnet(folder, port=ports[0])
    create_wallet("stranger", subnet.wallets)
    miner = FaultyMiner(folder, subnet, *ports, **settings)
    try:
        miner.wait_until_ready()
        yield miner, subnet
    finally:
        miner.end()
