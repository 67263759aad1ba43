"""The subnet owner's gateway: what its workers sign, send and take. Pure.

Workers take tasks with `POST /get_tasks` (JSON) and deliver with `POST /add_result`
(multipart/form-data); clients use `POST /add_task`, `GET /get_status` and `GET /get_result`.
Values that an operator of a gateway can change are the example values of its repository.

Source: 404-Repo/gateway-rs, 2026-06-24. docs/gateway.md is the page for operators.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError
from pydantic_core import from_json

from protocol.errors import TaskError
from protocol.images import ImageLimits
from protocol.tasks import RANDOM_SEED, Task, TaskLimits, parse_task

GET_TASKS, ADD_RESULT = "/get_tasks", "/add_result"
ADD_TASK, GET_STATUS, GET_RESULT = "/add_task", "/get_status", "/get_result"
GET_LOAD, GET_ID = "/get_load", "/id"
SPLATS = "404-3dgs"

TIMESTAMP_PREFIX = "404_GATEWAY_"
FRESH_S = 30
"""Seconds up to which a timestamp is taken. One that is ahead of the gateway's clock is not."""

MAX_REQUESTED_TASKS = 500
MAX_ADD_RESULT_BYTES = 100 * 2**20
MAX_TAGS = 64
"""With more, the body of `POST /get_tasks` could exceed the 4,096 bytes that a gateway takes."""
MAX_REASON_BYTES = 255
_ELLIPSIS = "…"
_LAST_WORD, _BEHIND_A_WORD = re.compile(r"\S*\Z"), re.compile(r"[\s,;:]+\Z")

ADD_RESULTS_PER_MINUTE = 120
"""Per IP address and fixed minute, shared by /add_result, /get_load and /get_leader."""
ADD_TASKS_PER_MINUTE, STATUSES_PER_MINUTE = 30, 1000

TASK_LIFE_S = 600.0
"""From the client's submission, the wait in the queue included."""
QUEUE_LIFE_S = 1800.0
RESULT_LIFE_S = 300.0
"""From the last result of a task."""

TASK_LIMITS = TaskLimits(image=ImageLimits(bytes=2 * 2**20, pixels=1024 * 1024, side=1024))
"""What a worker takes: pictures as the gateway does, prompts up to this project's own limit."""

MAX_NODES = 256
"""Entries of a list of gateways that are read."""

ASSET_FILE_NAME, ASSET_CONTENT_TYPE = "result.spz", "application/octet-stream"
"""Of the asset's part; a gateway looks at neither."""

INVALID_AUTHENTICATION = "Invalid worker authentication"
NOT_WHITELISTED = "Worker hotkey is not whitelisted"
NOT_ASSIGNED = "Worker hotkey is not assigned to task"
BEING_PROCESSED = "Result is already being processed; please retry"
CONTEXT_UNAVAILABLE: dict[str, str] = {
    "error": "task_context_unavailable",
    "message": "Task context is unavailable on this gateway after restart; the task will be "
    "refunded on timeout.",
}
"""The body of a 410."""

MIN_SEED = -(2**31)
"""Of the signed seeds of 32 bits on the wire."""

_TAG = re.compile(r"[a-z0-9_-]{1,32}")
_Id = Annotated[str, Field(min_length=1, max_length=64)]


def timestamp_at(seconds: float) -> str:
    """Returns the text that a worker signs, of a time in seconds since the epoch.

    Its UTF-8 bytes are all that the signature covers: neither the body nor the address.
    """
    return f"{TIMESTAMP_PREFIX}{int(seconds)}"


