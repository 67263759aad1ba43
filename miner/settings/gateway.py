"""The settings of the transport gateway."""

import re
import socket
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field, ValidationInfo, field_validator

from miner.settings.model import Part
from miner.transports.gateway.addresses import base_address, is_this_machine

REGIONS = "https://api-eu.404.xyz,https://api-us-east.404.xyz,https://api-us-west.404.xyz"
_ALL_REGIONS = "api.dns.404.xyz"
_WORKER_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
WORKER_ID = "splat-miner"


class GatewaySettings(Part):
    """The transport gateway: tasks are taken from the subnet owner's gateway."""

    allow_http: bool = False
    """Take http:// addresses beyond this machine, although whoever reads a request can act as this
    worker for 30 s."""
    nodes: str = REGIONS
    """Base addresses of its nodes, with commas, as https://HOST or https://HOST:PORT."""
    discover: bool = False
    """Ask the nodes that a gateway lists, too."""
    worker_id: str = WORKER_ID
    """Name of this worker, which the gateway shows to clients."""
    tags: str | None = None
    """Tags of this worker, with commas; a worker with tags gets no ordinary work."""
    workers: Annotated[int, Field(ge=1, le=16)] = 1
    """Tasks in generation at once."""
    budget: Annotated[float, Field(gt=0.0, le=600.0)] = 30.0
    """Seconds from the receipt of a task to the delivery of its result, at most --budget; a task
    lives 600 s, of which an unknown part is over."""
    candidates: Annotated[int, Field(ge=1, le=1000)] = 1
    """Pictures drawn for a text; a client gets the first result of all workers, so more cost more
    than they win."""
    poll: Annotated[float, Field(ge=1.5, le=600.0)] = 1.5
    """Seconds between two calls on average, a third more or less each time."""
    idle: Annotated[float, Field(ge=1.5, le=3600.0)] = 7.5
    """Seconds until a node that has no task is asked again, on average."""
    results_per_minute: Annotated[int, Field(ge=1, le=120)] = 100
    """Results and failures sent in any 60 s; the gateway takes 120 of an IP address."""
    state: Path | None = None
    """File that keeps tasks over a restart, to report them; gateway-state.json in the folder of the
    logs if not given."""

    @field_validator("nodes", "tags", mode="before")
    @classmethod
    def _several_may_be_a_list(cls, value: object) -> object:
        if isinstance(value, list) and all(isinstance(name, str) for name in value):
            return ",".join(value)
        return value

    @field_validator("tags")
    @classmethod
    def _tags_are_some(cls, value: str | None) -> str | None:
        from protocol.gateway import check_tags

        return None if value is None else ",".join(check_tags(value.split(",")))

    @field_validator("worker_id")
    @classmethod
    def _worker_id_names_no_host(cls, value: str) -> str:
        if not _WORKER_ID.fullmatch(value):
            raise ValueError("it is not 1 to 64 of A-Z, a-z, 0-9, '.', '_' and '-'")
        host = socket.gethostname().partition(".")[0].lower()
        if value != WORKER_ID and len(host) > 2 and host in value.lower():
            raise ValueError("it holds the name of this machine, and clients of the gateway see it")
        return value

    @field_validator("state")
    @classmethod
    def _state_is_a_file(cls, value: Path | None) -> Path | None:
        if value is not None and value.name in ("", ".."):
            raise ValueError("it is a folder; name a file in it")
        return value

    @field_validator("nodes")
    @classmethod
    def _nodes_are_addresses(cls, value: str, info: ValidationInfo) -> str:
        allow_http = bool(info.data.get("allow_http"))
        given = [part for part in value.split(",") if part.strip()]
        if not given:
            raise ValueError("it names no address; write https://HOST or https://HOST:PORT")
        addresses = [base_address(part, allow_http=allow_http) for part in given]
        if any(urlsplit(address).hostname == _ALL_REGIONS for address in addresses):
            raise ValueError(
                f"{_ALL_REGIONS} leads to any region, and a task is known only to the node that "
                f"handed it out; name the regions: {REGIONS}"
            )
        return ",".join(addresses)

    @property
    def addresses(self) -> tuple[str, ...]:
        """The base addresses, each once."""
        return tuple(dict.fromkeys(self.nodes.split(",")))

    @property
    def is_far(self) -> bool:
        """Whether a node is on another machine, whose clients are strangers."""
        return any(not is_this_machine(urlsplit(each).hostname or "") for each in self.addresses)
