"""Decodes mutated assets one after the other: `python -m tests.protocol.mutated_assets KIND COUNT`.

Prints a line of JSON: how many were decoded, how many refused, the most processor seconds that one
took, and by how many MiB the process grew at most.
"""

import json
import re
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import zstandard
from loguru import logger

from protocol import ply, spz
from protocol.errors import CodecError
from scripts.benchmarks.fuzz.files import mutate

GOLDEN = Path(__file__).parents[1] / "golden" / "spz"
MOST_MIB = 300


def _golden(name: str) -> bytes:
    return (GOLDEN / name).read_bytes()


def _text_ply() -> bytes:
    header = _golden("small.ply").partition(b"end_header\n")[0]
    header = header.replace(b"binary_little_endian", b"ascii").replace(b"500", b"40")
    row = b" ".join(b"%.9g" % (0.37 * i - 2) for i in range(17)) + b"\n"
    return header + b"end_header\n" + row * 40


def _packed_after(payload: bytes, seed: int) -> bytes:
    return zstandard.ZstdCompressor().compress(mutate(payload, seed))


KINDS: dict[str, tuple[Callable[[], bytes], Callable[[bytes, int], bytes]]] = {
    "binary PLY": (lambda: _golden("small.ply"), mutate),
    "harmonics PLY": (lambda: _golden("sh1.ply"), mutate),
    "ASCII PLY": (_text_ply, mutate),
    "SPZ frame": (lambda: _golden("small.spz"), mutate),
    "SPZ payload": (lambda: _golden("sh3.raw.bin"), _packed_after),
}


def main(kind: str, count: int) -> None:
    logger.remove()
    make, change = KINDS[kind]
    original = make()
    decode = spz.decode if "SPZ" in kind else ply.decode
    decode(original if kind != "SPZ payload" else _golden("sh3.spz"))
    # An allocation beyond the limit is a MemoryError, which nothing below expects.
    most = int(_memory("VmSize") + MOST_MIB) << 20
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    before, slowest, decoded = _memory("VmHWM"), 0.0, 0
    for seed in range(count):
        data = change(original, seed)
        start = time.process_time()
        try:
            decode(data)
            decoded += 1
        except CodecError as error:
            said = str(error)
            assert said.isprintable(), said
            assert len(said) < 500, said
        slowest = max(slowest, time.process_time() - start)
    figures = {
        "decoded": decoded,
        "refused": count - decoded,
        "slowest_s": slowest,
        "grew_mib": _memory("VmHWM") - before,
    }
    sys.stdout.write(json.dumps(figures))


def _memory(name: str) -> float:
    """A figure of this process' memory in MiB, as Linux gives it."""
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"{name}:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) / 1024


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
