"""The published forms of the pull protocol: names, fields and defaults are the wire format."""

from typing import Any

import pytest
from pydantic import BaseModel

from protocol.synapses import Feedback, GetVersion, PullTask, SubmitResults, WireTask

REQUIRED = object()

PUBLISHED: dict[type[BaseModel], dict[str, Any]] = {
    WireTask: {"type": "text", "id": "", "prompt": ""},
    PullTask: {
        "task": None,
        "validation_threshold": 0.6,
        "throttle_period": 0,
        "cooldown_until": 0,
        "cooldown_violations": 0,
    },
    SubmitResults: {
        "task": None,
        "task_id": "",
        "results": REQUIRED,
        "data_format": "ply",
        "data_ver": 0,
        "compression": 2,
        "submit_time": REQUIRED,
        "signature": REQUIRED,
        "feedback": None,
        "cooldown_until": 0,
    },
    Feedback: {
        "validation_failed": False,
        "task_fidelity_score": 0.0,
        "average_fidelity_score": 0.0,
        "generations_within_the_window": 0,
        "current_duel_rating": 0.0,
        "current_miner_reward": 0.0,
    },
    GetVersion: {"version": 0, "validation_version": ""},
}


@pytest.mark.parametrize("form", PUBLISHED, ids=lambda form: form.__name__)
def test_fields_and_defaults(form: type[BaseModel]) -> None:
    own = {
        name: REQUIRED if field.is_required() else field.get_default(call_default_factory=True)
        for name, field in form.model_fields.items()
        if name in form.__annotations__
    }
    assert own == PUBLISHED[form]


@pytest.mark.parametrize("form", [PullTask, SubmitResults, GetVersion])
def test_no_field_is_covered_by_the_body_hash(form: Any) -> None:
    assert form.required_hash_fields == ()


def test_what_is_big_or_secret_is_not_shown() -> None:
    shown = repr(
        SubmitResults(
            task=WireTask(prompt="SECRET"), results="SECRET", submit_time=1, signature="c2ln"
        )
    )
    assert "SECRET" not in shown
