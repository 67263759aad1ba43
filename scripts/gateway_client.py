"""A client of the subnet owner's gateway: `python -m scripts.gateway_client "a red car"`.

It submits prompts and pictures, follows their status, and fetches the results. The mock takes it as
well: `python -m neurons.mock_validator --protocol gateway --gateway.open true`.
"""

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import CliPositionalArg
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from generation.scoring.validity import check
from generation.weights.sources import Names
from miner.interpreter import program_name
from miner.mock_validator.records import record_name
from miner.mock_validator.tasks import TrialTask, collect_tasks
from miner.settings.model import ANY_NAME
from miner.settings.reader import Settings, read_settings
from miner.surroundings import settle, settle_terminal, starting_up, tell
from miner.transports.gateway.addresses import base_address, is_this_machine
from protocol import spz
from protocol.documents import DocumentError, parse_json
from protocol.errors import CodecError, SetupError
from protocol.files import replace_file
from protocol.gateway import MIN_SEED
from protocol.text import printable
from scripts.gateway_calls import ClientFault, Format, GatewayClient, TaskStatus

GOOD, BAD, NOT_STARTED, INTERRUPTED = 0, 1, 2, 130

FOLLOW_S = 1.0
"""Seconds between two requests for a status."""
MINUTE_S = 61.0
"""Seconds after which a gateway's limit of calls per minute has begun again."""
ALL_WITHIN_S = 240.0
"""Seconds after the last success within which all results are fetched, also if further workers are
at it: a gateway removes them after 300 s."""
MOST_FAULTS = 10
"""Failed requests for a status in a row, after which a task is given up."""

_ENDS: dict[Format, str] = {"spz": "spz", "ply": "ply", "all": "zip"}


class GatewayClientSettings(Settings):
    """Submit prompts and pictures to the subnet owner's gateway, and fetch the results.

    Exit status: 0 all results are here, 1 one is not, 2 a wrong argument or an unusable file.
    """

    prompt: CliPositionalArg[tuple[str, ...]] = ()
    """What to make, an object per argument: "a red car" "a blue mug"."""
    url: str = "http://127.0.0.1:8094"
    """Base address of the gateway: that of one node, such as https://api-eu.404.xyz. Behind the
    name of all regions, two calls may reach two nodes, and only one of them knows a task."""
    allow_http: bool = False
    """Take http:// beyond this machine, although whoever reads a request gets the key."""
    prompts: Annotated[Path | None, ANY_NAME] = None
    """Text file with further prompts, one a line."""
    images: Annotated[Path | None, ANY_NAME] = None
    """Folder of PNG, JPEG and WebP files to submit."""
    out: Annotated[Path, ANY_NAME] = Path("gateway-results")
    """Folder of the results; it is made if it is not there."""
    formats: Names = ("spz",)
    """What to fetch of each task, with commas: spz and ply are the first result, all is a zip of
    every worker's. It is fetched when all are done, or 240 s after the last of them."""
    seed: Annotated[int, Field(ge=MIN_SEED, le=2**32 - 1)] | None = None
    """Seed of every task; random if not given."""
    model: Literal["404-3dgs", "404-mesh", "404-mesh-v2"] = "404-3dgs"
    """What to make; the mesh models take pictures only."""
    params: str | None = None
    """JSON object of parameters for the model."""
    origin: Literal["discord", "unity", "blender", "gen.404.xyz", "api"] = "api"
    """Who asks, as the gateway counts it."""
    concurrency: Annotated[int, Field(ge=1, le=16)] = 2
    """Tasks at once."""
    wait: Annotated[float, Field(gt=0.0, le=86_400.0)] = 660.0
    """Seconds in which a task must have its result."""
    api_key: SecretStr | None = None
    """The key, a UUID; better kept in the environment than on the command line."""

    @field_validator("formats")
    @classmethod
    def _formats_are_known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in get_args(Format):
                raise ValueError(f"it has {name!r}; there are {', '.join(get_args(Format))}")
        return tuple(dict.fromkeys(value))

    @model_validator(mode="after")
    def _gateway_can_be_asked(self) -> Self:
        if self.api_key is None:
            raise SetupError(
                "there is no API key",
                fix="put it into GATEWAY_API_KEY; a mock gateway takes any UUID, as of: uuidgen",
            )
        try:
            address = base_address(self.url, allow_http=True)
        except ValueError as error:
            raise SetupError(f"--url: {error}", fix="check the address") from None
        parts = urlsplit(address)
        local = is_this_machine(parts.hostname or "")
        if parts.scheme == "http" and not local and not self.allow_http:
            raise SetupError(
                f"--url {address} is not encrypted, and whoever reads a request gets the key",
                fix="use https://, or insist with --allow_http true",
            )
        return self


