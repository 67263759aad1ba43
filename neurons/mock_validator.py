"""A validator to try a miner with: `python -m neurons.mock_validator --help`.

A real Bittensor 10 client that needs no internet. What it leaves in its folder is described in
`miner.mock_validator.records`.
"""

import asyncio
import base64
import binascii
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TimeElapsedColumn
from rich.table import Table

from miner.mock_validator.records import TrialRecord, append_record, judge, write_records
from miner.mock_validator.settings import TrialSettings
from miner.mock_validator.tasks import TrialTask, collect_tasks
from miner.settings.reader import read_settings
from protocol.errors import SetupError

GOOD, BAD, NOT_STARTED = 0, 1, 2


def main(argv: Sequence[str] | None = None) -> int:
    """Has the tasks done and judges the answers; 0 if all are good, 1 if not, 2 if not started."""
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
        pulled = settings.protocol == "pull"
        started = "waiting for the miner to pull" if pulled else f"asking {settings.miner}"
        ticket = bar.add_task(started, total=len(tasks))

        def on_record(record: TrialRecord) -> None:
            append_record(settings.out, record)
            bar.update(ticket, advance=1, description=f"{record.name}: {record.outcome}")

        carry_out = _serve_all if pulled else _ask_all
        try:
            records = asyncio.run(carry_out(settings, wallet, tasks, on_record))
        except SetupError as error:
            print(f"error: {error}", file=sys.stderr)
            return NOT_STARTED
    write_records(settings.out, records)
    console.print(results_table(records))
    return GOOD if all(record.good for record in records) else BAD


def results_table(records: Sequence[TrialRecord]) -> Table:
    """Lays the records out for a terminal."""
    table = Table("task")
    table.add_column("stages, s", no_wrap=True)
    for heading in ("total", "Gaussians", "MB"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("outcome and checks")
    for record in records:
        stages = "\n".join(f"{stage} {seconds:.2f}" for stage, seconds in record.timings.items())
        table.add_row(
            escape(record.prompt),
            stages,
            f"{record.elapsed_s:.2f}",
            f"{record.gaussians:,}" if record.gaussians else "",
            f"{record.size_bytes / 1e6:.2f}" if record.size_bytes else "",
            f"[green]{record.outcome}, good"
            if record.good
            else f"[red]{escape('; '.join(record.problems))}",
        )
    return table


async def _ask_all(
    settings: TrialSettings,
    wallet: Any,
    tasks: Sequence[TrialTask],
    on_record: Callable[[TrialRecord], None],
) -> list[TrialRecord]:
    import bittensor

    from miner.transports.pull.dendrite import offline_dendrite

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


async def _serve_all(
    settings: TrialSettings,
    wallet: Any,
    tasks: Sequence[TrialTask],
    on_record: Callable[[TrialRecord], None],
) -> list[TrialRecord]:
    """Serves the tasks on an axon until the miner has brought them all back, or time is up."""
    import bittensor

    from miner.mock_validator.pull_axon import PullAxon
    from miner.mock_validator.pull_rules import Rules
    from miner.mock_validator.pull_trial import PullTrial, Terms
    from miner.transports.axon_server import AxonServer
    from miner.transports.sockets import bound_socket

    def verify(hotkey: str, payload: bytes, signature: bytes) -> bool:
        try:
            return bool(bittensor.Keypair(ss58_address=hotkey).verify(payload, signature))
        except ValueError:
            return False

    rules = Rules(
        threshold=settings.rules_threshold,
        cooldown_s=settings.rules_cooldown,
        throttle_s=settings.rules_throttle,
        penalty_s=settings.rules_penalty,
        lock_s=min(Rules.lock_s, settings.rules_cooldown),
    )
    hotkey = wallet.hotkey.ss58_address
    terms = Terms(hotkey, settings.miner_hotkey, rules, settings.timeout, settings.out)
    trial = PullTrial(tasks, terms, verify=verify, on_record=on_record)
    bittensor.logging.off()
    bound = bound_socket(settings.axon_ip, settings.axon_port)
    axon = bittensor.Axon(
        wallet=wallet,
        config=bittensor.Config(),  # Without a parser it cannot read our command line.
        ip=settings.axon_ip,
        port=settings.axon_port,
        external_ip=settings.axon_ip,  # Otherwise the constructor asks the internet.
    )
    PullAxon(trial, axon)
    server = AxonServer(axon, bound)
    await server.start()
    ends = time.monotonic() + settings.wait
    try:
        # Not in one go: after Ctrl-C the thread would hold the process until the end.
        while not await asyncio.to_thread(trial.finished, 0.25) and time.monotonic() < ends:
            pass
    finally:
        await server.stop()
    return trial.records()


def _wallet(settings: TrialSettings) -> Any:
    if settings.wallet_ephemeral:
        import bittensor

        return bittensor.Keypair.create_from_mnemonic(bittensor.Keypair.generate_mnemonic())
    from miner.chain.wallets import open_wallet

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
