"""What a node answers workers: `/get_tasks` and `/add_result`. Pure: bytes in, answers out."""

import base64
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from miner.mock_gateway.checks import (
    WorkerChecks,
    json_object,
    models,
    task_count,
    text_field,
    uuid_of,
    worker_tags,
)
from miner.mock_gateway.replies import (
    GatewayRefusal,
    GatewayReply,
    as_json,
    bad_request,
    by_accept,
    gone,
    text,
    unauthorized,
    unavailable,
)
from miner.mock_gateway.store import StoredTask, TaskCopy, TaskStore

MAX_BODY_BYTES = 4096
"""Of `/get_tasks`."""
MAX_REASON = 255
MAX_TEXT_BYTES = 64 * 1024
"""Of a text part: more than any needs, and no more than this mock wants to hold."""

_ASSET_LAST = (
    "Asset field must come after id, signature, timestamp, worker hotkey, worker_id, status, and "
    "optional assignment_token fields"
)
_REQUIRED = ("id", "signature", "timestamp", "worker_hotkey", "worker_id", "status")
_NAMES = (*_REQUIRED, "validator_hotkey", "assignment_token", "asset", "reason")


@dataclass(frozen=True)
class _Claim:
    """A result whose sender may deliver it."""

    task: StoredTask
    copy: TaskCopy


@dataclass
class ResultForm:
    """A form of `/add_result` that is arriving, part by part.

    Give it every part in its order: `begin` when the part begins, `end` with its bytes. Then call
    `complete`.

    Attributes:
        limit: Bytes that the part which has begun may have.
    """

    checks: WorkerChecks
    store: TaskStore
    limit: int = 0
    _fields: dict[str, str] = field(default_factory=dict)
    _asset: bytes | None = None
    _name: str = ""
    _claim: _Claim | None = None

    def begin(self, name: str | None) -> None:
        """Checks that this part may come now; at the asset, who sends it.

        Raises:
            GatewayRefusal: It may not.
        """
        if name is None:
            raise bad_request("Unnamed field")
        if name not in _NAMES:
            raise bad_request(f"Field error: unknown field received: {name[:64]}")
        self._name = "worker_hotkey" if name == "validator_hotkey" else name
        if self._name in self._fields or (self._name == "asset" and self._asset is not None):
            raise bad_request(f"Duplicate {self._name} field")
        if self._asset is not None:
            raise bad_request(_ASSET_LAST)
        self.limit = {"reason": MAX_REASON}.get(name, MAX_TEXT_BYTES)
        if name == "asset":
            if any(each not in self._fields for each in _REQUIRED):
                raise bad_request(_ASSET_LAST)
            if self._fields["status"] == "failure":
                raise bad_request("Asset is only allowed when status=success")
            self.limit = self.checks.rules.max_result_bytes
            self._claim = self._authorize()

    def too_large(self) -> GatewayRefusal:
        """Returns the answer to a part that has more bytes than its limit."""
        if self._name == "asset":
            return bad_request(f"Asset exceeds maximum allowed size ({self.limit} bytes)")
        return bad_request(
            f"Failed to read {self._name}: field '{self._name}' exceeded the size limit: "
            f"{self.limit} bytes"
        )

    def end(self, value: bytes) -> None:
        """Takes the bytes of the part that has begun.

        Raises:
            GatewayRefusal: They are not what the part may hold.
        """
        if len(value) > self.limit:
            raise self.too_large()
        if self._name == "asset":
            self._asset = value
            return
        words = value.decode("utf-8", "replace")
        if self._name == "worker_hotkey":
            self.checks.hotkey("worker_hotkey", words)
        elif self._name == "assignment_token":
            words = uuid_of("assignment_token", words)
        elif self._name == "status" and words not in ("success", "failure"):
            raise bad_request("Invalid status")
        self._fields[self._name] = words

    def complete(self) -> Callable[[], GatewayReply]:
        """Ends the form and begins to store it.

        Returns:
            What stores it and answers; until it is called, a duplicate gets 503.

        Raises:
            GatewayRefusal: Something is missing, or its sender may not deliver this.
        """
        for name in _REQUIRED:
            if name not in self._fields:
                shown = {"worker_hotkey": "validator_hotkey or worker_hotkey"}.get(name, name)
                raise bad_request(f"Missing {shown} field")
        success = self._fields["status"] == "success"
        if success and self._asset is None:
            raise bad_request("Missing asset for success")
        if not success and "reason" not in self._fields:
            raise bad_request("Missing reason for failure")
        claim = self._claim or self._authorize()
        # The upload may have taken longer than the task has lived.
        if self.store.context(claim.task.id) is None:
            raise unauthorized("Worker hotkey is not assigned to task")
        if not self.store.stage(claim.task, claim.copy.hotkey):
            raise unavailable("Result is already being processed; please retry")

        def store() -> GatewayReply:
            if claim.task.taken.get(claim.copy.hotkey) is not claim.copy:
                self.store.unstage(claim.task, claim.copy.hotkey)
                raise unauthorized("Worker hotkey is not assigned to task")
            reason = "" if success else self._fields["reason"]
            self.store.commit(claim.task, claim.copy, asset=self._asset, reason=reason)
            return text(200, "Ok")

        return store

    def _authorize(self) -> _Claim:
        """Checks id, signature and assignment, in the order of the real gateway."""
        fields = self._fields
        task_id = uuid_of("id", fields["id"])
        hotkey = fields["worker_hotkey"]
        self.checks.signed(hotkey, fields["timestamp"], fields["signature"])
        task = self.store.context(task_id)
        if task is None:
            raise gone()
        copy, token = task.taken.get(hotkey), fields.get("assignment_token")
        if copy is None or (
            token != copy.token if token is not None else fields["worker_id"] != copy.worker_id
        ):
            raise unauthorized("Worker hotkey is not assigned to task")
        return _Claim(task, copy)


