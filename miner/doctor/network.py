"""What can be wrong around this machine: clock, wallet, registration, validators, ports."""

import asyncio
import contextlib
import errno
import http.client
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miner.chain.file_chain import FileChain
from miner.chain.metagraph import Chain, Neuron
from miner.daemon_call import in_daemon_thread
from miner.doctor.findings import Check, Verdict, failed, ok, unchecked, warning
from miner.settings.miner import MinerConfig
from miner.surroundings import starting_up
from miner.transports.clocks import http_date
from miner.transports.gateway.state import FILE_NAME as GATEWAY_FILE_NAME
from miner.transports.pull.state import FILE_NAME
from miner.transports.pull.validators import Selection
from miner.transports.push.checks import MAX_AHEAD_S
from miner.transports.sockets import bound_socket
from protocol.errors import SetupError

TIME_HOST = "huggingface.co"
"""Whose clock ours is compared with: the weights come from there, so it is no new party."""

CLOCK_LIMIT_S = 5.0
WALLET_LIMIT_S = 30.0
CHAIN_LIMIT_S = 45.0
CONNECT_LIMIT_S = 5.0


@dataclass(frozen=True)
class Listener:
    """Where the miner will listen.

    Attributes:
        name: "axon", "http" or "metrics".
        ip: Address to bind.
        port: Port to bind.
        setting: Flag of the port.
        probe: Path that a running miner answers.
        mark: What its answer holds.
    """

    name: str
    ip: str
    port: int
    setting: str
    probe: str
    mark: bytes


def listeners(config: MinerConfig) -> list[Listener]:
    """Lists the ports that a miner with these settings opens."""
    axon, web, metrics = config.axon, config.http, config.metrics
    found = []
    if "push" in config.transports:
        found.append(Listener("axon", axon.ip, axon.port, "--axon.port", "/", b"GenerateAsset"))
    if "http" in config.transports:
        found.append(Listener("http", web.ip, web.port, "--http.port", "/health", b'"status"'))
    if metrics.port is not None:
        flag = "--metrics.port"
        found.append(Listener("metrics", metrics.ip, metrics.port, flag, "/health", b'"status"'))
    return found


def network_checks(config: MinerConfig, *, time_host: str = TIME_HOST) -> list[Check]:
    """Lists the checks of what is around the miner; later ones build on earlier ones."""
    hotkeys: list[str] = []
    keys: list[Any] = []
    neurons: list[Neuron] = []
    ports = listeners(config)

    async def clock() -> Verdict:
        try:
            ahead, uncertainty = await in_daemon_thread(
                lambda: measure_clock(time_host), CLOCK_LIMIT_S
            )
        except (OSError, ValueError, http.client.HTTPException) as error:
            return unchecked(f"{time_host} cannot be asked: {type(error).__name__}")
        return judge_clock(ahead, uncertainty, time_host)

    async def wallet() -> Verdict:
        def read() -> Any:
            from miner.chain.wallets import open_wallet

            with starting_up():
                opened = open_wallet(config.wallet.name, config.wallet.hotkey, config.wallet.path)
                return opened.hotkey

        if not config.needs_wallet:
            return ok("http alone needs no wallet")
        keys.append(await in_daemon_thread(read, WALLET_LIMIT_S))
        hotkeys.append(str(keys[0].ss58_address))
        return ok(f"{config.wallet.name}/{config.wallet.hotkey}, hotkey {hotkeys[0]}")

    async def registration() -> Verdict:
        if not config.needs_chain:
            return ok(f"{config.transports.replace(',', ' and ')} alone needs no chain")
        if not hotkeys:
            return unchecked("there is no hotkey to look for")
        chain = await in_daemon_thread(lambda: _chain(config), CHAIN_LIMIT_S)
        try:
            neuron = await chain.start(hotkeys[0])
        finally:
            neurons.extend(chain.snapshot.neurons.values())
            await chain.close()
        return ok(f"uid {neuron.uid} of subnet {config.netuid} on {config.network}")

    async def validators() -> Verdict:
        if not neurons:
            return unchecked("the subnet was not read")
        return judge_validators(neurons, Selection(hotkeys[0], config.pull.min_stake))

    async def pull_state() -> Verdict:
        return judge_state_file(config.pull.state or config.log.dir / FILE_NAME, "--pull.state")

    async def gateway_state() -> Verdict:
        path = config.gateway.state or config.log.dir / GATEWAY_FILE_NAME
        return judge_state_file(path, "--gateway.state")

    async def http_key() -> Verdict:
        from miner.transports.http.access import check_exposure

        key = config.http.api_key.get_secret_value() if config.http.api_key else None
        check_exposure(config.http.ip, key, allow_open=config.http.allow_open)
        return ok("a key is asked for" if key else f"no key; listening on {config.http.ip}")

    async def reach() -> Verdict:
        return await _reach(config)

    checks = [
        # Only signed messages carry times.
        *([Check("clock", clock, CLOCK_LIMIT_S + 1)] if config.needs_chain else []),
        Check("wallet", wallet, WALLET_LIMIT_S),
        Check("registration", registration, CHAIN_LIMIT_S, if_slow="check --subtensor.network"),
        *(_port_check(listener, ports[:place]) for place, listener in enumerate(ports)),
    ]
    if "pull" in config.transports:
        checks += [Check("validators", validators), Check("pull state", pull_state)]
    if "http" in config.transports:
        checks.append(Check("http key", http_key))
    if config.serves("gateway"):
        from miner.doctor.gateway import gateway_check

        checks += [gateway_check(config.gateway, keys), Check("gateway state", gateway_state)]
    if "push" in config.transports and config.chain.file is None:
        checks.append(Check("reachable", reach, 3 * CONNECT_LIMIT_S))
    return checks


