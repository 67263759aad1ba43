"""The Ray cluster: started on this machine for the time of the miner, or joined."""

import contextlib
import logging
import os
import secrets
import signal
import socket
import sys
import threading
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from miner.settings.engines import EnginesSettings
from protocol.errors import SetupError

OBJECT_STORE_BYTES = 80 * 2**20
"""Hardly used; Ray takes no less than 75 MiB."""

CONNECT_LIMIT_S = 5.0

LOGS = "/tmp/ray/session_latest/logs"

JOINED = Path("/tmp/ray/ray_current_cluster")
"""Written by `ray start`, and left there when its cluster has ended without `ray stop`."""

TOKEN = "~/.ray/auth_token"
"""Written by `ray get-auth-token --generate`."""

INSTALL = "make install EXTRAS=gpu,score,ray"


@dataclass(frozen=True)
class Resources:
    """What a cluster has in all.

    Attributes:
        nodes: GPUs by machine.
        gpus: How many.
        cores: How many.
    """

    nodes: dict[str, int]
    gpus: int
    cores: int


def require_ray() -> str:
    """Returns the version of Ray.

    Raises:
        SetupError: It is not installed.
    """
    try:
        return metadata.version("ray")
    except metadata.PackageNotFoundError:
        raise SetupError(
            "--engines ray needs the package ray, which is not installed", fix=INSTALL
        ) from None


def prepare(*, own: bool) -> None:
    """Sets what Ray reads from the environment. To be called before Ray is imported.

    Args:
        own: Whether the cluster is started here; one that is joined has its settings already.

    Raises:
        RuntimeError: Ray was imported with other settings.
    """
    wanted = {"RAY_USAGE_STATS_ENABLED": "0"}
    if own:
        wanted |= {
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Where it is 0, Ray stays on 127.0.0.1.
            "RAY_AUTH_MODE": "token",
            "RAY_worker_niceness": "0",
        }
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    elif "RAY_AUTH_MODE" not in os.environ and _has_token():
        wanted["RAY_AUTH_MODE"] = "token"  # Ray does so itself, but only for the address "auto".
    if "ray" in sys.modules and any(os.environ.get(name) != wanted[name] for name in wanted):
        raise RuntimeError("Ray was imported before its environment was prepared")
    os.environ.update(wanted)


def _has_token() -> bool:
    given = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    return bool(given) or os.path.isfile(os.path.expanduser(TOKEN))


def open_cluster(settings: EnginesSettings, *, cores: int | None = None) -> Resources:
    """Starts Ray on this machine, or joins the cluster that this machine belongs to.

    Takes seconds. Call it from the main thread: what Ray starts ends with the thread that started
    it. Ray of this machine listens on the loopback address only, and takes calls with a token that
    is drawn each time.

    Args:
        settings: Where.
        cores: How many engines without a GPU have to find room; for its own cluster.

    Raises:
        SetupError: Ray is not installed, does not start, or the cluster cannot be joined.
    """
    require_ray()
    require_answer(settings.address)
    prepare(own=settings.address is None)
    import ray

    main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        if settings.address is None:
            ray.init(
                address="local",
                num_cpus=None if cores is None else max(cores, os.cpu_count() or 1),
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        else:
            ray.init(address=settings.address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:
        where = settings.address or "this machine"
        raise SetupError(
            f"Ray does not start on {where}: {str(error).splitlines()[0] if str(error) else error}",
            fix=start_fix(settings.address),
        ) from error
    finally:
        if main:
            for number, handler in handlers.items():
                signal.signal(number, handler)  # Ray has put its own in the place of ours.
    return resources()


def start_fix(address: str | None) -> str:
    """Returns what to do where Ray does not start, or the cluster at an address is not joined."""
    if address is None:
        return f"see the newest logs in {LOGS}"
    return (
        "the miner's machine is part of the cluster: `ray start --head`, or `ray start "
        "--address=HOST:6379`, first, with the same RAY_AUTH_MODE and token (docs/many-gpus.md)"
    )


def require_answer(address: str | None) -> None:
    """Refuses an address where nothing listens: Ray would try for minutes.

    Raises:
        SetupError: Nothing does.
    """
    if address == "auto":
        address = _last_joined()
    if address is None:
        return
    try:
        _connect(address)
    except OSError as error:
        raise SetupError(
            f"no Ray cluster answers at {address}: {error.strerror or error}",
            fix="`ray start --head` on that machine; `ray status` there shows whether it runs",
        ) from error


def _last_joined() -> str | None:
    """The address that Ray takes for "auto": where `ray start` of this machine joined last."""
    with contextlib.suppress(OSError):  # There is none, and Ray says so at once.
        address = os.environ.get("RAY_ADDRESS") or JOINED.read_text(encoding="utf-8").strip()
        if address.rpartition(":")[2].isdecimal():
            return address
    return None


def answers(address: str) -> bool:
    """Whether something takes connections at HOST:PORT."""
    try:
        _connect(address)
    except OSError:
        return False
    return True


def _connect(address: str) -> None:
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), CONNECT_LIMIT_S).close()


def control_addresses() -> tuple[str, ...]:
    """Returns where Ray's control process and the raylet of this machine listen, as HOST:PORT.

    They are those of the joined cluster.
    """
    import ray

    context = ray.get_runtime_context()
    here = context.get_node_id()
    raylets = [
        f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"
        for node in ray.nodes()
        if node["NodeID"] == here
    ]
    return (context.gcs_address, *raylets)


def resources() -> Resources:
    """Returns what the joined cluster has."""
    import ray

    nodes = {
        str(node["NodeManagerHostname"]): int(node["Resources"].get("GPU", 0))
        for node in ray.nodes()
        if node["Alive"]
    }
    total = ray.cluster_resources()
    return Resources(nodes, int(total.get("GPU", 0)), int(total.get("CPU", 0)))


def usable_cores() -> int:
    """Returns how many cores of this machine its processes may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def some(count: int, thing: str) -> str:
    """Returns how many, as 1 GPU or 2 GPUs."""
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def close_cluster() -> None:
    """Ends what `open_cluster` started, or leaves the cluster."""
    import ray

    ray.shutdown()
