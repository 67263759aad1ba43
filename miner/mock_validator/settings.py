"""The mock validator's settings."""

import ipaddress
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from miner.settings.miner import Count, Port, Seconds
from miner.settings.reader import Settings
from protocol.errors import SetupError
from protocol.tasks import MAX_SEED


class TrialSettings(Settings):
    """Tries a miner as a validator would, and checks every answer."""

    protocol: Literal["push", "pull"] = Field(
        "push",
        alias="protocol",
        description="push: send the tasks to the miner's axon; pull: serve them on an axon of its "
        "own until the miner has fetched and answered all",
    )
    miner: str = Field(
        "127.0.0.1:8091",
        alias="miner",
        description="address of the miner's axon, HOST:PORT or [IPV6]:PORT",
    )
    miner_hotkey: str = Field(
        "", alias="miner.hotkey", description="SS58 address of the miner's hotkey; required"
    )

    wallet_name: str = Field("default", alias="wallet.name", description="name of the wallet")
    wallet_hotkey: str = Field("default", alias="wallet.hotkey", description="name of its hotkey")
    wallet_path: Path = Field(
        Path("~/.bittensor/wallets"), alias="wallet.path", description="folder of the wallets"
    )
    wallet_ephemeral: bool = Field(
        False,
        alias="wallet.ephemeral",
        description="sign with a new key for this run; the miner then needs "
        "--blacklist.allow_non_registered",
    )

    prompts: Path | None = Field(
        None, alias="prompts", description="text file with one prompt a line"
    )
    images: Path | None = Field(
        None,
        alias="images",
        description="folder of PNG, JPEG and WebP files to send as image tasks",
    )
    count: Count | None = Field(
        None,
        alias="count",
        description="tasks to send, repeating or cutting the list; all of it once",
    )
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = Field(
        None, alias="seed", description="seed of every task"
    )
    concurrency: Count = Field(1, alias="concurrency", description="tasks at once")
    timeout: Seconds = Field(
        30.0,
        alias="timeout",
        description="seconds that an answer may take; sent as budget",
    )
    axon_ip: str = Field("127.0.0.1", alias="axon.ip", description="pull: address to listen on")
    axon_port: Port = Field(8092, alias="axon.port", description="pull: port to listen on")
    clock_offset: float = Field(
        0.0,
        alias="clock.offset",
        ge=-43_200.0,
        le=43_200.0,
        description="pull: seconds that the validator's clock is ahead (negative: behind)",
    )
    wait: Seconds = Field(
        900.0, alias="wait", description="pull: seconds in which the miner must do all tasks"
    )
    rules_threshold: float = Field(
        0.6, alias="rules.threshold", ge=0.0, le=1.0, description="pull: least accepted score"
    )
    rules_cooldown: int = Field(
        300, alias="rules.cooldown", ge=0, description="pull: seconds from task to task"
    )
    rules_throttle: int = Field(
        30,
        alias="rules.throttle",
        ge=0,
        description="pull: seconds of a task's own time that the cooldown deducts",
    )
    rules_penalty: int = Field(
        600, alias="rules.penalty", ge=0, description="pull: seconds added for a bad result"
    )
    out: Path = Field(Path("trial-output"), alias="out", description="folder of the results")

    @model_validator(mode="after")
    def _miner_is_known(self) -> Self:
        parse_address(self.miner)
        if not self.miner_hotkey:
            raise SetupError(
                "the miner's hotkey is missing; every request is signed for one miner",
                fix="add --miner.hotkey SS58; the miner logs it when it starts",
            )
        if self.protocol == "pull" and self.wallet_ephemeral:
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
