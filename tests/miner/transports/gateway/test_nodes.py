"""Which node is asked, when, and how often results may be sent."""

from itertools import pairwise

import pytest

from miner.transports.gateway.addresses import base_address, host_of
from miner.transports.gateway.nodes import (
    MAX_BACKOFF_S,
    MOST_NODES,
    MinuteLimit,
    Nodes,
    Pauses,
    address_of,
)
from protocol.gateway import GatewayNode
from tests.support.fake_gateway import EU, US, node
from tests.support.fakes import Clock

ASIA = "https://asia.example"


def make(
    *addresses: str, clock: Clock | None = None, chance: float = 0.5, discover: bool = False
) -> Nodes:
    return Nodes(
        addresses or (EU,),
        clock=clock or Clock(),
        chance=lambda: chance,
        discover=discover,
    )


def asks(nodes: Nodes, clock: Clock, seconds: float, tasks: int = 0) -> list[tuple[float, str]]:
    """When each node is asked in a time in which every call gives this many tasks at once."""
    found, end = [], clock.now + seconds
    while clock.now < end:
        chosen = nodes.choose()
        if chosen is not None:
            found.append((clock.now, chosen))
            nodes.gave(chosen, tasks)
        clock.now += max(0.001, nodes.wait())
    return found


@pytest.mark.parametrize(("chance", "poll_s", "idle_s"), [(0, 1, 5), (0.5, 1.5, 7.5), (1, 2, 10)])
def test_a_node_is_asked_every_1_to_2_s_and_every_5_to_10_s_while_it_is_empty(
    chance: float, poll_s: float, idle_s: float
) -> None:
    clock = Clock()
    nodes = make(clock=clock, chance=chance)
    times = [at for at, _ in asks(nodes, clock, 60.0, tasks=1)]
    assert {round(b - a, 2) for a, b in pairwise(times)} == {poll_s}
    pauses = [round(b - a, 2) for a, b in pairwise(at for at, _ in asks(nodes, clock, 60.0))]
    assert pauses == sorted(pauses)
    assert pauses[0] < idle_s
    assert set(pauses[3:]) == {idle_s}


def test_between_any_two_calls_is_the_pause_however_many_nodes_there_are() -> None:
    clock = Clock()
    nodes = make(*(f"https://n{n}.example" for n in range(20)), clock=clock)
    times = [at for at, _ in asks(nodes, clock, 120.0)]
    assert min(b - a for a, b in pairwise(times)) >= 1.5 - 1e-9


def test_no_node_is_asked_during_the_pause_and_it_begins_again_with_an_answer() -> None:
    clock = Clock()
    nodes = make(EU, US, clock=clock)
    first = nodes.choose()
    assert first is not None
    assert nodes.choose() is None
    clock.now += 8.0  # A slow answer.
    nodes.gave(first, 1)
    assert nodes.choose() is None
    clock.now += 1.4
    assert nodes.choose() is None
    clock.now += 0.2
    assert nodes.choose() is not None


