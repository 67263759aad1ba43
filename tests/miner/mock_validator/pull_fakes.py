"""Rules with keys that need no cryptography: a signature is the payload's hash and the signer."""

import hashlib
import itertools
from collections.abc import Callable

from miner.mock_validator.pull_rules import PullRules, Rules, Submission
from miner.mock_validator.tasks import TrialTask
from protocol.consent import encode_signature, signing_payload

MINER, VALIDATOR = "5Miner", "5Validator"


def sign(hotkey: str, payload: bytes) -> bytes:
    return hashlib.sha256(hotkey.encode() + payload).digest()


def verify(hotkey: str, payload: bytes, signature: bytes) -> bool:
    return sign(hotkey, payload) == signature


def endless_tasks(name: str) -> Callable[[], TrialTask]:
    numbers = itertools.count(1)
    return lambda: TrialTask(
        f"{name}-{(number := next(numbers))}", "text", "a cube", "a cube", id=f"{name}-{number}"
    )


def make_rules(
    clock: Callable[[], float], *, hotkey: str = VALIDATOR, rules: Rules | None = None
) -> PullRules:
    return PullRules(
        hotkey,
        registered=lambda hotkey: hotkey == MINER,
        verify=verify,
        next_task=endless_tasks(hotkey),
        clock=clock,
        rules=rules,
    )


def submission(
    task: TrialTask,
    *,
    results: str = "AAAA",
    validator: str = VALIDATOR,
    signer: str = MINER,
    submit_time: int = 7,
    task_id: str | None = None,
) -> Submission:
    payload = signing_payload(
        submit_time=submit_time, prompt=task.wire, validator_hotkey=validator, miner_hotkey=MINER
    )
    signature = encode_signature(sign(signer, payload))
    return Submission(task_id or task.id, results, submit_time, signature)
