"""What the pull transport remembers over a restart, in one JSON file.

An assigned task is this miner's until its result is submitted, and a validator that is cooling down
must not be asked. Losing either costs turns, so both are written before anything is done with them.
"""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from miner.transports.kept import HotkeyStateFile
from miner.transports.pull.validators import Standing

FILE_NAME = "pull-state.json"


class AssignedTask(BaseModel):
    """A task that a validator has assigned and that has not been settled.

    Attributes:
        validator: Hotkey of the validator.
        id: The validator's id of the task.
        kind: The validator's word for its kind: "text" or "image".
        prompt: The prompt, unchanged, because the signature of a submission covers it.
        threshold: Least score that the validator accepts.
        assigned_at: When the pull that brought it was sent, in seconds since the epoch.
        starts: How often its generation has been started.
        submitted_at: When a result was last sent for it, None if never.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    validator: str
    id: str
    kind: str
    prompt: str = Field(repr=False)
    threshold: float = 0.6
    assigned_at: float
    starts: int = Field(default=0, ge=0)
    submitted_at: float | None = None


class PullState(BaseModel):
    """The content of the file.

    Attributes:
        version: Version of this layout.
        hotkey: The miner's hotkey, to which cooldowns and tasks belong.
        validators: Standings by hotkey.
        tasks: Tasks that are not settled.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    hotkey: str
    validators: dict[str, Standing] = Field(default_factory=dict)
    tasks: tuple[AssignedTask, ...] = ()

    def moved(self, seconds: float) -> "PullState":
        """Returns the state with all its times moved, from one clock to another."""
        validators = {
            hotkey: standing.model_copy(
                update={
                    "ask_after": standing.ask_after + seconds,
                    "asked_at": standing.asked_at + seconds,
                }
            )
            for hotkey, standing in self.validators.items()
        }
        tasks = tuple(
            task.model_copy(
                update={
                    "assigned_at": task.assigned_at + seconds,
                    "submitted_at": task.submitted_at and task.submitted_at + seconds,
                }
            )
            for task in self.tasks
        )
        return self.model_copy(update={"validators": validators, "tasks": tasks})

    def until(self, now: float) -> "PullState":
        """Returns the state as it can be now: what happened is past, however the clock was set.

        Of a cooldown, no more is left than there was when it was told.
        """
        validators = {}
        for hotkey, standing in self.validators.items():
            longest = max(0.0, standing.ask_after - standing.asked_at)
            validators[hotkey] = standing.model_copy(
                update={
                    "ask_after": min(standing.ask_after, now + longest),
                    "asked_at": min(standing.asked_at, now),
                }
            )
        tasks = tuple(
            task.model_copy(
                update={
                    "assigned_at": min(task.assigned_at, now),
                    "submitted_at": task.submitted_at and min(task.submitted_at, now),
                }
            )
            for task in self.tasks
        )
        return self.model_copy(update={"validators": validators, "tasks": tasks})


class PullStateFile(HotkeyStateFile[PullState]):
    """Reads and writes the state.

    Args:
        path: The file; its folder is created.
        hotkey: The miner's hotkey.
    """

    def __init__(self, path: Path, hotkey: str) -> None:
        empty = PullState(hotkey=hotkey)
        super().__init__(path, empty, transport="pull", loses="cooldowns and tasks")