def check_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Returns a worker's tags trimmed, in lower case, each once.

    Raises:
        ValueError: One is empty, longer than 32 characters, or has others than a-z, 0-9, _ and -;
            or they are more than `MAX_TAGS`.
    """
    cleaned = [tag.strip().lower() for tag in tags]
    if len(cleaned) > MAX_TAGS:
        raise ValueError(f"{len(cleaned)} tags are too many: a request has room for {MAX_TAGS}")
    for tag in cleaned:
        if not _TAG.fullmatch(tag):
            raise ValueError(f"the tag {tag[:32]!r} is not 1-32 characters of a-z, 0-9, _ and -")
    return tuple(dict.fromkeys(cleaned))


class GetTasks(BaseModel):
    """The body of `POST /get_tasks`.

    Attributes:
        worker_hotkey: SS58 address.
        signature: Base64 of the hotkey's signature over `timestamp`.
        timestamp: See `timestamp_at`.
        worker_id: Any name; the gateway shows it to the client of a delivered task.
        requested_task_count: How many tasks are wanted, 0..500; more count as 500.
        model: What the worker makes.
        worker_tags: See `check_tags`; None for a worker without any.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    worker_hotkey: str
    signature: str = Field(repr=False)
    timestamp: str
    worker_id: str
    requested_task_count: int = Field(ge=0)
    model: str = SPLATS
    worker_tags: list[str] | None = None

    def body(self) -> bytes:
        """Returns the JSON to send; `worker_tags` is left out where there are none."""
        return self.model_dump_json(exclude_none=True).encode()


class GatewayTask(BaseModel):
    """A task as a gateway hands it out, with either `prompt` or `image`.

    Attributes:
        id: The gateway's id, a UUID.
        prompt: The text.
        image: Base64 of the picture's bytes as the client uploaded them.
        model: What the client asked for.
        seed: Signed, 32 bits; may be negative.
        model_params: The client's JSON object, if it gave one.
        assignment_token: A UUID that belongs to this worker's assignment.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    id: _Id
    prompt: str | None = Field(default=None, repr=False)
    image: str | None = Field(default=None, repr=False)
    model: str = SPLATS
    seed: int | None = None
    model_params: dict[str, Any] | None = Field(default=None, repr=False)
    assignment_token: _Id | None = None
    _fault: str = PrivateAttr("")
    """Why it could not be read."""

    @property
    def kind(self) -> Literal["text", "image"]:
        """The kind of the task, as `protocol.tasks` calls it."""
        return "text" if self.image is None else "image"

    def task(self, limits: TaskLimits = TASK_LIMITS) -> Task:
        """Returns the checked task; its seed is the wire's modulo 2**32.

        Decodes base64: call it off the event loop.

        Raises:
            TaskError: It could not be read, is for another model, has neither or both of prompt
                and image, or a value beyond its limit.
        """
        if self._fault:
            raise TaskError(self._fault)
        if self.model != SPLATS:
            raise TaskError(f"this worker makes {SPLATS}, not {self.model[:32]!r}")
        if (self.prompt is None) == (self.image is None):
            raise TaskError("the task needs either a prompt or an image")
        seed = self.seed
        if seed is not None and seed != RANDOM_SEED:
            if not MIN_SEED <= seed < 2**32:
                raise TaskError("the seed is not a number of 32 bits")
            seed %= 2**32
        return parse_task(
            kind=self.kind,
            task_id=self.id,
            prompt=self.prompt if self.image is None else self.image,  # type: ignore[arg-type]
            seed=seed,
            limits=limits,
        )


class GatewayNode(BaseModel):
    """An entry of a list of gateways: one node of the cluster.

    Attributes:
        node_id, name: Its number, and its name for people.
        domain, ip, http_port: Where it is reached.
        available_tasks: Tasks queued there, of all models, this worker's earlier ones included.
        last_task_acquisition: When any worker last asked there; seconds since the epoch.
        last_update: When this entry was renewed; seconds since the epoch.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    node_id: int = 0
    domain: str = Field(max_length=253)
    ip: str = Field(default="", max_length=64)
    name: str = Field(default="", max_length=253)
    http_port: int = Field(ge=1, le=65535)
    available_tasks: int = 0
    last_task_acquisition: int = 0
    last_update: int = 0