def measure_clock(host: str) -> tuple[float, float]:
    """Compares our clock with the Date header of a web server.

    Plain HTTP, because a clock that is far off makes every certificate look invalid.

    Args:
        host: Name, with a port unless it is 80.

    Returns:
        Seconds that our clock is ahead, and the uncertainty of that.

    Raises:
        OSError, ValueError, http.client.HTTPException: No answer, or none with a date.
    """
    connection = http.client.HTTPConnection(host, timeout=CLOCK_LIMIT_S)
    try:
        before, began = time.time(), time.monotonic()
        connection.request("HEAD", "/")
        with connection.getresponse() as response:
            # Not by the wall clock twice, which may be set meanwhile.
            after, date = before + time.monotonic() - began, response.getheader("Date")
    finally:
        connection.close()
    if date is None:
        raise ValueError("no Date header")
    return clock_ahead(before, after, http_date(date))


def clock_ahead(before: float, after: float, date: float) -> tuple[float, float]:
    """Seconds that our clock is ahead of a date given in whole seconds, and the uncertainty."""
    theirs = date + 0.5
    return (before + after) / 2 - theirs, (after - before) / 2 + 0.5


def judge_clock(ahead_s: float, uncertainty_s: float, host: str) -> Verdict:
    """Axons refuse signed messages whose times differ from theirs by more than a few seconds."""
    way = "ahead of" if ahead_s > 0 else "behind"
    text = f"{abs(ahead_s):.1f} s {way} {host} (give or take {uncertainty_s:.1f} s)"
    if abs(ahead_s) - uncertainty_s > MAX_AHEAD_S:
        return failed(
            f"{text}; {MAX_AHEAD_S:.0f} s is the most, beyond it signed requests get 401",
            "timedatectl set-ntp true (a running miner follows, without a restart)",
        )
    return ok(text)


def judge_validators(neurons: Sequence[Neuron], selection: Selection) -> Verdict:
    """Counts the validators that pull would ask."""
    eligible = sum(map(selection.eligible, neurons))
    if not eligible:
        return warning(
            f"none of {len(neurons)} neurons is a validator that could be asked for tasks",
            "mainnet's netuid 17 has none; elsewhere validators may not have published an axon, or "
            "try a smaller --pull.min_stake",
        )
    return ok(f"{eligible} of {len(neurons)} neurons can be asked for tasks")


