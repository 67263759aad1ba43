"""The numbers of a gateway, and who may use it. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from protocol.gateway import (
    ADD_RESULTS_PER_MINUTE,
    ADD_TASKS_PER_MINUTE,
    FRESH_S,
    MAX_ADD_RESULT_BYTES,
    QUEUE_LIFE_S,
    RESULT_LIFE_S,
    STATUSES_PER_MINUTE,
    TASK_LIFE_S,
)

SWEEP_S = 30.0
"""A gateway looks for tasks that have timed out this often."""

STORING_GRACE_S = 5.0
"""A task whose result is being stored does not time out within these seconds."""


@dataclass(frozen=True)
class KeyOwner:
    """Whose an API key is.

    Attributes:
        name: Tasks belong to a name; another one's key does not reach their results.
        tags: Its tasks go only to workers with one of these tags.
        most_at_once: Tasks that are not done, at most.
        refusal: Code of an error that every task of this key gets, as in `client_routes.REFUSALS`.
    """

    name: str
    tags: tuple[str, ...] = ()
    most_at_once: int | None = None
    refusal: str | None = None


@dataclass(frozen=True)
class GatewayRules:
    """What an operator of a gateway can configure; the defaults are the published examples.

    One copy of a task instead of three: one worker alone can then finish it.

    Attributes:
        copies: Copies of a task, each for another hotkey.
        task_life_s: From the client's submission; the waiting counts.
        queue_life_s: In the queue.
        result_life_s: From the last result of a task.
        sweep_s: Seconds between two checks for tasks that have timed out.
        storing_grace_s: See `STORING_GRACE_S`.
        fresh_s: Seconds that a timestamp may be old.
        queue_limit: Tasks in a node's queue.
        whitelist: Hotkeys that may work; any if empty.
        keys: Owners by API key.
        max_result_bytes: Of the whole body of `POST /add_result`.
        results_per_minute: Calls per IP address, /get_load and /get_leader included.
        tasks_per_minute: /add_task per IP address.
        statuses_per_minute: /get_status per IP address.
    """

    copies: int = 1
    task_life_s: float = TASK_LIFE_S
    queue_life_s: float = QUEUE_LIFE_S
    result_life_s: float = RESULT_LIFE_S
    sweep_s: float = SWEEP_S
    storing_grace_s: float = STORING_GRACE_S
    fresh_s: int = FRESH_S
    queue_limit: int = 500
    whitelist: frozenset[str] = frozenset()
    keys: Mapping[str, KeyOwner] = field(default_factory=dict)
    max_result_bytes: int = MAX_ADD_RESULT_BYTES
    results_per_minute: int = ADD_RESULTS_PER_MINUTE
    tasks_per_minute: int = ADD_TASKS_PER_MINUTE
    statuses_per_minute: int = STATUSES_PER_MINUTE
