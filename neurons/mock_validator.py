"""A validator to try a miner with: `python -m neurons.mock_validator --help`.

A real Bittensor 10 client that needs no internet. What it leaves in its folder is described in
`miner.trial.records`.
"""

import asyncio
import base64
import binascii
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TimeElapsedColumn
from rich.table import Table

from miner.settings import read_settings
from miner.trial.records import TrialRecord, append_record, judge, write_records
from miner.trial.settings import TrialSettings
from miner.trial.tasks import TrialTask, collect_tasks
from protocol.errors import SetupError

GOOD, BAD, NOT_STARTED = 0, 1, 2


def main(argv: Sequence[str] | None = None) -> int:
    """Sends the tasks and judges the answers; 0 if all are good, 1 if not, 2 if it cannot start."""
    console = Console()
    try:
        settings = read_settings(
            TrialSettings, prog="python -m neurons.mock_validator", env_prefix="TRIAL", argv=argv
        )
        tasks = collect_tasks(settings.prompts, settings.images, settings.count)
        _make_folder(settings)
        wallet = _wallet(settings)
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return NOT_STARTED
    with Progress(SpinnerColumn(), *Progress.get_default_columns(), TimeElapsedColumn()) as bar:
        ticket = bar.add_task(f"asking {settings.miner}", total=len(tasks))

        def on_record(record: TrialRecord) -> None:
            append_record(settings.out, record)
            bar.update(ticket, advance=1, description=f"{record.name}: {record.outcome}")

        records = asyncio.run(_ask_all(settings, wallet, tasks, on_record))
    write_records(settings.out, records)
    console.print(results_table(records))
    return GOOD if all(record.good for record in records) else BAD


def results_table(records: Sequence[TrialRecord]) -> Table:
    """Lays the records out for a terminal."""
    table = Table("task", "outcome", "seconds", "stages", "Gaussians", "MB", "checks", expand=False)
    for record in records:
        stages = "\n".join(f"{stage} {seconds:.2f}" for stage, seconds in record.timings.items())
        table.add_row(
            record.prompt,
            record.outcome,
            f"{record.elapsed_s:.2f}",
            stages,
            f"{record.gaussians:,}" if record.gaussians else "",
            f"{record.size_bytes / 1e6:.2f}" if record.size_bytes else "",
            "[green]good" if record.good else "[red]" + "; ".join(record.problems),
        )
    return table


def offline_dendrite(key: Any) -> Any:
    """Builds a Dendrite without its constructor's question to the internet for our address.

    It is to be used with `async with`.

    Args:
        key: A wallet or a keypair to sign with.
    """
    import bittensor
    from bittensor.utils import networking

    class OfflineDendrite(bittensor.Dendrite):  # type: ignore[misc]
        def __del__(self) -> None:
            """Does nothing: `async with` has closed the session, the loop may be gone."""

    ask_internet = networking.get_external_ip
    # An address that no miner has: for a target at its own address a dendrite calls 0.0.0.0.
    networking.get_external_ip = lambda: "0.0.0.0"
    try:
        return OfflineDendrite(key)
    finally:
        networking.get_external_ip = ask_internet


async def _ask_all(
    settings: TrialSettings,
    wallet: Any,
    tasks: Sequence[TrialTask],
    on_record: Callable[[TrialRecord], None],
) -> list[TrialRecord]:
    import bittensor

    bittensor.logging.off()
    host, port = settings.address
    target = bittensor.AxonInfo(
        version=0, ip=host, port=port, ip_type=4, hotkey=settings.miner_hotkey, coldkey=""
    )
    turns = asyncio.Semaphore(settings.concurrency)

    async def one(task: TrialTask) -> TrialRecord:
        # Judging takes its turn too, or it would slow down a miner on the same machine.
        async with turns:
            record, asset = await _ask(settings, dendrite, target, task)
            record = await asyncio.to_thread(
                judge, record, asset, settings.out, limit_s=settings.timeout
            )
        on_record(record)
        return record

    async with offline_dendrite(wallet) as dendrite:
        return list(await asyncio.gather(*(one(task) for task in tasks)))


async def _ask(
    settings: TrialSettings, dendrite: Any, target: Any, task: TrialTask
) -> tuple[TrialRecord, bytes]:
    from protocol.synapses import GenerateAsset

    request = GenerateAsset(
        task_type=task.kind,
        task_id=task.id,
        prompt=task.wire,
        seed=settings.seed,
        budget_s=settings.timeout,
    )
    start = time.monotonic()
    reply = await dendrite.call(target, request, timeout=settings.timeout, deserialize=False)
    status = int(reply.dendrite.status_code or 0)
    answered = status == 200
    reason, asset = reply.reason, b""
    if not answered:
        reason = f"status {status}: {reply.dendrite.status_message}"
    try:
        asset = base64.b64decode(reply.results, validate=True)
    except binascii.Error as error:
        reason = f"results are not base64: {error}"
    record = TrialRecord(
        name=task.name,
        kind=task.kind,
        prompt=task.shown,
        task_id=task.id,
        seed=settings.seed,
        status=status,
        outcome=reply.outcome if answered else "none",
        reason_code=reply.reason_code if answered else "",
        reason=reason,
        timings=reply.timings if answered else {},
        total_s=reply.total_s if answered else 0.0,
        elapsed_s=time.monotonic() - start,
        gaussians=reply.gaussians if answered else 0,
        miner_version=reply.miner_version if answered else "",
    )
    return record, asset


def _wallet(settings: TrialSettings) -> Any:
    if settings.wallet_ephemeral:
        import bittensor

        return bittensor.Keypair.create_from_mnemonic(bittensor.Keypair.generate_mnemonic())
    from miner.chain import open_wallet

    return open_wallet(settings.wallet_name, settings.wallet_hotkey, settings.wallet_path)


def _make_folder(settings: TrialSettings) -> None:
    try:
        settings.out.mkdir(parents=True, exist_ok=True)
        (settings.out / "results.jsonl").unlink(missing_ok=True)
    except OSError as error:
        raise SetupError(
            f"the folder {settings.out} cannot be written: {error.strerror}",
            fix="give another one with --out",
        ) from error


if __name__ == "__main__":
    sys.exit(main())
