"""Which candidates are started, and which of them wins."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from miner.scheduling.candidates import Candidate, CandidateLimits, Candidates


def begun(limits: CandidateLimits, *, score: float = 0.5, seed: int | None = 7) -> Candidates:
    candidates = Candidates(limits, seed)
    candidates.begin(score)
    return candidates


def started(candidates: Candidates) -> Candidate:
    """Starts what comes next; there must be something."""
    (candidate,) = candidates.next()
    candidates.start([candidate])
    return candidate


def ended(candidates: Candidates, candidate: Candidate, worth: float | None) -> None:
    candidates.end([candidate], [worth])


def test_without_a_limit_above_one_nothing_follows_the_first_object() -> None:
    assert begun(CandidateLimits(max=1)).next() == ()


def test_the_first_object_has_the_seed_of_the_request_and_every_other_one_its_own() -> None:
    candidates = begun(CandidateLimits(max=500), seed=7)
    for _ in range(499):
        started(candidates)
    seeds = [each.seed for each in candidates.all]
    assert seeds[0] == 7
    assert len(set(seeds)) == 500
    assert all(seed is not None and 0 <= seed < 2**32 for seed in seeds)


def test_a_request_without_a_seed_leaves_the_first_one_to_the_preset() -> None:
    candidates = begun(CandidateLimits(max=3), seed=None)
    assert [candidates.all[0].seed, started(candidates).seed != 0] == [None, True]


def test_nothing_is_started_once_the_target_is_reached() -> None:
    limits = CandidateLimits(max=9, target=0.8)
    assert begun(limits, score=0.8).next() == ()
    candidates = begun(limits, score=0.79)
    assert candidates.next()


def test_every_picture_is_lifted_at_once_where_one_is_drawn_for_each_object() -> None:
    candidates = begun(CandidateLimits(max=3, pictures=1))
    drawn = started(candidates)
    ended(candidates, drawn, 0.1)
    assert started(candidates) is drawn
    assert drawn.state == "lifting"


def test_only_the_best_rated_of_each_few_pictures_is_lifted() -> None:
    candidates = begun(CandidateLimits(max=7, pictures=3))
    lifted = []
    while group := candidates.next():
        (candidate,) = group
        candidates.start(group)
        if candidate.state == "lifting":
            lifted.append(candidate.number)
            ended(candidates, candidate, 0.4)
        else:
            ended(candidates, candidate, (0.0, 0.2, 0.9, 0.3, 0.5, 0.1, 0.8)[candidate.number])
    assert lifted == [2, 6]
    assert (candidates.made, candidates.drawn) == (3, 7)


def test_what_is_left_of_the_last_few_pictures_is_lifted_too() -> None:
    candidates = begun(CandidateLimits(max=3, pictures=5))
    for rating in (0.3, 0.6):
        ended(candidates, started(candidates), rating)
    assert started(candidates).number == 2


def test_a_candidate_that_is_taken_back_is_started_again_with_its_seed_and_its_picture() -> None:
    candidates = begun(CandidateLimits(max=4))
    one, two = started(candidates), started(candidates)
    candidates.take_back([one])
    assert candidates.next() == (one,)
    ended(candidates, two, 0.5)
    assert started(candidates) is two  # What is drawn is lifted first.
    candidates.take_back([two])
    assert (candidates.next(), two.rating) == ((two,), 0.5)


def test_pictures_are_drawn_together_as_long_as_enough_are_left() -> None:
    candidates = begun(CandidateLimits(max=9, pictures=2))
    sizes = []
    while group := candidates.next(3):
        candidates.start(group)
        drawn = group[0].state == "drawing"
        sizes.append(len(group) if drawn else 0)
        candidates.end(group, [0.1 * each.number for each in group])
    # Two are too few for a further three, so the engine has not prepared for them.
    assert [size for size in sizes if size] == [3, 3, 1, 1]
    # Of each three one is lifted, and one of the last two.
    assert sizes.count(0) == 3
    assert [each.number for each in candidates.all] == list(range(9))
    assert candidates.drawn == 9


def test_a_picture_of_several_that_fails_costs_the_others_nothing() -> None:
    candidates = begun(CandidateLimits(max=4, pictures=1))
    group = candidates.next(3)
    candidates.start(group)
    candidates.end(group, [0.1, None, 0.3])
    assert [each.state for each in group] == ["drawn", "failed", "drawn"]
    assert candidates.drawn == 3  # With that of the first object.
    assert started(candidates) is group[2]
    ended(candidates, group[2], None)
    assert candidates.drawn == 3  # It has a picture, though no object was made of it.


def test_pictures_that_all_failed_together_are_drawn_again_one_by_one() -> None:
    candidates = begun(CandidateLimits(max=4, together=3))
    group = candidates.next(candidates.limits.together)
    candidates.start(group)
    candidates.end(group, [None] * 3)
    for number in (1, 2, 3):
        (candidate,) = candidates.next(candidates.limits.together)
        assert candidate.number == number
        candidates.start([candidate])
        candidates.end([candidate], [None])
    assert candidates.next(candidates.limits.together) == ()


def test_pictures_that_are_taken_back_together_are_drawn_again_with_their_seeds() -> None:
    candidates = begun(CandidateLimits(max=9))
    group = candidates.next(4)
    candidates.start(group)
    candidates.take_back(group)
    assert candidates.next(4) == group
    assert candidates.next() == group[:1]


def test_a_failed_candidate_neither_wins_nor_is_tried_again() -> None:
    candidates = begun(CandidateLimits(max=2))
    ended(candidates, started(candidates), None)
    assert candidates.next() == ()
    assert candidates.best.number == 0


@given(
    st.integers(0, 2**32),
    st.integers(1, 12),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(1, 4),
)
def test_whatever_happens_the_best_object_wins_and_the_limit_holds(
    seed: int, most: int, pictures: int, at_once: int, together: int
) -> None:
    random = Random(seed)
    limits = CandidateLimits(max=most, pictures=pictures, target=2.0)
    candidates = begun(limits, score=random.random())
    running: list[tuple[Candidate, ...]] = []
    for _ in range(200):
        group = candidates.next(together) if len(running) < at_once else ()
        if group:
            candidates.start(group)
            running.append(group)
        elif not running:
            break
        if running and random.random() < 0.6:
            group = running.pop(random.randrange(len(running)))
            if random.random() < 0.15:
                candidates.take_back(group)
            else:
                candidates.end(group, [random.choice((None, *[0.1, 0.5, 0.9] * 2)) for _ in group])
    assert not running
    numbers = [each.number for each in candidates.all]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) <= most
    scored = [each for each in candidates.all if each.score is not None]
    assert candidates.best.score == max(each.score or 0.0 for each in scored)
    assert {each.state for each in candidates.all} <= {"made", "failed", "left_out"}


def test_what_was_lifted_alone_is_not_compared_once_it_is_taken_back() -> None:
    candidates = begun(CandidateLimits(max=3, pictures=1))
    lifting = []
    for rating in (0.3, 0.6):
        ended(candidates, started(candidates), rating)
        lifting.append(started(candidates))
    for each in lifting:
        candidates.take_back([each])
    again = [started(candidates), started(candidates)]
    assert {each.number for each in again} == {1, 2}
    assert {each.state for each in again} == {"lifting"}


def test_of_equal_objects_the_one_that_was_made_first_is_the_best() -> None:
    candidates = begun(CandidateLimits(max=3), score=0.5)
    one, two = started(candidates), started(candidates)
    for each in (one, two):
        ended(candidates, each, 0.1)
        candidates.start([each])
    ended(candidates, two, 0.7)
    ended(candidates, one, 0.7)
    assert candidates.best is two


def test_winners_of_two_groups_that_are_taken_back_are_not_compared_with_each_other() -> None:
    candidates = begun(CandidateLimits(max=7, pictures=3))
    winners = []
    for ratings in ((0.1, 0.9, 0.2), (0.3, 0.1, 0.5)):
        for rating in ratings:
            ended(candidates, started(candidates), rating)
        winners.append(started(candidates))
    assert [each.number for each in winners] == [2, 6]
    for each in winners:
        candidates.take_back([each])
    assert [started(candidates).number, started(candidates).number] == [2, 6]
    assert {each.state for each in winners} == {"lifting"}
    assert candidates.next() == ()


def test_a_winner_that_is_taken_back_does_not_count_among_the_next_few() -> None:
    candidates = begun(CandidateLimits(max=7, pictures=3))
    for _ in range(3):
        ended(candidates, started(candidates), 0.5)
    winner = started(candidates)
    candidates.take_back([winner])
    assert candidates.next() == (winner,)
    candidates.start([winner])
    ended(candidates, winner, 0.4)
    for rating in (0.1, 0.2, 0.3):
        candidate = started(candidates)
        assert candidate.state == "drawing"
        ended(candidates, candidate, rating)
    assert started(candidates).number == 6
