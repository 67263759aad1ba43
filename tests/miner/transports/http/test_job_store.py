"""What the store keeps and forgets, whatever happens in whatever order."""

from itertools import count

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from generation.plan import Plan, Step
from generation.presets import preset
from miner.request import ActiveRequest, Answer, Caller, Request
from miner.transports.http.job_store import JobLimits, JobRecord, JobStore
from protocol.tasks import TextTask
from tests.support.fakes import Clock, ball, ball_spz, tetrahedron

LIMITS = JobLimits(running=3, kept=4, kept_bytes=1000, kept_s=60.0)
RUNG = preset("embedded").ladder[0]
STEPS = (
    Step("prompt", "gpu", "prompt:new"),
    Step("denoise", "gpu", "denoise:128", 0),
    Step("denoise", "gpu", "denoise:128", 1),
    Step("splats", "gpu", "splats:20000"),
)


def request() -> Request:
    return Request(TextTask(id="t", prompt="a cube", seed=7), Caller("local"), "http", 0.0)


def made(size: int = 10) -> Answer:
    return Answer("completed", "ok", "done", "t", rung="full", asset=bytes(size))


def make_store(clock: Clock, limits: JobLimits = LIMITS) -> JobStore:
    numbers = count()
    return JobStore(limits, clock, lambda: str(next(numbers)))


def add(store: JobStore) -> JobRecord:
    job = store.add(request())
    assert job is not None
    return job


def active(job: JobRecord, position: int = 0, since: float | None = None) -> ActiveRequest:
    return ActiveRequest(
        job.request, 0, 30.0, (STEPS,), (0.0,), 0, Plan(RUNG, STEPS), "local", position, since
    )


def is_active(job: JobRecord) -> bool:
    return job.active is not None


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.just(0)),
        st.tuples(st.just("finish"), st.integers(0, 900)),
        st.tuples(st.just("finish"), st.integers(900, 1500)),
        st.tuples(st.just("remove"), st.integers(0, 9)),
        st.tuples(st.just("preview"), st.integers(0, 700)),
        st.tuples(st.just("wait"), st.integers(0, 70)),
        st.tuples(st.just("look"), st.just(0)),
    ),
    max_size=60,
)


@given(OPERATIONS)
def test_the_store_stays_within_its_limits_and_forgets_the_oldest_first(
    operations: list[tuple[str, int]],
) -> None:
    clock = Clock()
    store = make_store(clock)
    running: list[JobRecord] = []
    ended: list[JobRecord] = []  # Every one that has not been removed by hand.
    for name, number in operations:
        if name == "add":
            job = store.add(request())
            assert (job is None) == (len(running) == LIMITS.running)
            if job is not None:
                running.append(job)
        elif name == "finish" and running:
            job = running.pop(number % len(running))
            store.finish(job, made(number))
            ended.append(job)
            assert store.get(job.id) is job  # Whatever it holds.
        elif name == "remove" and running + ended:
            job = (running + ended)[number % len(running + ended)]
            store.remove(job)
            (running if job in running else ended).remove(job)
            assert store.get(job.id) is None
        elif name == "preview" and ended and store.get(ended[-1].id) is not None:
            store.note_preview(ended[-1], bytes(number))
        elif name == "wait":
            clock.now += number
        kept = [job for job in ended if store.get(job.id) is job]
        assert [store.get(job.id) for job in running] == running
        assert store.running == len(running)
        assert store.kept == len(kept) <= LIMITS.kept
        assert store.kept_bytes == sum(job.size for job in kept)
        assert store.kept_bytes <= LIMITS.kept_bytes or len(kept) == 1
        assert kept == ended[len(ended) - len(kept) :]  # The youngest.
        assert all(clock() - (job.ended_at or 0.0) < LIMITS.kept_s for job in kept)


def test_ids_cannot_be_guessed() -> None:
    store = JobStore(JobLimits(running=500), Clock())
    ids = {add(store).id for _ in range(500)}
    assert len(ids) == 500
    assert all(len(job_id) == 22 for job_id in ids)  # 128 bits in base64.


def test_what_a_job_holds_is_counted() -> None:
    clock = Clock()
    store = make_store(clock, JobLimits())
    job = add(store)
    picture, cutout = np.zeros((8, 8, 3), np.uint8), np.zeros((4, 4, 4), np.uint8)
    answer = Answer(
        "completed", "ok", "", "t",
        asset=ball_spz(), cloud=ball(), picture=picture, cutout=cutout,
    )  # fmt: skip
    store.finish(job, answer)
    arrays = sum(values.nbytes for _, values in ball().arrays())
    assert store.kept_bytes == len(ball_spz()) + arrays + picture.nbytes + cutout.nbytes
    before = store.kept_bytes
    store.note_mesh(job, tetrahedron())
    assert store.kept_bytes - before == 4 * 12 + 4 * 12 + 4 * 12 + 4 * 12
    assert job.mesh is not None


def test_a_job_counts_its_seconds_by_stage_while_it_runs() -> None:
    clock = Clock(100.0)
    store = make_store(clock)
    job = add(store)
    assert store.describe(job, ahead=2).ahead == 2
    clock.now = 104.0
    job.active = active(job, position=2, since=103.0)
    job.active.ran.update({"prompt": 0.5, "denoise": 1.5})
    now = store.describe(job, ahead=0)
    assert (now.state, now.elapsed_s, now.rung, now.ahead) == ("running", 4.0, "full", None)
    assert [(s.name, s.state, s.seconds, s.done, s.steps) for s in now.stages] == [
        ("prompt", "done", 0.5, 1, 1),
        ("denoise", "running", 2.5, 1, 2),
        ("splats", "waiting", None, 0, 1),
    ]
    assert now.files == {}


def test_a_finished_job_no_longer_runs_and_lets_its_request_go() -> None:
    clock = Clock(100.0)
    store = make_store(clock)
    job = add(store)
    job.active = active(job, position=1, since=100.0)
    clock.now = 103.0
    late = Answer("dropped", "deadline_passed", "not done after 3 s", "t", rung="full")
    store.finish(job, late)
    clock.now = 150.0
    now = store.describe(job, ahead=None)
    assert not is_active(job)
    assert (now.state, now.elapsed_s, now.message) == ("dropped", 3.0, "not done after 3 s")
    assert [stage.state for stage in now.stages] == ["done", "waiting", "waiting"]
    assert (now.reason_code, now.gaussians, now.files) == ("deadline_passed", None, {})