@dataclass
class Fetching:
    """A task on its way.

    Attributes:
        task: What is submitted.
        bar: Its line.
        id: The gateway's id, once it has one.
        files: What has been written.
        problem: Why it has no result; empty if it has.
    """

    task: TrialTask
    bar: TaskID
    id: str = ""
    files: list[str] = field(default_factory=list)
    problem: str = ""


def main(argv: Sequence[str] | None = None) -> int:
    """Submits, follows and fetches; returns the exit status."""
    settle_terminal()
    try:
        with starting_up():
            settings = read_settings(
                GatewayClientSettings,
                prog=program_name("scripts.gateway_client"),
                env_prefix="GATEWAY",
                argv=argv,
            )
            settle()
            tasks, params = _tasks(settings), _params(settings.params)
            _make_folder(settings.out)
    except SetupError as error:
        tell(error)
        return NOT_STARTED
    console = Console()
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        try:
            fetched = asyncio.run(fetch_all(settings, tasks, params, progress))
        except KeyboardInterrupt:
            print(
                f"\ninterrupted; what was fetched is in {printable(str(settings.out))}, and "
                "submitted tasks go on",
                file=sys.stderr,
            )
            return INTERRUPTED
    return BAD if any(each.problem for each in fetched) else GOOD


async def fetch_all(
    settings: GatewayClientSettings,
    tasks: Sequence[TrialTask],
    params: dict[str, Any] | None,
    progress: Progress,
) -> list[Fetching]:
    """Submits the tasks, as many at once as the settings say, and fetches their results.

    Args:
        settings: What the user wants.
        tasks: What to submit.
        params: For the model.
        progress: Gets a line per task, and says what became of it.

    Returns:
        What has become of the tasks, in their order.
    """
    turns = asyncio.Semaphore(settings.concurrency)
    assert settings.api_key is not None  # The settings have checked it.
    url = base_address(settings.url, allow_http=True)

    async def one(fetching: Fetching) -> None:
        async with turns:
            try:
                await _fetch(client, settings, params, fetching, progress)
            except ClientFault as fault:
                fetching.problem = f"{fault}; {fault.fix}" if fault.fix else str(fault)
            except OSError as error:
                fetching.problem = f"it cannot be written: {error.strerror or error}"
        shown = escape(fetching.task.shown[:60])
        if fetching.problem:
            progress.console.print(f"[red]{shown}: {escape(fetching.problem)}")
        else:
            progress.console.print(f"{shown}: {escape(', '.join(fetching.files))}")
        progress.remove_task(fetching.bar)

    fetchings = [
        Fetching(task, progress.add_task(escape(f"{task.shown[:60]}: waiting"), total=None))
        for task in tasks
    ]
    async with GatewayClient(url, settings.api_key, origin=settings.origin) as client:
        await asyncio.gather(*map(one, fetchings))
    return fetchings


async def _fetch(
    client: GatewayClient,
    settings: GatewayClientSettings,
    params: dict[str, Any] | None,
    fetching: Fetching,
    progress: Progress,
) -> None:
    def show(words: str) -> None:
        shown = escape(f"{fetching.task.shown[:60]}: {words}")
        progress.update(fetching.bar, description=shown)

    ends = asyncio.get_running_loop().time() + settings.wait
    while not fetching.id:
        show("submitting")
        try:
            fetching.id = await client.add(
                fetching.task, seed=settings.seed, model=settings.model, params=params
            )
        except ClientFault as fault:
            # The limiter has taken nothing. After any other fault, the task may be there.
            limited = fault.status == 429 and not fault.code
            if not limited or asyncio.get_running_loop().time() + MINUTE_S > ends:
                raise
            show("the gateway's limit of tasks per minute is reached, waiting")
            await asyncio.sleep(MINUTE_S)
    waits_for_all = "all" in settings.formats
    status = await _followed(client, fetching.id, ends, waits_for_all=waits_for_all, show=show)
    for form in get_args(Format):
        if form in settings.formats:
            show(f"fetching {form}")
            data = await _patiently(client, fetching.id, form)
            fetching.files.append(await asyncio.to_thread(_write, settings, fetching, form, data))
    if status.detail:
        fetching.files.append(f"by {status.detail}")


