import asyncio
import time

from miner.daemon_call import in_daemon_thread
from miner.doctor.findings import Check, Status, Verdict, carry_out, ok
from protocol.errors import SetupError


async def verdict(check: Check) -> Verdict:
    finding = await carry_out(check)
    assert finding.check == check.name
    return finding.verdict


async def test_a_check_says_what_it_found() -> None:
    async def look() -> Verdict:
        return ok("all well")

    assert await verdict(Check("x", look)) == Verdict(Status.OK, "all well", "")


async def test_a_reason_not_to_start_is_a_failure_with_its_fix() -> None:
    async def look() -> Verdict:
        raise SetupError("no wallet", fix="make one")

    assert await verdict(Check("x", look)) == Verdict(Status.FAILED, "no wallet", "make one")


async def test_an_error_of_the_check_is_no_finding_about_the_miner() -> None:
    async def look() -> Verdict:
        raise ZeroDivisionError("oh")

    found = await verdict(Check("x", look))
    assert found.status is Status.UNCHECKED
    assert found.found == "the check itself failed: ZeroDivisionError: oh"


async def test_a_check_that_hangs_is_left_behind() -> None:
    async def waits() -> Verdict:
        await asyncio.Event().wait()
        return ok("")

    async def blocks() -> Verdict:
        await in_daemon_thread(lambda: time.sleep(5.0), 5.0)
        return ok("")

    for look in (waits, blocks):
        start = time.monotonic()
        found = await verdict(Check("x", look, 0.05, if_slow="be patient"))
        assert found == Verdict(Status.UNCHECKED, "no answer within 0.05 s", "be patient")
        assert time.monotonic() - start < 2.0
