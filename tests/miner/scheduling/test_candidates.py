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
    candidate = candidates.next()
    assert candidate is not None
    candidates.start(candidate)
    return candidate


def test_without_a_limit_above_one_nothing_follows_the_first_object() -> None:
    assert begun(CandidateLimits(max=1)).next() is None


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
    assert begun(limits, score=0.8).next() is None
    candidates = begun(limits, score=0.79)
    assert candidates.next() is not None


def test_every_picture_is_lifted_at_once_where_one_is_drawn_for_each_object() -> None:
    candidates = begun(CandidateLimits(max=3, pictures=1))
    drawn = started(candidates)
    candidates.end(drawn, 0.1)
    assert started(candidates) is drawn
    assert drawn.state == "lifting"


def test_only_the_best_rated_of_each_few_pictures_is_lifted() -> None:
    candidates = begun(CandidateLimits(max=7, pictures=3))
    lifted = []
    while (candidate := candidates.next()) is not None:
        candidates.start(candidate)
        if candidate.state == "lifting":
            lifted.append(candidate.number)
            candidates.end(candidate, 0.4)
        else:
            candidates.end(candidate, (0.0, 0.2, 0.9, 0.3, 0.5, 0.1, 0.8)[candidate.number])
    assert lifted == [2, 6]
    assert (candidates.made, candidates.drawn) == (3, 7)


def test_what_is_left_of_the_last_few_pictures_is_lifted_too() -> None:
    candidates = begun(CandidateLimits(max=3, pictures=5))
    for rating in (0.3, 0.6):
        candidates.end(started(candidates), rating)
    assert started(candidates).number == 2


def test_a_candidate_that_is_taken_back_is_started_again_with_its_seed_and_its_picture() -> None:
    candidates = begun(CandidateLimits(max=4))
    one, two = started(candidates), started(candidates)
    candidates.take_back(one)
    assert candidates.next() is one
    candidates.end(two, 0.5)
    assert started(candidates) is two  # What is drawn is lifted first.
    candidates.take_back(two)
    assert (candidates.next(), two.rating) == (two, 0.5)


def test_a_failed_candidate_neither_wins_nor_is_tried_again() -> None:
    candidates = begun(CandidateLimits(max=2))
    candidates.end(started(candidates), None)
    assert candidates.next() is None
    assert candidates.best.number == 0


@given(st.integers(0, 2**32), st.integers(1, 12), st.integers(1, 5), st.integers(1, 4))
def test_whatever_happens_the_best_object_wins_and_the_limit_holds(
    seed: int, most: int, pictures: int, at_once: int
) -> None:
    random = Random(seed)
    limits = CandidateLimits(max=most, pictures=pictures, target=2.0)
    candidates = begun(limits, score=random.random())
    running: list[Candidate] = []
    for _ in range(200):
        candidate = candidates.next() if len(running) < at_once else None
        if candidate is not None:
            candidates.start(candidate)
            running.append(candidate)
        elif not running:
            break
        if running and random.random() < 0.6:
            ended = running.pop(random.randrange(len(running)))
            fate = random.random()
            if fate < 0.15:
                candidates.take_back(ended)
            else:
                candidates.end(ended, None if fate < 0.3 else random.random())
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
        candidates.end(started(candidates), rating)
        lifting.append(started(candidates))
    for each in lifting:
        candidates.take_back(each)
    again = [started(candidates), started(candidates)]
    assert {each.number for each in again} == {1, 2}
    assert {each.state for each in again} == {"lifting"}


def test_of_equal_objects_the_one_that_was_made_first_is_the_best() -> None:
    candidates = begun(CandidateLimits(max=3), score=0.5)
    one, two = started(candidates), started(candidates)
    for each in (one, two):
        candidates.end(each, 0.1)
        candidates.start(each)
    candidates.end(two, 0.7)
    candidates.end(one, 0.7)
    assert candidates.best is two


def test_winners_of_two_groups_that_are_taken_back_are_not_compared_with_each_other() -> None:
    candidates = begun(CandidateLimits(max=7, pictures=3))
    winners = []
    for ratings in ((0.1, 0.9, 0.2), (0.3, 0.1, 0.5)):
        for rating in ratings:
            candidates.end(started(candidates), rating)
        winners.append(started(candidates))
    assert [each.number for each in winners] == [2, 6]
    for each in winners:
        candidates.take_back(each)
    assert [started(candidates).number, started(candidates).number] == [2, 6]
    assert {each.state for each in winners} == {"lifting"}
    assert candidates.next() is None


def test_a_winner_that_is_taken_back_does_not_count_among_the_next_few() -> None:
    candidates = begun(CandidateLimits(max=7, pictures=3))
    for _ in range(3):
        candidates.end(started(candidates), 0.5)
    winner = started(candidates)
    candidates.take_back(winner)
    assert candidates.next() is winner
    candidates.start(winner)
    candidates.end(winner, 0.4)
    for rating in (0.1, 0.2, 0.3):
        candidate = started(candidates)
        assert candidate.state == "drawing"
        candidates.end(candidate, rating)
    assert started(candidates).number == 6
