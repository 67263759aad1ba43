"""A real miner under good callers, strangers and faults: who is served, what is lost and grows."""

import asyncio
import base64
import json
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from tqdm import tqdm

from miner.chain.metagraph import Neuron
from miner.chain.wallets import open_wallet
from miner.mock_validator.local_subnet import LocalSubnet
from miner.transports.pull.dendrite import offline_dendrite
from protocol.errors import SetupError
from protocol.synapses import GenerateAsset
from scripts.benchmarks.figures import write_figures
from scripts.benchmarks.soak.callers import GoodCallers
from scripts.benchmarks.soak.faults import Faults
from scripts.benchmarks.soak.process import HOST, FaultyMiner, Sample, faulty_miner
from scripts.benchmarks.soak.report import Figures, figures_of, plot, print_report

SAMPLE_S = 5.0


def run(
    *,
    minutes: float = 20.0,
    pause_s: float = 3.0,
    hostile_per_second: float = 4.0,
    silent: int = 600,
    seed: int = 1,
    out: Path | None = None,
    plot_file: Path | None = None,
) -> Figures:
    """Runs a soak on this machine and prints what it has shown.

    Args:
        minutes: How long the traffic goes on.
        pause_s: Mean of the seconds between two good requests.
        hostile_per_second: Pieces of hostile traffic in a second.
        silent: Silent connections that are held meanwhile.
        seed: For the traffic.
        out: File for the figures as JSON.
        plot_file: PNG file for the process over time.

    Returns:
        The figures; see `report.figures_of`.

    Raises:
        SetupError: The machine lacks what is needed, or a promise was not kept.
    """
    if not sys.platform.startswith("linux"):
        raise SetupError("the soak reads /proc and sets limits of a process", fix="run it on Linux")
    with (
        tempfile.TemporaryDirectory(prefix="soak-") as folder,
        faulty_miner(Path(folder)) as (miner, subnet),
    ):
        figures = asyncio.run(
            _soak(
                miner,
                subnet,
                seconds=60.0 * minutes,
                pause_s=pause_s,
                hostile_per_second=hostile_per_second,
                silent=silent,
                seed=seed,
            )
        )
    write_figures(out, figures)
    if plot_file is not None:
        plot(figures, plot_file)
    if not print_report(figures, Console()):
        raise SetupError("a promise was not kept", fix="see the table above")
    return figures


async def _soak(
    miner: FaultyMiner,
    subnet: LocalSubnet,
    *,
    seconds: float,
    pause_s: float,
    hostile_per_second: float,
    silent: int,
    seed: int,
) -> Figures:
    wallet = open_wallet("validator", "default", subnet.wallets)
    recorded = await _recorded(wallet, miner.axon)
    strangers = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "scripts.benchmarks.soak.hostile"),
        *("--axon", str(miner.axon.port), "--http", str(miner.http_port)),
        *("--miner", subnet.miner_hotkey),
        *("--validator", subnet.validator_hotkey, "--wallets", str(subnet.wallets)),
        *("--recorded", base64.b64encode(recorded).decode(), "--seed", str(seed)),
        *("--per-second", str(hostile_per_second), "--silent", str(silent)),
        stdout=asyncio.subprocess.PIPE,
    )
    began = time.monotonic()

    def clock() -> float:
        return time.monotonic() - began

    faults = Faults(miner, clock)
    callers = GoodCallers(
        wallet,
        miner.axon,
        miner.http_port,
        clock=clock,
        clock_is_wrong=lambda: faults.clock_is_wrong,
        seed=seed,
    )
    samples: list[Sample] = []

    async def watch() -> None:
        with tqdm(total=round(seconds), unit="s", desc="soak", mininterval=5.0) as bar:
            while clock() < seconds:
                samples.append(miner.sample(clock()))
                bar.update(round(min(clock(), seconds)) - bar.n)
                await asyncio.sleep(min(SAMPLE_S, seconds / 100))

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(watch())
            group.create_task(faults.run(seconds))
            group.create_task(callers.run(seconds, pause_s))
    finally:
        strangers.send_signal(signal.SIGTERM)
        output, _ = await strangers.communicate()
    exit_status = await asyncio.to_thread(miner.stop)
    return figures_of(
        callers.asked,
        list(miner.events()),
        samples,
        tracebacks=miner.tracebacks(),
        hostile=json.loads(output),
        faults=faults.injected,
        seconds=seconds,
        exit_status=exit_status,
    )


async def _recorded(wallet: Any, miner: Neuron) -> bytes:
    """Returns the bytes of a signed request that the miner has received once."""
    recorded = bytearray()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        onward, back = await asyncio.open_connection(HOST, miner.port)
        while not recorded.endswith(b"}"):
            recorded.extend(await reader.read(2**16))
        back.write(recorded)
        writer.write(await onward.read(2**20))
        for side in (writer, back):
            side.close()

    async with await asyncio.start_server(relay, HOST, 0) as server:
        port = server.sockets[0].getsockname()[1]
        target = miner.model_copy(update={"port": port})
        async with offline_dendrite(wallet) as dendrite:
            # Without a prompt it is rejected, and costs the miner no generation.
            await dendrite.exchange(target, GenerateAsset(task_id="recorded"), 30.0)
    return bytes(recorded)