async def _followed(
    client: GatewayClient, task_id: str, ends: float, *, waits_for_all: bool, show: Any
) -> TaskStatus:
    """Waits for a result; returns the status with which it can be fetched."""
    loop, faults, said = asyncio.get_running_loop(), 0, "NoResult"
    successes, last_success = 0, loop.time()
    while loop.time() < ends:
        try:
            status, faults = await client.status(task_id), 0
        except ClientFault as fault:
            faults += 1
            if not fault.passes or faults >= MOST_FAULTS:
                raise
            show(str(fault))
            await asyncio.sleep(MINUTE_S if fault.status == 429 else FOLLOW_S)
            continue
        said = status.name
        show(said if status.name != "PartialResult" else f"{status.successes} results so far")
        if status.name == "Failure":
            raise ClientFault(
                f"it failed: {status.detail}",
                fix="change it if the reason says why, else submit it again",
            )
        if status.successes > successes:
            successes, last_success = status.successes, loop.time()
        enough = not waits_for_all or loop.time() - last_success >= ALL_WITHIN_S
        if status.ended or (status.successes and enough):
            return status
        await asyncio.sleep(FOLLOW_S)
    raise ClientFault(
        f"it has no result in time; its last status is {said}",
        fix="give a longer --wait; NoResult all the time means that nobody works here, or that "
        "another node has the task",
    )


async def _patiently(client: GatewayClient, task_id: str, form: Format) -> bytes:
    """Fetches a result, again after a fault that passes: fetching changes nothing."""
    for tries_left in (2, 1, 0):
        try:
            return await client.result(task_id, form)
        except ClientFault as fault:
            if not fault.passes or not tries_left:
                raise
            await asyncio.sleep(MINUTE_S if fault.status == 429 else FOLLOW_S)
    raise AssertionError("unreachable")


def _write(settings: GatewayClientSettings, fetching: Fetching, form: Format, data: bytes) -> str:
    """Writes a result, and returns what to say of it."""
    end = "glb" if settings.model != "404-3dgs" and form != "all" else _ENDS[form]
    path = settings.out / f"{fetching.task.name}.{end}"
    replace_file(path, data)
    said = f"{printable(str(path))} ({len(data):,} bytes"
    if end == "spz":
        try:
            cloud = spz.decode(data)
            report = check(cloud, wire_bytes=len(data))
            said += f", {len(cloud):,} Gaussians, {report.summary()}"
        except CodecError as error:
            said += f", which are not the subnet's SPZ: {error}"
    return said + ")"


def _tasks(settings: GatewayClientSettings) -> list[TrialTask]:
    given = [
        TrialTask(record_name(number, prompt), "text", printable(prompt, 1024), prompt)
        for number, prompt in enumerate(settings.prompt, start=1)
    ]
    listed: list[TrialTask] = []
    if settings.prompts is not None or settings.images is not None:
        listed = collect_tasks(settings.prompts, settings.images)
    if not given and not listed:
        raise SetupError(
            "there is nothing to submit",
            fix='say what to make, such as "a red car", or give --prompts or --images',
        )
    renamed = [
        TrialTask(record_name(number, task.shown), task.kind, task.shown, task.wire)
        for number, task in enumerate(listed, start=len(given) + 1)
    ]
    return [*given, *renamed]


def _params(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        value = parse_json(text, "--params")
    except DocumentError as error:
        raise SetupError(str(error), fix="write a JSON object, such as {}") from None
    if not isinstance(value, dict):
        raise SetupError("--params is no JSON object", fix="write one, such as {}")
    return value


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SetupError(
            f"the folder {printable(str(folder))} cannot be made: {error.strerror}",
            fix="choose another one with --out",
        ) from error


if __name__ == "__main__":
    sys.exit(main())
