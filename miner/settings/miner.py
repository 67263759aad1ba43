"""The miner's settings."""

import difflib
import re
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from miner.scheduling.candidates import CandidateLimits
from miner.settings.engines import EnginesSettings
from miner.settings.gateway import GatewaySettings
from miner.settings.generation import GeneratingSettings
from miner.settings.model import Part
from protocol.errors import SetupError
from protocol.orientation import UpAxis

Port = Annotated[int, Field(ge=1025, le=65534)]
MOST_SCORE = 1.0
"""Above what any object gets; a validator's formula allows a few hundredths more."""

Seconds = Annotated[float, Field(gt=0.0, le=3600.0)]
Count = Annotated[int, Field(ge=1, le=10_000)]
NETWORKS = ("finney", "test", "archive", "local", "latent-lite")
TRANSPORTS = ("push", "pull", "http", "gateway")
LogLevel = Literal["TRACE", "DEBUG", "INFO", "WARNING", "ERROR"]


class WalletSettings(Part):
    """The wallet whose hotkey signs."""

    name: str = "default"
    """Name of the wallet."""
    hotkey: str = "default"
    """Name of its hotkey."""
    path: Path = Path("~/.bittensor/wallets")
    """Folder of the wallets."""


class SubtensorSettings(Part):
    """The chain."""

    network: str = "finney"
    """Chain: finney, test, local or the address of a node (wss://...)."""
    chain_endpoint: str | None = None
    """Address of the node, instead of the network's own."""

    @field_validator("network", "chain_endpoint")
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


class ChainSettings(Part):
    """A file instead of a chain."""

    file: Path | None = None
    """No chain: read the neurons from this JSON file, [{uid, hotkey, coldkey, ip, port, stake,
    validator_permit}]."""


class AxonSettings(Part):
    """The transport push: validators call the axon."""

    ip: str = "0.0.0.0"
    """Address to listen on."""
    port: Port = 8091
    """Port to listen on."""
    external_ip: str | None = None
    """Public address that validators are given; asked of the internet if not given."""
    external_port: Port | None = None
    """Public port that validators are given; that of --axon.port if not given."""

    @field_validator("external_ip")
    @classmethod
    def _external_ip_is_one(cls, value: str | None) -> str | None:
        if value is not None:
            ip_address(value)  # The chain stores numbers, not names.
        return value


class PullSettings(Part):
    """The transport pull: validators are asked for tasks."""

    min_stake: Annotated[float, Field(ge=0.0)] = 1000.0
    """Least stake of a validator without a permit that is asked for tasks."""
    preferred: str | None = None
    """Hotkey of a validator to ask more often."""
    every: Count = 5
    """The preferred validator is asked on every Nth turn, if it may be asked."""
    workers: Annotated[int, Field(ge=1, le=16)] = 1
    """Pulled tasks in generation at once."""
    state: Path | None = None
    """File that keeps cooldowns and tasks over a restart; pull-state.json in the folder of the logs
    if not given."""

    @field_validator("state")
    @classmethod
    def _state_is_a_file(cls, value: Path | None) -> Path | None:
        if value is not None and value.name in ("", ".."):
            raise ValueError("it is a folder; name a file in it")
        return value


class HttpSettings(Part):
    """The transport http: a page and an API on a port."""

    ip: str = "127.0.0.1"
    """Address to listen on."""
    port: Port = 8093
    """Port to listen on."""
    api_key: SecretStr | None = None
    """What a caller has to bring; needed beyond this machine, and better kept in the environment
    than on the command line."""
    allow_open: bool = False
    """Listen beyond this machine without a key: anybody may use the GPU."""
    hosts: str | None = None
    """Host names, with commas, by which web pages may address the port beside this machine's own,
    when there is no key."""
    candidates: Annotated[int, Field(ge=1, le=1000)] = 1
    """Pictures drawn for a text whose caller does not say how many."""
    up_axis: UpAxis = "+y"
    """Up axis of the PLY files: +y, or --http.up_axis=-y with the front towards -z, as Competition
    0 has it."""

    @field_validator("hosts", mode="before")
    @classmethod
    def _hosts_may_be_a_list(cls, value: object) -> object:
        if isinstance(value, list) and all(isinstance(name, str) for name in value):
            return ",".join(value)
        return value


class MetricsSettings(Part):
    """Metrics for Prometheus, and probes of the miner's health."""

    ip: str = "127.0.0.1"
    """Address to listen on."""
    port: Port | None = None
    """Port to listen on for /health, /ready, /status and /metrics; none if not given."""


