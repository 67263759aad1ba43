"""Whatever holds a process, it ends within the limit: in processes of their own."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIMIT_S = 0.6
PATIENT_S = 1.5
"""Where nothing may happen within the limit: a busy machine stops a process for a moment."""

PROGRAM = """
import asyncio, sys, threading, time
from miner.last_resort import LastResort

limit_s = float(sys.argv[2])
last_resort = LastResort(limit_s)

def held_interpreter():
    sum(range(10**15))  # One call of C code that never lets another thread run.

async def held_loop():
    last_resort.watch_loop()
    await asyncio.sleep(0.01)
    time.sleep(60.0)

async def held_by_a_thread():
    last_resort.watch_loop()
    await asyncio.sleep(0.01)
    threading.Thread(target=held_interpreter, daemon=True).start()
    await asyncio.sleep(60.0)

async def does_not_end():
    last_resort.watch_loop()
    last_resort.process_ends()
    for _ in range(1000):
        await asyncio.sleep(limit_s / 10)
        last_resort.process_ends()

async def turns():
    last_resort.watch_loop()
    await asyncio.sleep(1.7 * limit_s)

async def ends_in_time():
    last_resort.process_ends()
    last_resort.watch_loop()
    await asyncio.sleep(0.01)

try:
    asyncio.run(globals()[sys.argv[1]]())
finally:
    last_resort.call_off()
time.sleep(limit_s)
"""


def run(what: str, limit_s: float = LIMIT_S) -> tuple[int, str, float]:
    """Exit status, what the process said, and its seconds."""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, what, str(limit_s)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30.0,
        check=False,
    )
    return done.returncode, done.stderr, time.monotonic() - started


@pytest.mark.parametrize(
    ("what", "where"),
    [
        ("held_loop", "in held_loop"),
        ("held_by_a_thread", "in held_interpreter"),
        ("does_not_end", "in run_forever"),
    ],
)
def test_a_process_that_hangs_ends_with_1_and_says_where(what: str, where: str) -> None:
    code, output, seconds = run(what)
    assert code == 1
    assert where in output
    assert seconds < 15.0


@pytest.mark.parametrize("what", ["turns", "ends_in_time"])
def test_a_process_that_goes_on_or_ends_is_left_alone(what: str) -> None:
    code, output, _ = run(what, PATIENT_S)
    assert (code, output) == (0, "")


def test_a_pipe_that_nobody_reads_does_not_hold_the_last_words() -> None:
    program = PROGRAM.replace(
        "import asyncio", "import os; os.write(2, bytes(2**16))\nimport asyncio"
    )
    command = [sys.executable, "-c", program, "held_loop", str(LIMIT_S)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE) as process:
        try:
            assert process.wait(20.0) == 1
        finally:
            process.kill()
