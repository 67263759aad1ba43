"""What is promised about the seconds that an answer takes to its caller."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miner.scheduling.estimates import DELIVERY_FLOOR_S, DELIVERY_S_PER_BYTE, DeliveryTimes

MB = 1_000_000


def test_a_transport_is_learned_from_the_sizes_of_its_answers() -> None:
    delivery = DeliveryTimes()
    for size in [MB, 3 * MB] * 50:
        delivery.observe("axon", size, DELIVERY_FLOOR_S + size * 1e-6)
    # A size that was never sent is predicted from the rate.
    assert delivery.predict("axon", 2 * MB, 0.0) == pytest.approx(DELIVERY_FLOOR_S + 2.0, rel=0.02)
    assert delivery.predict("axon", 2 * MB, 1.645) == pytest.approx(2.05, rel=0.1)


def test_transports_are_learned_apart() -> None:
    delivery = DeliveryTimes()
    before = delivery.predict("http", MB, 1.645)
    for _ in range(50):
        delivery.observe("axon", MB, 20.0)
    assert delivery.predict("http", MB, 1.645) == before
    assert delivery.predict("axon", MB, 0.0) > 10 * before


def test_an_answer_without_an_asset_teaches_nothing() -> None:
    delivery = DeliveryTimes()
    before = delivery.predict("axon", MB, 1.645)
    delivery.observe("axon", 0, 10.0)
    assert delivery.predict("axon", MB, 1.645) == before


def test_an_uneven_way_needs_more_time_to_be_sure() -> None:
    even, uneven = DeliveryTimes(), DeliveryTimes()
    for index in range(100):
        even.observe("axon", MB, 1.0)
        uneven.observe("axon", MB, 0.5 if index % 2 else 1.5)
    assert uneven.predict("axon", MB, 1.645) > even.predict("axon", MB, 1.645) + 0.5


def test_one_stalled_answer_changes_a_prediction_by_little() -> None:
    delivery = DeliveryTimes()
    for _ in range(100):
        delivery.observe("axon", MB, 1.0)
    delivery.observe("axon", MB, 100.0)
    assert delivery.predict("axon", MB, 0.0) == pytest.approx(1.0, rel=0.15)


def test_before_anything_is_known_a_larger_answer_takes_longer() -> None:
    small, large = (DeliveryTimes().predict("axon", size, 0.0) for size in (MB, 2 * MB))
    assert large - small == pytest.approx(MB * DELIVERY_S_PER_BYTE)


@given(
    answers=st.lists(st.tuples(st.integers(0, 10**9), st.floats(0.0, 1e6)), max_size=40),
    size=st.integers(0, 10**9),
)
def test_no_delivery_is_predicted_to_take_less_than_the_floor(
    answers: list[tuple[int, float]], size: int
) -> None:
    delivery = DeliveryTimes()
    for observed, seconds in answers:
        delivery.observe("axon", observed, seconds)
    assert DELIVERY_FLOOR_S <= delivery.predict("axon", size, 1.645) < float("inf")
