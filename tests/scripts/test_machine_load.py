"""What a benchmark says of the machine that it ran on."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.benchmarks.machine_load import covered, cpu_noise

spans = st.lists(
    st.tuples(st.integers(0, 50), st.integers(0, 20)).map(lambda s: (s[0], s[0] + s[1])),
    max_size=12,
)


@given(spans)
def test_a_moment_in_which_several_kernels_run_counts_once(found: list[tuple[int, int]]) -> None:
    moments = {moment for start, end in found for moment in range(start, end)}
    assert covered(found) == len(moments)


def test_the_noise_is_that_of_the_slow_pieces() -> None:
    # A clock that makes each of 100 pieces 1 ms long, but for two of 5 and one of 30 ms.
    lengths = [0.001] * 97 + [0.005] * 2 + [0.030]

    def readings() -> Iterator[float]:
        now = 0.0
        yield from (now, 0.001)  # How many rounds a millisecond has.
        for length in lengths:
            yield now
            now += length
            yield now

    clock = readings()
    noise = cpu_noise(len(lengths), lambda: next(clock))
    assert noise["p95_over_median"] == pytest.approx(1.0)
    assert noise["p99_over_median"] == pytest.approx(5.0, rel=0.1)
    assert noise["worst_ms"] == pytest.approx(30.0)