@dataclass(frozen=True)
class TasksAnswer:
    """The answer to `POST /get_tasks`.

    Attributes:
        tasks: At most 500.
        gateways: At most 256 nodes; those that cannot be read are left out.
    """

    tasks: tuple[GatewayTask, ...] = ()
    gateways: tuple[GatewayNode, ...] = ()


def read_tasks(body: bytes) -> TasksAnswer:
    """Reads the answer to `POST /get_tasks`. One bad task or node does not affect the others.

    A task with an id that cannot be read otherwise is kept, with its fault, to be reported.

    Args:
        body: The JSON, of a size that the caller has limited.

    Raises:
        ValueError: It is not a JSON object with a list of tasks.
    """
    try:
        answer = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise ValueError("the answer is not JSON") from error
    if not isinstance(answer, dict) or not isinstance(answer.get("tasks"), list):
        raise ValueError("the answer has no list of tasks")
    tasks = map(_read_task, answer["tasks"][:MAX_REQUESTED_TASKS])
    return TasksAnswer(tuple(filter(None, tasks)), read_nodes(answer.get("gateways")))


def read_nodes(raw: object) -> tuple[GatewayNode, ...]:
    """Returns the readable entries of a list of gateways, at most 256."""
    nodes = []
    for each in raw[:MAX_NODES] if isinstance(raw, list) else ():
        try:
            nodes.append(GatewayNode.model_validate(each))
        except ValidationError:
            continue
    return tuple(nodes)


@dataclass(frozen=True)
class AddResult:
    """The form of `POST /add_result`: an asset, or a reason why there is none.

    Attributes:
        id: The gateway's id of the task.
        signature: Base64 of the hotkey's signature over `timestamp`.
        timestamp: See `timestamp_at`.
        worker_hotkey: SS58 address.
        worker_id: The same as in `GetTasks`.
        assignment_token: The token of the task.
        asset: The SPZ file; None reports a failure.
        reason: Why there is no asset; see `cut_reason`.
    """

    id: str
    signature: str = field(repr=False)
    timestamp: str
    worker_hotkey: str
    worker_id: str
    assignment_token: str | None = field(repr=False)
    asset: bytes | None = field(default=None, repr=False)
    reason: str = ""

    def fields(self) -> tuple[tuple[str, str], ...]:
        """Returns names and values of all text parts, in order. An asset follows as the last part.

        Its name is "asset"; a gateway takes no part behind it.
        """
        parts = [
            ("id", self.id),
            ("signature", self.signature),
            ("timestamp", self.timestamp),
            ("worker_hotkey", self.worker_hotkey),
            ("worker_id", self.worker_id),
        ]
        if self.assignment_token is not None:
            parts.append(("assignment_token", self.assignment_token))
        if self.asset is not None:
            return (*parts, ("status", "success"))
        return (*parts, ("status", "failure"), ("reason", cut_reason(self.reason)))


def cut_reason(reason: str) -> str:
    """Returns a reason within 255 bytes of UTF-8; a longer one ends after a word, with "…"."""
    data = reason.encode("utf-8", "replace")
    text = data.decode()
    if len(data) <= MAX_REASON_BYTES:
        return text
    start = data[: MAX_REASON_BYTES - len(_ELLIPSIS.encode())].decode("utf-8", "ignore")
    whole = start if text[len(start)].isspace() else _LAST_WORD.sub("", start)
    # A text of one word is cut where it has to be.
    return (_BEHIND_A_WORD.sub("", whole) or start) + _ELLIPSIS


def _read_task(raw: object) -> GatewayTask | None:
    try:
        return GatewayTask.model_validate(raw)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors(include_input=False)[0]["loc"])
    for names in (("id", "assignment_token"), ("id",)):  # A token is optional in a report.
        try:
            named = GatewayTask.model_validate({key: raw.get(key) for key in names})  # type: ignore[attr-defined]
        except (ValidationError, AttributeError):
            continue
        named._fault = f"its {where[:64]} cannot be read"
        return named
    return None  # It cannot be named, so nothing can be reported.
