"""The mock validator's settings."""

import ipaddress
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from miner.settings.miner import Count, Port, Seconds, WalletSettings
from miner.settings.reader import Part, Settings
from protocol.errors import SetupError
from protocol.tasks import MAX_SEED


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


class ClockSettings(Part):
    """With --protocol pull: the validator's clock."""

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
    """Tries a miner as a validator would, and checks every answer."""

    protocol: Literal["push", "pull"] = "push"
    """push: send the tasks to the miner's axon; pull: serve them on an axon of its own until the
    miner has fetched and answered all."""
    miner: str = "127.0.0.1:8091"
    """Address of the miner's axon, HOST:PORT or [IPV6]:PORT."""
    miner_hotkey: str = Field("", validation_alias="miner.hotkey")
    """SS58 address of the miner's hotkey; required."""
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
    """Seconds that an answer may take; sent as budget."""
    wait: Seconds = 900.0
    """With --protocol pull: seconds in which the miner must do all tasks."""
    out: Path = Path("trial-output")
    """Folder of the results."""
    wallet: TrialWalletSettings = TrialWalletSettings()
    axon: TrialAxonSettings = TrialAxonSettings()
    clock: ClockSettings = ClockSettings()
    rules: RulesSettings = RulesSettings()

    @model_validator(mode="after")
    def _miner_is_known(self) -> Self:
        parse_address(self.miner)
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