def test_empty_nodes_are_asked_in_turn() -> None:
    clock = Clock()
    nodes = make(EU, US, ASIA, clock=clock)
    asked = [address for _, address in asks(nodes, clock, 120.0)]
    assert {asked.count(each) for each in (EU, US, ASIA)} <= {len(asked) // 3, len(asked) // 3 + 1}


def test_the_node_with_the_most_queued_tasks_is_asked_first() -> None:
    nodes = make(EU, US, ASIA)
    nodes.listed(EU, [node(EU, 1), node(US, 7), node(ASIA, 3)])
    assert nodes.choose() == US


def test_a_node_that_lists_tasks_but_gives_none_does_not_keep_others_from_their_turn() -> None:
    """The list counts tasks that this hotkey has had, too."""
    clock = Clock()
    nodes = make(EU, US, clock=clock)
    nodes.listed(EU, [node(EU, 50)])
    asked = [address for _, address in asks(nodes, clock, 120.0)]
    assert asked.count(US) >= len(asked) // 2 - 1


def test_a_node_that_fails_rests_longer_each_time_and_the_others_do_not() -> None:
    clock = Clock()
    nodes = make(EU, US, clock=clock)
    backoffs = [nodes.failed(EU) for _ in range(12)]
    assert backoffs[:4] == [2.0, 4.0, 8.0, 16.0]
    assert backoffs[-1] == MAX_BACKOFF_S
    assert {address for _, address in asks(nodes, clock, 60.0)} == {US}
    clock.now += MAX_BACKOFF_S
    assert EU in {address for _, address in asks(nodes, clock, 60.0)}
    assert nodes.failed(EU) == 2.0  # An answer has ended the row.
    assert nodes.failed(EU, least_s=60.0) == 60.0


def test_a_node_of_an_earlier_run_may_fail() -> None:
    nodes = make(EU)
    nodes.failed("https://gone.example")
    assert nodes.addresses == (EU,)
    assert nodes.choose() == EU


def test_listed_nodes_are_asked_only_if_wanted_and_not_without_end() -> None:
    entries = [node(US, 3), *(node(f"https://n{n}.example") for n in range(100))]
    silent = make(EU)
    silent.listed(EU, entries)
    assert silent.addresses == (EU,)
    curious = make(EU, discover=True)
    curious.listed(EU, entries)
    assert curious.choose() == US
    assert len(curious.addresses) == MOST_NODES


@pytest.mark.parametrize("domain", ["a b", "evil.example/path", "x@evil.example", "", "-x", "é.x"])
def test_a_listed_node_with_an_odd_name_is_left_out(domain: str) -> None:
    nodes = make(EU, discover=True)
    nodes.listed(EU, [GatewayNode(domain=domain, http_port=443)])
    assert nodes.addresses == (EU,)


def test_a_listed_node_is_reached_as_the_one_that_lists_it() -> None:
    assert address_of(GatewayNode(domain="eu.example", http_port=4443), EU) == (
        "https://eu.example:4443"
    )
    local = GatewayNode(domain="127.0.0.1", http_port=81)
    assert address_of(local, "http://127.0.0.1:80") == "http://127.0.0.1:81"
    with pytest.raises(ValueError, match="not encrypted"):
        address_of(GatewayNode(domain="eu.example", http_port=81), "http://127.0.0.1:80")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("https://API-eu.404.xyz", "https://api-eu.404.xyz"),
        (" https://api-eu.404.xyz:443/ ", "https://api-eu.404.xyz"),
        ("https://10.0.0.1:4443", "https://10.0.0.1:4443"),
        ("https://[2001:db8::1]:4443", "https://[2001:db8::1]:4443"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("http://localhost:8080", "http://localhost:8080"),
        ("http://[::1]:8080", "http://[::1]:8080"),
    ],
)
def test_an_address_has_one_form(text: str, address: str) -> None:
    assert base_address(text) == address
    assert base_address(address) == address
    assert host_of(address) in address


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no address"),
        ("api-eu.404.xyz", "no address"),
        ("ftp://x", "no address"),
        ("https://", "no address"),
        ("https://x/path", "more than a host"),
        ("https://x?q=1", "more than a host"),
        ("https://user:secret@x", "more than a host"),
        ("https://x:0", "no usable host or port"),
        ("https://x:99999", "no usable host or port"),
        ("https://a b", "no usable host or port"),
        ("https://[::1", "no address"),
        ("http://example.com", "not encrypted.*--gateway.allow_http"),
        ("http://10.0.0.1:4443", "not encrypted"),
        ("http://127.0.0.1.evil.example", "not encrypted"),
    ],
)
def test_what_is_no_address_says_why(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        base_address(text)


def test_http_beyond_this_machine_has_to_be_wanted() -> None:
    assert base_address("http://10.0.0.1:4443", allow_http=True) == "http://10.0.0.1:4443"


@pytest.mark.parametrize("every_s", [0.0, 0.1, 0.4, 0.62, 3.0])
def test_no_minute_has_more_results_than_allowed(every_s: float) -> None:
    clock, times = Clock(), list[float]()
    limit = MinuteLimit(100, clock)
    for _ in range(500):
        times.append(clock.now + limit.reserve())
        clock.now += every_s
    for first in times:
        assert sum(first <= at < first + 60.5 for at in times) <= 100
    assert times == sorted(times)
    if every_s > 0.61:
        assert times[-1] <= clock.now  # Nobody waits who does not have to.


def test_pauses_have_the_published_numbers() -> None:
    assert Pauses() == Pauses(1.5, 7.5)
