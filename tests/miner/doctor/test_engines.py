"""What the doctor says of several engines."""

import pytest

from generation.presets import preset
from generation.settings import GenerationSettings
from miner.doctor.engines import (
    engine_checks,
    engines_here,
    judge_cluster,
    judge_local,
    judge_own_cluster,
)
from miner.doctor.findings import Status, Verdict, carry_out
from miner.engines.ray_cluster import Resources
from miner.settings.engines import EnginesSettings

EMBEDDED, GPU = preset("embedded"), preset("gpu24")
TWO_NODES = Resources({"a": 2, "b": 1}, gpus=3, cores=24)
RAY = EnginesSettings(kind="ray")


def test_a_single_engine_in_the_process_has_no_check_of_its_own() -> None:
    assert engine_checks(EnginesSettings(), GPU) == []
    assert engine_checks(EnginesSettings(count=1), GPU) == []
    assert [check.name for check in engine_checks(EnginesSettings(count=2), GPU)] == ["engines"]
    assert [check.name for check in engine_checks(RAY, EMBEDDED)] == ["engines"]


def test_engines_of_the_process_need_as_many_gpus() -> None:
    assert judge_local(EnginesSettings(count=2), 2).status is Status.OK
    few = judge_local(EnginesSettings(count=4), 2)
    assert (few.status, few.found) == (
        Status.FAILED,
        "4 engines in the miner's process, 2 GPUs",
    )
    assert "--engines.count 2" in few.fix


@pytest.mark.parametrize(
    ("count", "gpus", "status"),
    [
        ("auto", 0, Status.FAILED),
        ("auto", 2, Status.OK),
        ("auto", 20, Status.WARNING),
        (4, 2, Status.WARNING),
        (2, 2, Status.OK),
    ],
)
def test_ray_of_this_machine_is_judged_by_its_gpus(
    count: object, gpus: int, status: Status
) -> None:
    verdict = judge_own_cluster(RAY.model_copy(update={"count": count}), GPU, "2.60.0", gpus, 8)
    assert verdict.status is status
    assert verdict.found.startswith(f"Ray 2.60.0, on this machine alone: {gpus} GPUs")


def test_a_preset_for_the_cpu_needs_no_gpu() -> None:
    assert judge_own_cluster(RAY, EMBEDDED, "2.60.0", 0, 8).status is Status.OK
    assert judge_cluster(RAY, EMBEDDED, "2.60.0", Resources({"a": 0}, 0, 8)).status is Status.OK


def test_engines_that_would_share_cores_are_a_warning_with_the_number() -> None:
    five = EnginesSettings(kind="ray", count=5)
    verdict = judge_own_cluster(five, EMBEDDED, "2.60.0", 0, 2)
    assert verdict.status is Status.WARNING
    assert verdict.found == (
        "Ray 2.60.0, on this machine alone: 2 cores; --engines.count 5 is more"
    )
    assert "--engines.count 2" in verdict.fix
    one = judge_own_cluster(RAY, EMBEDDED, "2.60.0", 0, 1)
    assert one.found == "Ray 2.60.0, on this machine alone: 1 core; engines: auto"


def test_a_cluster_is_shown_machine_by_machine() -> None:
    verdict = judge_cluster(RAY, GPU, "2.60.0", TWO_NODES)
    assert verdict.status is Status.OK
    assert verdict.found == ("Ray 2.60.0, 3 GPUs on 2 machines; GPUs: a 2, b 1; engines: auto")
    none = judge_cluster(RAY, GPU, "2.60.0", Resources({"a": 0}, 0, 8))
    assert none.status is Status.FAILED
    assert "ray start" in none.fix


@pytest.mark.parametrize(
    ("engines", "settings", "count"),
    [
        (EnginesSettings(), GPU, 1),
        (EnginesSettings(count=3), GPU, 3),
        (RAY, GPU, 4),
        (EnginesSettings(kind="ray", count=3), GPU, 3),
        (EnginesSettings(kind="ray", count=8), GPU, 4),  # The others wait for GPUs.
        (EnginesSettings(kind="ray", count=8, address="auto"), GPU, 1),
        (EnginesSettings(kind="ray", count=8), EMBEDDED, 1),
    ],
)
async def test_the_engines_of_this_machine_are_counted_where_that_is_known(
    engines: EnginesSettings,
    settings: GenerationSettings,
    count: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("miner.doctor.engines._gpus", lambda: 4)
    assert await engines_here(engines, settings) == count


async def test_engines_that_would_share_a_device_are_named() -> None:
    (check,) = engine_checks(EnginesSettings(count=2), EMBEDDED)
    verdict: Verdict = (await carry_out(check)).verdict
    assert verdict.status is Status.FAILED
    assert "would share its cores" in verdict.found
