"""SIGHUP starts the engines again; the rest of renewal is tested with the service."""

import asyncio
import os
import signal

from miner.engines.renewal import renew_on_hangup


async def test_a_signal_renews_and_a_second_one_meanwhile_is_ignored() -> None:
    begun, release = 0, asyncio.Event()

    async def renew() -> None:
        nonlocal begun
        begun += 1
        await release.wait()

    renew_on_hangup(renew)
    try:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGHUP)
            await asyncio.sleep(0.02)
        assert begun == 1
        release.set()
        await asyncio.sleep(0)
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.sleep(0.02)
        assert begun == 2
    finally:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGHUP)
