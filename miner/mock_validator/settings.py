"""The mock validator's settings."""

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator

from miner.settings.miner import Count, Port, Seconds, WalletSettings
from miner.settings.reader import Part, Settings
from protocol.errors import SetupError
from protocol.tasks import MAX_SEED

Share = Annotated[float, Field(ge=0.0, le=1.0)]

_API_KEY = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class TrialWalletSettings(WalletSettings):
    """The wallet that signs."""

    ephemeral: bool = False
    """Sign with a new key for this run; the miner then needs --blacklist.allow_non_registered."""


class TrialAxonSettings(Part):
    """With --protocol pull: the axon that serves the tasks."""

    ip: str = "127.0.0.1"
    """Address to listen on."""
    port: Port = 8092
    """Port to listen on."""


class TrialGatewaySettings(Part):
    """With --protocol gateway: the nodes that hand out the tasks."""

    ip: str = "127.0.0.1"
    """Address to listen on."""
    port: Port = 8094
    """Port of the first node; each further one has the next port."""
    nodes: Annotated[int, Field(ge=1, le=16)] = 1
    """Nodes. A task is known to the one that it was submitted to."""
    copies: Annotated[int, Field(ge=1, le=3)] = 1
    """Copies of a task, each for another hotkey."""
    life: Annotated[float, Field(gt=0.0, le=86_400.0)] = 600.0
    """Seconds that a task lives, from its submission."""
    open: bool = False
    """Submit no tasks: clients do, until --wait is over or Ctrl-C is pressed."""
    api_key: SecretStr | None = None
    """The key of clients, a UUID; any UUID if not given."""

    @field_validator("api_key")
    @classmethod
    def _api_key_is_a_uuid(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not _API_KEY.fullmatch(value.get_secret_value()):
            raise ValueError("it is not a UUID in lower case with hyphens, as of: uuidgen")
        return value


class TrialFaultSettings(Part):
    """With --protocol gateway: faults of calls by workers, as shares from 0 to 1."""

    unauthorized: Share = 0.0
    """401 for a good signature."""
    gone: Share = 0.0
    """410 for the result of a live task."""
    limited: Share = 0.0
    """429."""
    failed: Share = 0.0
    """500; nothing is stored."""
    busy: Share = 0.0
    """503 for a result, as while a duplicate is being stored."""
    unstored: Share = 0.0
    """No tasks, because the assignment cannot be stored."""
    lost: Share = 0.0
    """Everything is stored, and the connection is cut without an answer."""
    slow: Share = 0.0
    """The request is read late."""
    slow_for: Annotated[float, Field(ge=0.0, le=600.0)] = 5.0
    """How late, in seconds."""
    storing: Annotated[float, Field(ge=0.0, le=60.0)] = 0.0
    """Seconds that every result takes to be stored; a duplicate gets 503 in the meantime."""

    @property
    def shares(self) -> dict[Any, float]:
        """The shares by fault."""
        return self.model_dump(exclude={"slow_for", "storing"})


class ClockSettings(Part):
    """With --protocol pull or gateway: the clock of the other side."""

    offset: Annotated[float, Field(ge=-43_200.0, le=43_200.0)] = 0.0
    """Seconds that it is ahead (negative: behind)."""


class RulesSettings(Part):
    """With --protocol pull: the validator's rules."""

    threshold: Annotated[float, Field(ge=0.0, le=1.0)] = 0.6
    """Least accepted score."""
    cooldown: Annotated[int, Field(ge=0)] = 300
    """Seconds from task to task."""
    throttle: Annotated[int, Field(ge=0)] = 30
    """Seconds of a task's own time that the cooldown deducts."""
    penalty: Annotated[int, Field(ge=0)] = 600
    """Seconds added for a bad result."""


class TrialSettings(Settings):
    """Tries a miner as a validator or the owner's gateway would, and checks every answer."""

    protocol: Literal["push", "pull", "gateway"] = "push"
    """push: send the tasks to the miner's axon; pull: serve them on an axon of its own until the
    miner has fetched and answered all; gateway: serve them as the subnet owner's gateway does."""
    miner: str = "127.0.0.1:8091"
    """Address of the miner's axon, HOST:PORT or [IPV6]:PORT."""
    miner_hotkey: str = Field("", validation_alias="miner.hotkey")
    """SS58 address of the miner's hotkey; required, except with --protocol gateway, where other
    hotkeys may not work if it is given."""
    prompts: Path | None = None
    """Text file with one prompt a line."""
    images: Path | None = None
    """Folder of PNG, JPEG and WebP files to send as image tasks."""
    count: Count | None = None
    """Tasks to send, repeating or cutting the list; all of it once if not given."""
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    """Seed of every task."""
    concurrency: Count = 1
    """Tasks at once."""
    timeout: Seconds = 30.0
    """Seconds that an answer may take; sent as budget with --protocol push."""
    wait: Seconds = 900.0
    """With --protocol pull or gateway: seconds in which the miner must do all tasks."""
    out: Path = Path("trial-output")
    """Folder of the results."""
    wallet: TrialWalletSettings = TrialWalletSettings()
    axon: TrialAxonSettings = TrialAxonSettings()
    gateway: TrialGatewaySettings = TrialGatewaySettings()
    faults: TrialFaultSettings = TrialFaultSettings()
    clock: ClockSettings = ClockSettings()
    rules: RulesSettings = RulesSettings()

    @model_validator(mode="after")
    def _miner_is_known(self) -> Self:
        parse_address(self.miner)
        if self.protocol == "gateway":
            return self
        if not self.miner_hotkey:
            raise SetupError(
                "the miner's hotkey is missing; every request is signed for one miner",
                fix="add --miner.hotkey SS58; the miner logs it when it starts",
            )
        if self.protocol == "pull" and self.wallet.ephemeral:
            raise SetupError(
                "with --protocol pull the miner's chain must list the validator",
                fix="use a wallet that its chain lists, instead of --wallet.ephemeral",
            )
        return self

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the miner."""
        return parse_address(self.miner)


def parse_address(text: str) -> tuple[str, int]:
    """Returns host and port of HOST:PORT, an IPv6 address without its brackets.

    Raises:
        SetupError: It is something else.
    """
    host, _, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    sound = host != "" and not set(host) & set("[]/@ ") and (bracketed or ":" not in host)
    if bracketed and sound:
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            sound = False
    if not sound or not (port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65536):
        raise SetupError(
            f"--miner must be HOST:PORT, without http://, got {text!r}",
            fix="e.g. --miner 127.0.0.1:8091, or --miner [::1]:8091 for an IPv6 address",
        )
    return host, int(port)