class CandidatesSettings(Part):
    """Objects with other seeds, made in the time that a request has left; the best is answered."""

    max: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Pictures drawn for one text task at most, the first included; 1 for no further candidates. 32
    if not given, and 4 with the preset embedded."""
    target: float = 0.9
    """Score at which no further candidate is made; above 0, at most 1."""
    spend: Annotated[float, Field(ge=0.0, le=1.0)] = 0.8
    """Share of a request's budget within which candidates are made."""
    pictures: Annotated[int, Field(ge=1, le=100)] = 1
    """Further pictures from which the best one is lifted to 3D; 1 lifts all of them."""

    @field_validator("target")
    @classmethod
    def _target_is_a_score(cls, value: float) -> float:
        if value <= 0.0:
            raise ValueError(
                "every first object reaches it; --candidates.max 1 is how to make no candidates"
            )
        if value > MOST_SCORE:
            raise ValueError(f"no object reaches it; scores are at most {MOST_SCORE:g}")
        return value


class GateSettings(Part):
    """Whether a result is worth submitting, by its own score."""

    enabled: bool = True
    """Submit an empty result where a validator will probably not accept the real one: that costs
    300 s, a refused one 900 s."""
    threshold: float = 0.6
    """Least score that a validator accepts, where it does not say; above 0, at most 1."""
    margin: Annotated[float, Field(ge=-0.15, le=0.15)] = 0.0
    """Added to the threshold until validators have judged 20 results."""
    learn: bool = True
    """Move the margin by what validators say of the miner's results, by 0.15 at most."""
    send: bool = True
    """Send results under the limit to callers of push and http all the same."""

    @field_validator("threshold")
    @classmethod
    def _threshold_is_a_score(cls, value: float) -> float:
        if value <= 0.0:
            raise ValueError("every result passes it; --gate.enabled false turns the gate off")
        if value > MOST_SCORE:
            raise ValueError(
                f"no result would pass; scores are at most {MOST_SCORE:g}, and validators ask for "
                "0.6"
            )
        return value

    @model_validator(mode="after")
    def _limit_is_a_score(self) -> Self:
        limit = self.threshold + self.margin
        if not self.enabled or 0.0 < limit <= MOST_SCORE:
            return self
        raise SetupError(
            f"--gate.threshold {self.threshold:g} and --gate.margin {self.margin:g} make a limit "
            f"of {limit:g}: " + ("every" if limit <= 0.0 else "no") + " result would pass",
            fix="leave out --gate.margin; --gate.enabled false submits everything",
        )


class DrainSettings(Part):
    """How the process ends."""

    limit: Seconds = 45.0
    """Seconds after which the process ends once it was asked to stop, or once its event loop is
    blocked, even if a stage hangs."""


class LimitsSettings(Part):
    """What one caller may ask."""

    per_minute: Count = 120
    """Requests of one caller in any minute; more get status 429."""


class BlacklistSettings(Part):
    """Who may call the axon."""

    min_stake: Annotated[float, Field(ge=0.0)] = 0.0
    """Least stake of a caller."""
    allow_no_permit: bool = False
    """Serve registered callers that have no validator permit."""
    allow_non_registered: bool = False
    """Serve callers that are not registered on the subnet: anybody."""


class LogSettings(Part):
    """The logs."""

    dir: Path = Path("logs")
    """Folder of miner.log and score.jsonl."""
    level: LogLevel = "INFO"
    """Least level shown."""
    thumbnails: Annotated[int, Field(ge=0, le=10_000)] = 100
    """Small pictures of the last answers that are kept for the monitor's page; 0 for none."""


