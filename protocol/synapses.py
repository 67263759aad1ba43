"""Synapses: the forms that Bittensor 10 carries between a dendrite and an axon.

A class name is a route. No field has a range, because Bittensor builds empty instances from headers
alone; what a task may be is decided by `protocol.tasks.parse_task`.

`GenerateAsset` is ours. The others are the pull protocol of subnet 17 as it is published: names,
fields and defaults are the wire format. They cover no field by the caller's signature
(`required_hash_fields`), or the two sides would not agree on the hash.
"""

from typing import ClassVar

import bittensor as bt
from pydantic import BaseModel, Field


class GenerateAsset(bt.Synapse):  # type: ignore[misc]  # bittensor ships no types
    """Push way: a task to the miner's axon, a Gaussian cloud back in the same call.

    docs/push-protocol.md is the page for whoever writes a caller.

    The first five fields are the request. They are covered by the caller's signature
    (`required_hash_fields`); `timeout` is not, so a caller that cares states `budget_s`.

    Attributes:
        task_type: "text" or "image".
        task_id: The caller's id, at most 128 characters; empty lets the miner choose one.
        prompt: The text, or the base64 of a PNG, JPEG or WebP file. An image comes back emptied.
        seed: 0..2**32-1; -1 and None let the miner choose.
        budget_s: Seconds, counted from receipt, within which the answer is wanted; None for the
            miner's own budget. The dendrite's timeout shortens it, never lengthens it.
        results: Base64 of the SPZ file; empty unless the outcome is "completed", and where the
            miner withholds an asset that it scored too low ("below_threshold").
        outcome: "completed", "dropped", "rejected" or "failed".
        reason_code: One short word, as in docs/score-log.md.
        reason: One sentence with the numbers.
        timings: Seconds per stage that ran.
        total_s: Seconds from receipt to answer.
        gaussians: Number of Gaussians in the cloud.
        size_bytes: Size of the SPZ file before base64.
        miner_version: Version of the miner.
        understood: Words of a prompt that the networks know, where these are few enough to list.
        ignored: Its other words.
    """

    task_type: str = "text"
    task_id: str = ""
    prompt: str = Field(default="", repr=False)
    seed: int | None = None
    budget_s: float | None = None

    results: str = Field(default="", repr=False)
    outcome: str = ""
    reason_code: str = ""
    reason: str = ""
    timings: dict[str, float] = Field(default_factory=dict)
    total_s: float = 0.0
    gaussians: int = 0
    size_bytes: int = 0
    miner_version: str = ""
    understood: list[str] = Field(default_factory=list, repr=False)
    ignored: list[str] = Field(default_factory=list, repr=False)

    required_hash_fields: ClassVar[tuple[str, ...]] = (
        "task_type",
        "task_id",
        "prompt",
        "seed",
        "budget_s",
    )


class WireTask(BaseModel):
    """A task as a validator assigns it.

    Attributes:
        type: "text" or "image".
        id: The validator's id, a UUID.
        prompt: The text, or the base64 of the image file.
    """

    type: str = "text"
    id: str = ""
    prompt: str = Field(default="", repr=False)


class PullTask(bt.Synapse):  # type: ignore[misc]
    """Pull way: the miner asks a validator for a task. The request is empty.

    Attributes:
        task: What to make, or None.
        validation_threshold: Least score that the validator accepts.
        throttle_period: Seconds from the assignment within which the answer costs nothing; the
            subnet's validators send 30.
        cooldown_until: Seconds since the epoch before which the miner may not pull again.
        cooldown_violations: Pulls before that time, as the validator counts them.
    """

    task: WireTask | None = None
    validation_threshold: float = 0.6
    throttle_period: int = 0
    cooldown_until: int = 0
    cooldown_violations: int = 0


class Feedback(BaseModel):
    """What a validator says of a result and of the miner.

    Attributes:
        validation_failed: The validator's own service failed; the result was not judged.
        task_fidelity_score: 0..1, and 0.0 for everything below the threshold.
        average_fidelity_score: Moving average of the accepted scores.
        generations_within_the_window: Results accepted in the last four hours.
        current_duel_rating: Glicko-2 rating.
        current_miner_reward: The two multiplied.
    """

    validation_failed: bool = False
    task_fidelity_score: float = 0.0
    average_fidelity_score: float = 0.0
    generations_within_the_window: int = 0
    current_duel_rating: float = 0.0
    current_miner_reward: float = 0.0


class SubmitResults(bt.Synapse):  # type: ignore[misc]
    """Pull way: the miner submits what it made.

    Three fields have no default, as published: Bittensor announces required fields in headers, and
    a validator's axon answers 500 to a request that does not announce them.

    Attributes:
        task: Deprecated, None.
        task_id: The validator's id of the task.
        results: Base64 of the SPZ file; empty for "I skip", which costs no penalty. Comes back
            emptied.
        data_format: "ply".
        data_ver: 0.
        compression: 2, for SPZ.
        submit_time: Nanoseconds since the epoch.
        signature: Base64 of the miner's signature over `protocol.consent.signing_payload`. Comes
            back emptied.
        feedback: The validator's answer.
        cooldown_until: Seconds since the epoch before which the miner may not pull again.
    """

    task: WireTask | None = None
    task_id: str = ""
    results: str = Field(repr=False)
    data_format: str = "ply"
    data_ver: int = 0
    compression: int = 2
    submit_time: int
    signature: str
    feedback: Feedback | None = None
    cooldown_until: int = 0


class GetVersion(bt.Synapse):  # type: ignore[misc]
    """Asks a validator for its versions.

    Attributes:
        version: Of the validator.
        validation_version: Of its validation service.
    """

    version: int = 0
    validation_version: str = ""
