"""Whether a gateway can be reached, agrees about the time, and takes this worker's signature."""

import asyncio
from dataclasses import dataclass
from typing import Any

from miner.doctor.findings import Check, Status, Verdict, failed, ok, warning
from miner.settings.gateway import GatewaySettings
from miner.transports.gateway.addresses import host_of
from miner.transports.gateway.calls import CLOCK_IS_OFF_S, GatewayCalls, GatewayFault
from miner.transports.gateway.troubles import trouble_of

LIMIT_S = 60.0


@dataclass(frozen=True)
class NodeLook:
    """What one node has answered.

    Attributes:
        address: Its base address.
        node_id: Its number; empty if it did not answer to that.
        off_s: Seconds that its clock is surely ahead of this machine's; negative if behind.
        fault: Why it did not take the request for no task; None if it did.
    """

    address: str
    node_id: str
    off_s: float
    fault: GatewayFault | None


def gateway_check(settings: GatewaySettings, keys: list[Any]) -> Check:
    """Returns the check of all nodes.

    Args:
        settings: Of the transport.
        keys: The worker's hotkey, once it was read.
    """

    async def look() -> Verdict:
        if not keys:
            return Verdict(Status.UNCHECKED, "there is no hotkey to sign with")
        calls = GatewayCalls(keys[0], worker_id=settings.worker_id)
        try:
            looks = await asyncio.gather(
                *(look_at(calls, address) for address in settings.addresses)
            )
        finally:
            await calls.close()
        return judge_nodes(looks, calls.hotkey)

    return Check("gateway", look, LIMIT_S, if_slow="check --gateway.nodes and the firewall")


async def look_at(calls: GatewayCalls, address: str) -> NodeLook:
    """Asks a node for its number and for no task: it then checks the signature and the whitelist.

    No task is taken by that.
    """
    node_id, fault = "", None
    try:
        node_id = await calls.node_id(address)
        await calls.get_tasks(address, 0)
    except GatewayFault as error:
        fault = error
    return NodeLook(address, node_id, calls.clock_off(address), fault)


def judge_nodes(looks: list[NodeLook], hotkey: str) -> Verdict:
    """Judges all nodes together: the worker works as long as one of them takes it."""
    words = "; ".join(map(_in_words, looks))
    bad = [each for each in looks if each.fault is not None]
    if bad:
        fix = _fix(bad[0], hotkey)
        return failed(words, fix) if len(bad) == len(looks) else warning(words, fix)
    if any(abs(each.off_s) >= CLOCK_IS_OFF_S for each in looks):
        return warning(words, "timedatectl set-ntp true (until then the gateway's clock is used)")
    return ok(f"{words}; whether it has work for this hotkey is seen only by taking some")


def _in_words(look: NodeLook) -> str:
    host = host_of(look.address)
    words = f"{host} is node {look.node_id}" if look.node_id else host
    if look.fault is None:
        words += " and takes the signature"
    else:
        words += f", but {look.fault}" if look.node_id else f": {look.fault}"
    if abs(look.off_s) >= CLOCK_IS_OFF_S:
        way = "behind" if look.off_s > 0 else "ahead of"
        words += f" (this machine's clock is {abs(look.off_s):.0f} s {way} it)"
    return words


def _fix(look: NodeLook, hotkey: str) -> str:
    assert look.fault is not None
    match trouble_of(look.fault):
        case "whitelist":
            return (
                f"ask the operator of the gateway to add {hotkey} to http.worker_whitelist; the "
                "list is closed, so nothing on this machine helps"
            )
        case "signature":
            return "timedatectl set-ntp true; then check --wallet.name and --wallet.hotkey"
        case "request":
            return "check --gateway.nodes: this is no gateway, or one of another version"
    return "check --gateway.nodes, the name server and the firewall"
