"""What the gateway transport remembers over a restart, in one JSON file.

A gateway hands a task to a hotkey once and never again, so a task that is not done must at least be
reported. What was asked is not kept: after a restart the result would come too late.
"""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from miner.transports.kept import HotkeyStateFile

FILE_NAME = "gateway-state.json"


class TakenTask(BaseModel):
    """A task that a gateway has handed out and that has not been settled.

    Attributes:
        node: Base address of the node that handed it out; no other one knows it.
        id: The gateway's id.
        token: The token of the assignment.
        worker_id: The worker's name when it was taken.
        kind: "text" or "image".
        taken_at: When the answer came that brought it, in seconds since the epoch.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    node: str
    id: str
    token: str | None = Field(default=None, repr=False)
    worker_id: str
    kind: Literal["text", "image"]
    taken_at: float

    @property
    def key(self) -> tuple[str, str]:
        """Its node and its id."""
        return self.node, self.id


class GatewayState(BaseModel):
    """The content of the file.

    Attributes:
        version: Version of this layout.
        hotkey: The hotkey to which the tasks were handed.
        tasks: Tasks that are not settled.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    hotkey: str
    tasks: tuple[TakenTask, ...] = ()


class GatewayStateFile(HotkeyStateFile[GatewayState]):
    """Reads and writes the state.

    Args:
        path: The file; its folder is created.
        hotkey: The worker's hotkey.
    """

    def __init__(self, path: Path, hotkey: str) -> None:
        empty = GatewayState(hotkey=hotkey)
        super().__init__(path, empty, transport="gateway", loses="tasks to be reported")
