"""`GET /status` costs the event loop a forecast twice a second at most."""

import json
from typing import Any, cast

from starlette.requests import Request

from miner.problems import Problems
from miner.transports.http.status import KEEP_S, About, StatusPages
from tests.miner.conftest import MakeBench
from tests.support.virtual_time import in_virtual_time


@in_virtual_time
async def test_a_snapshot_is_shown_again_for_a_moment_but_not_in_another_state(
    make_bench: MakeBench,
) -> None:
    bench, now, taken = make_bench(), [0.0], 0
    snapshot = bench.service.snapshot

    def counted() -> Any:
        nonlocal taken
        taken += 1
        return snapshot()

    bench.service.snapshot = counted  # type: ignore[method-assign]
    pages = StatusPages(bench.service, Problems(), About(), lambda: now[0])

    async def status() -> dict[str, Any]:
        reply = await pages.status(cast(Request, None))
        return cast(dict[str, Any], json.loads(bytes(reply.body)))

    assert (await status())["predicted_wait_s"] is None
    await bench.service.start()
    for _ in range(100):
        shown = await status()
    assert (shown["state"], shown["predicted_wait_s"], shown["active"]) == ("ready", 0.0, 0)
    assert taken == 2
    asking = await bench.held("lift")
    for moment, active in ((0.9 * KEEP_S, 0), (KEEP_S, 1)):
        now[0] = moment
        assert (await status())["active"] == active
    assert taken == 3
    bench.engine.release.set()
    await asking
