"""A mock gateway without sockets, and its counterparts: requests are written here by hand.

Nothing of the worker's or the client's own code is used, so that a fault of theirs cannot hide in
both.
"""

import base64
import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from PIL import Image

from miner.mock_gateway.node import MockCluster, MockNode
from miner.mock_gateway.replies import GatewayRefusal, GatewayReply
from miner.mock_gateway.rules import GatewayRules, KeyOwner
from tests.support.fakes import Clock

BEGIN = 1_782_345_678.0
ALICE, BOB, CAROL = (f"5{name}" for name in ("Alice", "Bob", "Carol"))
KEY = "6eca4068-3be6-4d30-b828-f63cda3bc35b"
OTHER_KEY = "b6c8597a-00e9-493a-b6cd-5dfc7244d46b"
OWNER = KeyOwner("owner")


def sign(hotkey: str, text: str) -> str:
    """A signature that needs no cryptography; base64 of 64 bytes."""
    return base64.b64encode(hashlib.sha512(f"{hotkey}:{text}".encode()).digest()).decode()


def verify(hotkey: str, payload: bytes, signature: bytes) -> bool:
    return base64.b64encode(signature).decode() == sign(hotkey, payload.decode())


def cluster(clock: Callable[[], float], nodes: int = 1, **rules: Any) -> MockCluster:
    """A cluster whose chance is the same in every run."""
    made = MockCluster(
        GatewayRules(**rules),
        verify=verify,
        is_hotkey=lambda text: text.startswith("5"),
        clock=clock,
        random_numbers=random.Random(7),
    )
    for number in range(nodes):
        made.add_node("127.0.0.1", 8094 + number)
    return made


def answered(call: Callable[..., Any], *args: Any, **kwargs: Any) -> GatewayReply:
    """The answer to a request, also if it is refused."""
    try:
        reply: GatewayReply = call(*args, **kwargs)
    except GatewayRefusal as refusal:
        return refusal.reply
    return reply


def value(reply: GatewayReply) -> Any:
    assert reply.content_type.startswith("application/json")
    return json.loads(reply.body)


def picture(width: int = 64, height: int = 48, form: str = "PNG") -> bytes:
    file = BytesIO()
    Image.new("RGB", (width, height), "green").save(file, form)
    return file.getvalue()


@dataclass
class GatewayWorker:
    """A worker that writes its requests by the published contract."""

    node: MockNode
    clock: Clock
    hotkey: str = ALICE
    worker_id: str = "alice-1"

    def signed(self, at: float | None = None) -> dict[str, str]:
        timestamp = f"404_GATEWAY_{int(self.clock.now if at is None else at)}"
        return {"timestamp": timestamp, "signature": sign(self.hotkey, timestamp)}

    def request(self, **changes: Any) -> dict[str, Any]:
        """The body of get_tasks; a change to None removes the field."""
        fields = {
            "worker_hotkey": self.hotkey,
            **self.signed(),
            "worker_id": self.worker_id,
            "requested_task_count": 1,
            "model": "404-3dgs",
            **changes,
        }
        return {name: field for name, field in fields.items() if field is not None}

    def get_tasks(self, **changes: Any) -> GatewayReply:
        return self.ask(json.dumps(self.request(**changes)).encode())

    def ask(self, body: bytes) -> GatewayReply:
        return answered(self.node.get_tasks, body)

    def take(self, count: int = 1, **changes: Any) -> list[dict[str, Any]]:
        reply = self.get_tasks(requested_task_count=count, **changes)
        assert reply.status == 200, reply.body
        tasks: list[dict[str, Any]] = value(reply)["tasks"]
        return tasks

    def form(self, task: dict[str, Any], **changes: Any) -> list[tuple[str, bytes]]:
        """The parts of add_result, the asset last; a change to None removes the part."""
        failure = changes.get("status") == "failure"
        fields: dict[str, Any] = {
            "id": task["id"],
            **self.signed(),
            "worker_hotkey": self.hotkey,
            "worker_id": self.worker_id,
            "assignment_token": task["assignment_token"],
            "status": "success",
            "reason": "no object" if failure else None,
            "asset": None if failure else b"asset of " + self.hotkey.encode(),
            **changes,
        }
        return [
            (name, field if isinstance(field, bytes) else field.encode())
            for name, field in fields.items()
            if field is not None
        ]

    def add_result(self, task: dict[str, Any], **changes: Any) -> GatewayReply:
        return answered(self.node.add_result, self.form(task, **changes))


def submit(
    node: MockNode, prompt: str = "a red car", owner: KeyOwner = OWNER, **fields: Any
) -> str:
    """Submits a task and returns its id."""
    reply = node.clients.add_json(json.dumps({"prompt": prompt, **fields}).encode(), owner)
    task_id: str = value(reply)["id"]
    return task_id


def status(node: MockNode, task_id: str) -> dict[str, str]:
    shown: dict[str, str] = value(node.clients.status({"id": task_id}))
    return shown