class MinerConfig(GeneratingSettings):
    """Runs a miner neuron: answers validators' tasks with 3D Gaussian splats."""

    preset: str | None = None
    """Generation preset: gpu16, gpu24, gpu80, gpu24-splat, gpu80-splat, or embedded (no weights, no
    GPU; the default with --chain.file, and with --transports http alone)."""
    allow_embedded: bool = False
    """Let the preset embedded, which knows a few toy objects, serve on a real chain or gateway."""
    netuid: Annotated[int, Field(ge=0, le=65_535)] = 17
    """Subnet to mine on."""
    transports: str = "push"
    """Ways on which requests come, with commas: push (validators call the axon), pull (validators
    are asked for tasks), http (a page and an API on a port), gateway (tasks are taken from the
    subnet owner's gateway). http alone needs neither wallet nor chain; gateway needs a wallet."""
    budget: Seconds = 30.0
    """Seconds from the receipt of a request to the arrival of its answer."""
    budget_margin: Annotated[float, Field(ge=0.0, le=60.0)] = 0.2
    """Seconds of every budget kept for the way over the network, which the miner cannot measure."""
    wallet: WalletSettings = WalletSettings()
    subtensor: SubtensorSettings = SubtensorSettings()
    chain: ChainSettings = ChainSettings()
    axon: AxonSettings = AxonSettings()
    blacklist: BlacklistSettings = BlacklistSettings()
    limits: LimitsSettings = LimitsSettings()
    pull: PullSettings = PullSettings()
    http: HttpSettings = HttpSettings()
    gateway: GatewaySettings = GatewaySettings()
    candidates: CandidatesSettings = CandidatesSettings()
    gate: GateSettings = GateSettings()
    engines: EnginesSettings = EnginesSettings()
    metrics: MetricsSettings = MetricsSettings()
    drain: DrainSettings = DrainSettings()
    log: LogSettings = LogSettings()

    @field_validator("device")
    @classmethod
    def _device_is_known(cls, value: str) -> str:
        if not re.fullmatch(r"cpu|cuda(:[0-9]{1,2})?", value):
            raise ValueError("it is neither cpu nor cuda nor one of several GPUs, such as cuda:1")
        return value

    @field_validator("transports", mode="before")
    @classmethod
    def _transports_are_known(cls, value: object) -> str:
        given = value if isinstance(value, list) else str(value).split(",")
        names = [str(name).strip() for name in given]
        for name in names or [""]:
            if name not in TRANSPORTS:
                raise ValueError(f"{name!r} is none of {', '.join(TRANSPORTS)}")
        return ",".join(name for name in TRANSPORTS if name in names)

    @model_validator(mode="after")
    def _margin_leaves_time(self) -> Self:
        if self.budget_margin >= self.budget:
            raise SetupError(
                f"--budget_margin {self.budget_margin:g} leaves nothing of --budget "
                f"{self.budget:g}: every request would be dropped",
                fix="lower --budget_margin; it is the time that the network takes",
            )
        return self

    @model_validator(mode="after")
    def _callers_get_what_they_may(self) -> Self:
        most, given = (
            self.candidate_limits.max,
            {
                "http": self.http.candidates,
                "gateway": self.gateway.candidates,
            },
        )
        for name, count in given.items():
            if count > most and self.serves(name) and self.scoring.scorer != "none":
                raise SetupError(
                    f"--{name}.candidates {count} is more than the {most} of --candidates.max, so "
                    f"callers would get {most}",
                    fix=f"add --candidates.max {count}, or lower --{name}.candidates",
                )
        return self

    @model_validator(mode="after")
    def _preset_is_chosen(self) -> Self:
        real = [self.network] if self.needs_chain and self.chain.file is None else []
        if self.serves("gateway") and self.gateway.is_far:
            real.append("a gateway")
        if not real:
            return self
        if self.preset is None:
            raise SetupError(
                f"no preset is given, and there is no default on {real[0]}",
                fix="add --preset gpu16 (16 GB of GPU memory) or --preset gpu24; "
                "to try the miner without a chain, add --chain.file neurons.json, or "
                "--transports http",
            )
        if self.preset == "embedded" and not self.allow_embedded:
            raise SetupError(
                f"the preset embedded knows a few toy objects, which are no use on {real[0]}",
                fix="use --preset gpu16 or gpu24, or insist with --allow_embedded",
            )
        return self

    @property
    def candidate_limits(self) -> CandidateLimits:
        """How much is spent on candidates; nothing without a scorer."""
        values = self.candidates.model_dump()
        if values["max"] is None:
            values["max"] = 4 if self.preset_name == "embedded" else 32
        if self.scoring.scorer == "none":
            values["max"] = 1
        return CandidateLimits(**values, together=self.text_to_image.batch)

    def serves(self, transport: str) -> bool:
        """Whether requests come on this way."""
        return transport in self.transports.split(",")

    @property
    def needs_chain(self) -> bool:
        """Whether a subnet is needed: only validators ask for a place on one."""
        return self.serves("push") or self.serves("pull")

    @property
    def needs_wallet(self) -> bool:
        """Whether a hotkey is needed: only `http` alone serves without one."""
        return self.transports != "http"

    @property
    def network(self) -> str:
        """The chain in words."""
        if self.chain.file is not None:
            return f"file {self.chain.file}"
        return self.subtensor.chain_endpoint or self.subtensor.network