def get_tasks(
    body: bytes,
    *,
    checks: WorkerChecks,
    store: TaskStore,
    gateways: Callable[[], list[dict[str, Any]]],
    called: Callable[[], None],
    accept: str = "",
    unstored: bool = False,
) -> GatewayReply:
    """Answers `POST /get_tasks`.

    Args:
        body: Of the request.
        checks: Of workers.
        store: The node's tasks.
        gateways: The list of nodes.
        called: Called with every call that is in order, before tasks are looked for.
        accept: Header of the request.
        unstored: Whether the assignment cannot be stored.

    Raises:
        GatewayRefusal: The request is not in order.
    """
    if len(body) > MAX_BODY_BYTES:
        raise GatewayRefusal(by_accept(413, accept))
    value = json_object(body)
    hotkey = checks.hotkey("worker_hotkey", text_field(value, "worker_hotkey", "validator_hotkey"))
    worker_id = text_field(value, "worker_id")
    signature, timestamp = text_field(value, "signature"), text_field(value, "timestamp")
    count = min(task_count(value), checks.rules.queue_limit)
    checks.signed(hotkey, timestamp, signature)
    asked, tags = models(value), worker_tags(value)
    called()
    taken = [] if unstored else store.take(hotkey, worker_id, asked, tags, count)
    tasks = [_handed_out(task, copy) for task, copy in taken]
    return as_json(200, {"tasks": tasks, "gateways": gateways()})


def add_result(
    parts: Iterable[tuple[str | None, bytes]], *, checks: WorkerChecks, store: TaskStore
) -> GatewayReply:
    """Answers `POST /add_result`, whose parts are all there.

    Raises:
        GatewayRefusal: The request is not in order.
    """
    form = ResultForm(checks, store)
    for name, value in parts:
        form.begin(name)
        form.end(value)
    return form.complete()()


def _handed_out(task: StoredTask, copy: TaskCopy) -> dict[str, Any]:
    shown: dict[str, Any] = {"id": task.id}
    if task.prompt is not None:
        shown["prompt"] = task.prompt
    if task.image is not None:
        shown["image"] = base64.b64encode(task.image).decode()
    shown |= {"model": task.model, "seed": task.seed}
    if task.params is not None:
        shown["model_params"] = task.params
    return {**shown, "assignment_token": copy.token}