def judge_state_file(path: Path, flag: str) -> Verdict:
    """Looks whether the state of a transport can be kept; leaves the file to a running miner."""
    fix = f"give another file with {flag}"
    try:
        there = path.exists()
        folder = next(parent for parent in path.absolute().parents if parent.exists())
    except OSError as error:
        return failed(f"{path} cannot be looked at: {error.strerror}", fix)
    if there and not (path.is_file() and os.access(path, os.R_OK)):
        return failed(f"{path} cannot be read", fix)
    if not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        return failed(f"{path} cannot be written: {folder} takes no files", fix)
    return ok(str(path) if there else f"{path}, not there yet")


def _chain(config: MinerConfig) -> Chain:
    if config.chain.file is not None:
        return FileChain(config.chain.file)
    from miner.chain.subtensor import SubtensorChain

    return SubtensorChain(config.network, config.netuid, time_limit_s=CHAIN_LIMIT_S / 2)


def _port_check(listener: Listener, earlier: Sequence[Listener]) -> Check:
    async def look() -> Verdict:
        for other in earlier:
            if listener.port == other.port and _overlap(listener.ip, other.ip):
                return failed(
                    f"{listener.setting} and {other.setting} are both {listener.port}",
                    f"choose another {listener.setting}",
                )
        try:
            bound_socket(listener.ip, listener.port, setting=listener.setting).close()
        except SetupError as error:
            cause = error.__cause__
            if isinstance(cause, OSError) and cause.errno == errno.EADDRINUSE:
                body = await in_daemon_thread(lambda: _ask(listener), CONNECT_LIMIT_S)
                if listener.mark in body:
                    return ok(f"{listener.ip}:{listener.port} is served by a running miner")
            raise
        return ok(f"{listener.ip}:{listener.port} is free")

    return Check(f"{listener.name} port", look, CONNECT_LIMIT_S + 1)


def _overlap(ip: str, other: str) -> bool:
    """Whether two sockets on one port would get in each other's way."""
    return ip == other or not {"0.0.0.0", "::"}.isdisjoint((ip, other))


def _ask(listener: Listener) -> bytes:
    """Returns the beginning of what answers at a port of this machine; nothing if it is no HTTP."""
    anywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}
    connection = http.client.HTTPConnection(
        anywhere.get(listener.ip, listener.ip), listener.port, timeout=CONNECT_LIMIT_S / 2
    )
    try:
        connection.request("GET", listener.probe)
        with connection.getresponse() as response:
            return response.read(4096)
    except (OSError, http.client.HTTPException):
        return b""
    finally:
        connection.close()


async def _reach(config: MinerConfig) -> Verdict:
    """Connects to the address that is given to validators, from here."""
    from miner.chain.subtensor import external_ip

    ip, port = config.axon.external_ip, config.axon.external_port or config.axon.port
    try:
        if ip is None:
            async with asyncio.timeout(CONNECT_LIMIT_S):
                ip = await external_ip()
    except (SetupError, TimeoutError):
        return unchecked("the public address is not known", "give it with --axon.external_ip")
    try:
        listening = bound_socket(config.axon.ip, config.axon.port)
        listening.listen()
    except (SetupError, OSError):
        listening = None  # Taken: the check of the port says by what.
    try:
        return await judge_connection(ip, port)
    finally:
        if listening is not None:
            listening.close()


async def judge_connection(ip: str, port: int) -> Verdict:
    """Tries to connect; that it fails from here need not mean that it fails from outside."""
    try:
        async with asyncio.timeout(CONNECT_LIMIT_S):
            _, writer = await asyncio.open_connection(ip, port)
    except (OSError, TimeoutError):
        return warning(
            f"no connection to {ip}:{port} from here",
            f"many routers refuse their own outer address, so try it from elsewhere: "
            f"nc -vz {ip} {port}; if that fails too, open the TCP port in router and firewall",
        )
    writer.close()
    with contextlib.suppress(OSError):  # Whoever listens may hang up first.
        await writer.wait_closed()
    return ok(f"{ip}:{port} takes connections")
