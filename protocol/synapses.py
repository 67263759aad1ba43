"""Synapses: the forms that Bittensor 10 carries between a dendrite and an axon.

A class name is a route. No field is required and none has a range, because Bittensor builds empty
instances from headers alone; what a task may be is decided by `protocol.tasks.parse_task`.
"""

from typing import ClassVar

import bittensor as bt
from pydantic import Field


class GenerateAsset(bt.Synapse):  # type: ignore[misc]  # bittensor ships no types
    """Push way: a task to the miner's axon, a Gaussian cloud back in the same call.

    The first five fields are the request. They are covered by the caller's signature
    (`required_hash_fields`); `timeout` is not, so a caller that cares states `budget_s`.

    Attributes:
        task_type: "text" or "image".
        task_id: The caller's id, at most 128 characters; empty lets the miner choose one.
        prompt: The text, or the base64 of a PNG, JPEG or WebP file. An image comes back emptied.
        seed: 0..2**32-1, or None.
        budget_s: Seconds, counted from receipt, within which the answer is wanted; None for the
            miner's own budget. The dendrite's timeout shortens it, never lengthens it.
        results: Base64 of the SPZ file; empty unless the outcome is "completed".
        outcome: "completed", "dropped", "rejected" or "failed".
        reason_code: One short word, as in docs/score-log.md.
        reason: One sentence with the numbers.
        timings: Seconds per stage that ran.
        total_s: Seconds from receipt to answer.
        gaussians: Number of Gaussians in the cloud.
        size_bytes: Size of the SPZ file before base64.
        miner_version: Version of the miner.
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

    required_hash_fields: ClassVar[tuple[str, ...]] = (
        "task_type",
        "task_id",
        "prompt",
        "seed",
        "budget_s",
    )
