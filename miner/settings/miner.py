"""The miner's settings."""

import difflib
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from miner.settings.reader import Settings
from protocol.errors import SetupError
from protocol.orientation import UpAxis

Port = Annotated[int, Field(ge=1025, le=65534)]
Seconds = Annotated[float, Field(gt=0.0, le=3600.0)]
Count = Annotated[int, Field(ge=1, le=10_000)]
NETWORKS = ("finney", "test", "archive", "local", "latent-lite")
TRANSPORTS = ("push", "pull", "http")
LogLevel = Literal["TRACE", "DEBUG", "INFO", "WARNING", "ERROR"]


class MinerConfig(Settings):
    """Runs a miner neuron: answers validators' tasks with 3D Gaussian splats."""

    netuid: int = Field(17, alias="netuid", ge=0, description="subnet to mine on")

    wallet_name: str = Field("default", alias="wallet.name", description="name of the wallet")
    wallet_hotkey: str = Field("default", alias="wallet.hotkey", description="name of its hotkey")
    wallet_path: Path = Field(
        Path("~/.bittensor/wallets"), alias="wallet.path", description="folder of the wallets"
    )

    subtensor_network: str = Field(
        "finney",
        alias="subtensor.network",
        description="chain: finney, test, local or the address of a node (wss://...)",
    )
    subtensor_chain_endpoint: str | None = Field(
        None,
        alias="subtensor.chain_endpoint",
        description="address of the node, instead of the network's own",
    )
    chain_file: Path | None = Field(
        None,
        alias="chain.file",
        description="no chain: read the neurons from this JSON file, "
        "[{uid, hotkey, coldkey, ip, port, stake, validator_permit}]",
    )

    transports: str = Field(
        "push",
        alias="transports",
        description="ways on which requests come, with commas: push (validators call the axon), "
        "pull (validators are asked for tasks), http (a form on a port; alone it needs neither "
        "wallet nor chain)",
    )

    axon_ip: str = Field("0.0.0.0", alias="axon.ip", description="address to listen on")
    axon_port: Port = Field(8091, alias="axon.port", description="port to listen on")
    axon_external_ip: str | None = Field(
        None,
        alias="axon.external_ip",
        description="public address that validators are told; asked of the internet if not given",
    )
    axon_external_port: Port | None = Field(
        None,
        alias="axon.external_port",
        description="public port that validators are told; that of --axon.port if not given",
    )

    pull_min_stake: float = Field(
        1000.0,
        alias="pull.min_stake",
        ge=0.0,
        description="least stake of a validator without a permit that is asked for tasks",
    )
    pull_preferred: str | None = Field(
        None, alias="pull.preferred", description="hotkey of a validator to ask more often"
    )
    pull_every: Count = Field(
        5, alias="pull.every", description="it is asked every so many turns, if it may be asked"
    )
    pull_workers: Annotated[int, Field(ge=1, le=16)] = Field(
        1, alias="pull.workers", description="pulled tasks in generation at once"
    )
    pull_state: Path | None = Field(
        None,
        alias="pull.state",
        description="file that keeps cooldowns and tasks over a restart; pull-state.json in the "
        "folder of the logs if not given",
    )

    http_ip: str = Field("127.0.0.1", alias="http.ip", description="address to listen on")
    http_port: Port = Field(8093, alias="http.port", description="port to listen on")
    http_api_key: SecretStr | None = Field(
        None,
        alias="http.api_key",
        description="what a caller has to bring; needed beyond this machine, and better kept in "
        "the environment than on the command line",
    )
    http_allow_open: bool = Field(
        False,
        alias="http.allow_open",
        description="listen beyond this machine without a key: anybody may use the GPU",
    )
    http_hosts: str | None = Field(
        None,
        alias="http.hosts",
        description="host names, with commas, by which web pages may address the port beside this "
        "machine's own, when there is no key",
    )
    http_up_axis: UpAxis = Field(
        "+y",
        alias="http.up_axis",
        description="up axis of the PLY files: +y, or --http.up_axis=-y with the front towards -z, "
        "as Competition 0 has it",
    )

    preset: str | None = Field(
        None,
        alias="preset",
        description="generation preset: gpu24, gpu80, or embedded (no weights, no GPU; "
        "the default with --chain.file, and with --transports http alone)",
    )
    preset_allow_embedded: bool = Field(
        False,
        alias="preset.allow_embedded",
        description="let the preset embedded, whose results earn nothing, serve on a real chain",
    )
    models_dir: Path | None = Field(
        None, alias="models.dir", description="folder of the model weights"
    )

    budget: Seconds = Field(
        30.0,
        alias="budget",
        description="seconds from the receipt of a request to the arrival of its answer",
    )
    budget_margin: float = Field(
        0.2,
        alias="budget.margin",
        ge=0.0,
        le=60.0,
        description="seconds of every budget kept for the way over the network, which the miner "
        "cannot measure",
    )
    drain_limit: Seconds = Field(
        45.0,
        alias="drain.limit",
        description="seconds after which the process ends once it was asked to stop, or once its "
        "event loop is blocked, even if a stage hangs",
    )

    limits_per_minute: Count = Field(
        120,
        alias="limits.per_minute",
        description="requests of one caller in any minute; more get status 429",
    )

    blacklist_min_stake: float = Field(
        0.0, alias="blacklist.min_stake", ge=0.0, description="least stake of a caller"
    )
    blacklist_allow_no_permit: bool = Field(
        False,
        alias="blacklist.allow_no_permit",
        description="serve registered callers that have no validator permit",
    )
    blacklist_allow_non_registered: bool = Field(
        False,
        alias="blacklist.allow_non_registered",
        description="serve callers that are not registered on the subnet: anybody",
    )

    log_dir: Path = Field(
        Path("logs"), alias="log.dir", description="folder of miner.log and score.jsonl"
    )
    log_level: LogLevel = Field("INFO", alias="log.level", description="least level shown")

    @field_validator("transports", mode="before")
    @classmethod
    def _transports_are_known(cls, value: object) -> str:
        given = value if isinstance(value, list) else str(value).split(",")
        names = [str(name).strip() for name in given]
        for name in names or [""]:
            if name not in TRANSPORTS:
                raise ValueError(f"{name!r} is none of {', '.join(TRANSPORTS)}")
        return ",".join(name for name in TRANSPORTS if name in names)

    @field_validator("subtensor_network", "subtensor_chain_endpoint")
    @classmethod
    def _network_can_be_reached(cls, value: str | None) -> str | None:
        if value is None or value in NETWORKS:
            return value
        try:
            address = urlsplit(value)
            usable = address.scheme in ("ws", "wss") and address.hostname and address.port != 0
        except ValueError:
            usable = False
        if not usable:
            near = difflib.get_close_matches(value, NETWORKS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"the networks are {', '.join(NETWORKS)}"
            raise ValueError(f"it is neither a network nor an address as wss://HOST:PORT; {hint}")
        return value

    @field_validator("pull_state")
    @classmethod
    def _pull_state_is_a_file(cls, value: Path | None) -> Path | None:
        if value is not None and value.name in ("", ".."):
            raise ValueError("it is a folder; name a file in it")
        return value

    @field_validator("axon_external_ip")
    @classmethod
    def _external_ip_is_one(cls, value: str | None) -> str | None:
        if value is not None:
            ip_address(value)  # The chain stores numbers, not names.
        return value

    @field_validator("http_hosts", mode="before")
    @classmethod
    def _hosts_may_be_a_list(cls, value: object) -> object:
        if isinstance(value, list) and all(isinstance(name, str) for name in value):
            return ",".join(value)
        return value

    @model_validator(mode="after")
    def _preset_is_chosen(self) -> Self:
        if self.chain_file is not None or not self.needs_chain:
            return self
        if self.preset is None:
            raise SetupError(
                f"no preset is given, and there is no default on {self.network}",
                fix="add --preset gpu24 (24 GB of GPU memory) or --preset gpu80; "
                "to try the miner without a chain, add --chain.file neurons.json, or "
                "--transports http",
            )
        if self.preset == "embedded" and not self.preset_allow_embedded:
            raise SetupError(
                f"the preset embedded knows a few toy objects and would earn nothing on "
                f"{self.network}",
                fix="use --preset gpu24 or gpu80, or insist with --preset.allow_embedded",
            )
        return self

    @property
    def preset_name(self) -> str:
        """The preset in effect."""
        return self.preset or "embedded"

    @property
    def needs_chain(self) -> bool:
        """Whether a wallet and a subnet are needed: only `http` alone serves without them."""
        return self.transports != "http"

    @property
    def network(self) -> str:
        """The chain in words."""
        if self.chain_file is not None:
            return f"file {self.chain_file}"
        return self.subtensor_chain_endpoint or self.subtensor_network
