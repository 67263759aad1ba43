from collections.abc import Hashable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miner.transports.connection_book import ConnectionBook, ConnectionLimits, Phase, network_of
from tests.support.fakes import Clock

LIMITS = ConnectionLimits(waiting=12, waiting_per_address=6, requests=4, requests_per_address=3)
HERE, THERE = "192.0.2.1", "192.0.2.2"


class Server:
    """Does what a server does with a book: closes who has to go, notes who has gone."""

    def __init__(self, limits: ConnectionLimits = LIMITS) -> None:
        self.clock = Clock()
        self.book = ConnectionBook(limits, self.clock)
        self.closed: list[Hashable] = []

    def move(self, key: Hashable, address: str, phase: Phase) -> None:
        self.book.move(key, address, phase)
        while (crowded := self.book.crowded_out(address)) is not None:
            self.book.remove(crowded)
            self.closed.append(crowded)
        self.clock.now += 0.001


@pytest.mark.parametrize("flood", [Phase.NEW, Phase.HEAD, Phase.IDLE, Phase.BODY, Phase.WRITE])
def test_a_newcomer_that_asks_at_once_gets_in_whatever_the_others_do(flood: Phase) -> None:
    server = Server()
    for number in range(100):
        server.move(number, HERE, flood)
        server.move(f"honest {number}", HERE, Phase.NEW)
        server.move(f"honest {number}", HERE, Phase.WORK)
        assert server.book.has_place(f"honest {number}", HERE)
        server.book.remove(f"honest {number}")
    # The last newcomer took a place for a moment, and left it.
    assert server.closed == list(range(100 - LIMITS.waiting_per_address + 1))
    assert len(server.book) == LIMITS.waiting_per_address - 1


@pytest.mark.parametrize("flood", [Phase.NEW, Phase.BODY, Phase.IDLE])
def test_a_flood_of_one_kind_ends_no_connection_of_another(flood: Phase) -> None:
    server = Server()
    others = {Phase.BODY, Phase.IDLE, Phase.NEW} - {flood}
    for phase in others:
        server.move(phase, HERE, phase)
    for number in range(100):
        server.move(number, HERE, flood)
    assert not others & set(server.closed)


def test_who_has_most_connections_loses_one_when_all_together_are_too_many() -> None:
    server = Server()
    for number in range(6):
        server.move(("there", number), THERE, Phase.NEW)
    for number in range(6):
        server.move(number, f"198.51.100.{number}", Phase.NEW)
    assert server.closed == []
    server.move("newcomer", HERE, Phase.NEW)
    assert server.closed == [("there", 0)]


def test_of_many_addresses_with_one_each_the_oldest_loses_its_connection() -> None:
    server = Server()
    for number in range(100):
        server.move(number, f"198.51.100.{number}", Phase.NEW)
    assert server.closed == list(range(100 - LIMITS.waiting))


def test_a_connection_that_the_miner_works_for_is_never_closed_for_others() -> None:
    server = Server()
    server.move("work", HERE, Phase.WORK)
    server.clock.now += 1e6
    for number in range(100):
        server.move(number, HERE, Phase.NEW)
    assert "work" not in server.closed
    assert ("work", Phase.WORK) not in server.book.overdue()


def test_requests_have_their_own_bound_for_all_and_for_one_address() -> None:
    server = Server()
    for number in range(3):
        server.move(number, HERE, Phase.WORK)
        assert server.book.has_place(number, HERE)  # It does not count itself.
    assert not server.book.has_place("more", HERE)
    assert server.book.has_place("other", THERE)
    server.move("other", THERE, Phase.WORK)
    assert not server.book.has_place("third", "192.0.2.3")
    server.move(0, HERE, Phase.IDLE)
    assert server.book.has_place("third", "192.0.2.3")


@pytest.mark.parametrize(
    ("phase", "seconds"),
    [
        (Phase.NEW, LIMITS.head_s),
        (Phase.HEAD, LIMITS.head_s),
        (Phase.BODY, LIMITS.body_s),
        (Phase.WRITE, LIMITS.write_s),
        (Phase.IDLE, LIMITS.idle_s),
        (Phase.DRAIN, LIMITS.drain_s),
        (Phase.CLOSING, LIMITS.drain_s),
    ],
)
def test_every_phase_that_waits_for_a_client_ends(phase: Phase, seconds: float) -> None:
    clock = Clock()
    book = ConnectionBook(LIMITS, clock)
    book.move("slow", HERE, phase)
    clock.now += seconds - 0.01
    book.move("slow", HERE, phase)  # Another byte gives no more time.
    assert book.overdue() == []
    clock.now += 0.01
    assert book.overdue() == [("slow", phase)]


def test_the_first_byte_of_the_first_headers_gives_no_more_time_either() -> None:
    clock = Clock()
    book = ConnectionBook(LIMITS, clock)
    book.move("slow", HERE, Phase.NEW)
    clock.now += LIMITS.head_s - 1.0
    book.move("slow", HERE, Phase.HEAD)
    clock.now += 1.0
    assert book.overdue() == [("slow", Phase.HEAD)]
    book.move("slow", HERE, Phase.BODY)
    assert book.overdue() == []


moves = st.tuples(
    st.integers(0, 30), st.sampled_from([*Phase, None]), st.sampled_from([HERE, THERE, "::"])
)


@given(st.lists(moves, max_size=200))
def test_no_bound_is_ever_exceeded_and_everything_is_forgotten(
    steps: list[tuple[int, Phase | None, str]],
) -> None:
    server = Server()
    for number, phase, address in steps:
        if phase is None:
            server.book.remove((number, address))
        else:
            server.move((number, address), address, phase)
        waiting = [(key, p) for key, p in all_of(server.book) if p is not Phase.WORK]
        assert len(waiting) <= LIMITS.waiting
        for each in (HERE, THERE, "::"):
            of_address = [key for key, _ in waiting if key[1] == each]
            assert len(of_address) <= LIMITS.waiting_per_address
    for number in range(31):
        for each in (HERE, THERE, "::"):
            server.book.remove((number, each))
    assert len(server.book) == 0
    assert server.book.has_place("x", HERE)


def all_of(book: ConnectionBook) -> list[tuple[tuple[int, str], Phase]]:
    return [(key, entry.phase) for key, entry in book._entries.items()]  # type: ignore[misc]


def test_limits_leave_most_descriptors_to_others() -> None:
    limits = ConnectionLimits()
    assert limits.within(65536) == limits
    small = limits.within(1024)
    assert small.waiting + small.requests == 256
    assert small.waiting_per_address <= 128
    assert small.head_s == limits.head_s
    assert limits.within(1).waiting == 1


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("2001:db8:1:2::9", "2001:db8:1:2::"),
        ("fe80::1%eth0", "fe80::"),
        ("::1", "::"),
        ("", ""),
        ("unix", "unix"),
    ],
)
def test_what_counts_as_one_address(address: str, network: str) -> None:
    assert network_of(address) == network
