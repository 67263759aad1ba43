"""Whatever a validator answers, a call ends with an answer or `NoAnswer`, and the book is sound."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict

from miner.transports.pull.calls import NoAnswer, ValidatorCalls
from miner.transports.pull.dendrite import _Session, offline_dendrite
from miner.transports.pull.outcome import judge_answer
from miner.transports.pull.state import AssignedTask, PullState
from miner.transports.pull.validators import MAX_WAIT_S, Selection, Validators
from tests.support.fake_validators import VALIDATOR
from tests.support.running import MINER

pytestmark = pytest.mark.filterwarnings("ignore:Accessing the 'model_fields' attribute")

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([2**63, -(2**63), 10**400, 1_800_000_300])
    | st.floats()
    | st.text(max_size=20)
)
ANYTHING = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
TASK = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["text", "image", "video"]) | ANYTHING,
        "id": st.text(max_size=200) | ANYTHING,
        "prompt": st.text(max_size=200) | ANYTHING,
    },
)
FEEDBACK = st.fixed_dictionaries(
    {},
    optional={
        "validation_failed": ANYTHING,
        "task_fidelity_score": st.floats() | ANYTHING,
        "generations_within_the_window": st.integers() | ANYTHING,
    },
)
NUMBERS = st.integers() | st.sampled_from([10**400, 1_800_000_300]) | ANYTHING
BODY = ANYTHING | st.fixed_dictionaries(
    {},
    optional={
        "task": TASK | ANYTHING,
        "feedback": FEEDBACK | ANYTHING,
        "validation_threshold": st.floats() | ANYTHING,
        "cooldown_until": NUMBERS,
        "cooldown_violations": NUMBERS,
        "dendrite": ANYTHING,
        "axon": ANYTHING,
        "timeout": ANYTHING,
        "name": ANYTHING,
        "message": ANYTHING,
        "required_hash_fields": ANYTHING,
    },
)
PRINTED = st.text(st.characters(codec="latin-1", exclude_categories=["Cc"]), max_size=40)
HEADERS = st.dictionaries(
    st.sampled_from(
        [
            "date",
            "timeout",
            "name",
            "header_size",
            "bt_header_axon_status_code",
            "bt_header_axon_status_message",
            "bt_header_axon_nonce",
            "bt_header_axon_ip",
            "bt_header_dendrite_status_code",
            "bt_header_dendrite_process_time",
            "bt_header_input_obj_x",
            "bt_header_axon",
        ]
    ),
    PRINTED
    | st.sampled_from(["200", "403", "1e999", "Fri, 15 Jan 2027 08:00:05 GMT", "IiI=", "9" * 5000]),
    max_size=4,
)
STATUS = st.sampled_from([200, 200, 200, 403, 500, 299, 999])


class Answer:
    """An aiohttp session whose every answer is the one that a test has set."""

    body: Any = None
    status = 200
    headers: dict[str, str]

    @asynccontextmanager
    async def post(self, url: str, **arguments: Any) -> AsyncIterator[Any]:
        async def parsed() -> Any:
            return json.loads(json.dumps(self.body))

        headers = CIMultiDict(self.headers)
        yield SimpleNamespace(status=self.status, headers=headers, json=parsed)

    async def close(self) -> None:
        pass


ANSWER, DENDRITE = Answer(), offline_dendrite(MINER)
DENDRITE._session = _Session.__new__(_Session)
DENDRITE._session._session = ANSWER


@settings(max_examples=60)
@given(BODY, HEADERS, STATUS)
def test_whatever_a_validator_answers(body: Any, headers: dict[str, str], status: int) -> None:
    ANSWER.body, ANSWER.headers, ANSWER.status = body, headers, status
    asyncio.run(ask_and_submit(ValidatorCalls(DENDRITE, MINER)))


def told(error: NoAnswer) -> None:
    assert str(error).isprintable()
    assert len(str(error)) < 400


async def ask_and_submit(calls: ValidatorCalls) -> None:
    policy = Validators(Selection(MINER.ss58_address), clock=calls.clock)
    assert policy.choose([VALIDATOR]) == VALIDATOR
    assigned = AssignedTask(validator="5V", id="t", kind="text", prompt="a cube", assigned_at=0.0)
    try:
        pulled = await calls.pull(VALIDATOR)
    except NoAnswer as error:
        told(error)
        policy.unanswered("5V")
    else:
        if pulled.task is None:
            policy.without_task("5V", pulled.cooldown_until)
        else:
            policy.assigned("5V")
            task = pulled.task
            assigned = AssignedTask(
                validator="5V",
                id=task.id,
                kind=task.type,
                prompt=task.prompt,
                threshold=pulled.threshold,
                assigned_at=calls.clock(),
            )
    try:
        reply = await calls.submit(VALIDATOR, assigned, b"")
    except NoAnswer as error:
        told(error)
    else:
        now = calls.clock()
        outcome = judge_answer(
            reply, threshold=assigned.threshold, empty=True, repeated=False, now=now
        )
        json.dumps(dict(outcome.feedback), allow_nan=False)
        policy.settled("5V", outcome.fate, assigned_at=now, cooldown_until=outcome.cooldown_until)
        wait = policy.wait([VALIDATOR])
        assert wait is not None
        assert 0.0 <= wait <= MAX_WAIT_S
    state = PullState(hotkey="5M", validators=policy.export(), tasks=(assigned,))
    again = PullState.model_validate_json(state.moved(7.0).moved(-7.0).model_dump_json())
    assert again.tasks[0].prompt == assigned.prompt
