"""A validator of the pull protocol on a real Axon over loopback, with a real sr25519 key."""

import base64
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from PIL import Image

from miner.chain.metagraph import Neuron
from miner.chain.signatures import verify
from miner.mock_validator.pull_axon import PullAxon
from miner.mock_validator.pull_rules import Pulled, Rules
from miner.mock_validator.pull_trial import PullTrial, Terms
from miner.mock_validator.tasks import TrialTask
from scripts.free_port import free_port
from tests.support.running import MINER, VALIDATOR

SHORT = Rules(cooldown_s=0, throttle_s=0, penalty_s=600, lock_s=0)


def picture() -> str:
    file = BytesIO()
    Image.new("RGB", (64, 48), "green").save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def tasks() -> list[TrialTask]:
    return [
        TrialTask("01-a-blue-cube", "text", "a blue cube", "a blue cube"),
        TrialTask("02-green-png", "image", "green.png", picture()),
    ]


class Validator:
    """A trial behind an axon; counts the pulls."""

    def __init__(
        self,
        folder: Path,
        tasks: list[TrialTask],
        rules: Rules,
        *,
        key: Any = VALIDATOR,
        miner: str = MINER.ss58_address,
        ip: str = "127.0.0.1",
        port: int | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        port = port or free_port()
        self.pulls = 0
        terms = Terms(key.ss58_address, miner, rules, 30.0, folder)
        self.trial = PullTrial(
            tasks, terms, verify=verify, on_record=lambda record: None, clock=clock or time.time
        )
        self._answer_pull = self.trial.pull
        self.trial.pull = self._counted  # type: ignore[method-assign]
        wallet = SimpleNamespace(hotkey=key, coldkeypub=key)
        self.server = PullAxon(self.trial, wallet, ip=ip, port=port, clock=clock)
        self.neuron = Neuron(
            uid=1,
            hotkey=key.ss58_address,
            ip=ip,
            port=port,
            stake=900.0,
            validator_permit=True,
        )

    def _counted(self, hotkey: str) -> Pulled:
        self.pulls += 1
        return self._answer_pull(hotkey)
