"""Good callers: a validator with a signature, and a program that sends forms."""

import asyncio
import base64
import itertools
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import aiohttp
from PIL import Image, ImageDraw

from miner.chain.metagraph import Neuron
from miner.transports.pull.dendrite import offline_dendrite
from protocol.synapses import GenerateAsset

BUDGET_S = 30.0
WAYS = ("axon", "http")

_COLOURS = ("red", "green", "blue", "yellow", "pink", "white")
_OBJECTS = ("car", "tree", "mug", "chair", "cube", "house")


@dataclass(frozen=True)
class Asked:
    """A good request and what came back.

    Attributes:
        task_id: The caller's id, unique.
        way: "axon" or "http".
        kind: "text" or "image".
        sent_s: When it was sent, in seconds since the traffic began.
        taken_s: Seconds until its answer.
        status: HTTP status; 0 if there was no answer.
        code: The miner's reason code, or what went wrong on the way.
        wrong_clock: Whether the miner's clock was hours off meanwhile.
    """

    task_id: str
    way: str
    kind: str
    sent_s: float
    taken_s: float
    status: int
    code: str
    wrong_clock: bool = False

    @property
    def on_time(self) -> bool:
        """Whether an asset came within the budget."""
        return self.code == "ok" and self.taken_s <= BUDGET_S


class GoodCallers:
    """Asks one task after the other, at random times, by both ways in turn.

    Args:
        wallet: Signs the axon's requests.
        miner: Its axon.
        http_port: Port of the HTTP transport.
        clock: Seconds since the traffic began.
        clock_is_wrong: Tells whether the miner's clock is hours off at this moment.
        seed: For prompts, pictures and times.
    """

    def __init__(
        self,
        wallet: Any,
        miner: Neuron,
        http_port: int,
        *,
        clock: Callable[[], float],
        clock_is_wrong: Callable[[], bool],
        seed: int,
    ) -> None:
        self._wallet = wallet
        self._miner = miner
        self._url = f"http://127.0.0.1:{http_port}/generate/"
        self._clock = clock
        self._clock_is_wrong = clock_is_wrong
        self._random = random.Random(seed)
        self.asked: list[Asked] = []

    async def run(self, until_s: float, pause_s: float) -> None:
        """Asks until the clock says so, then waits for the answers.

        Args:
            until_s: When to stop, by the clock.
            pause_s: Mean of the seconds between two requests.
        """
        async with (
            offline_dendrite(self._wallet) as dendrite,
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2 * BUDGET_S)) as session,
            asyncio.TaskGroup() as group,
        ):
            for number, way in enumerate(itertools.cycle(WAYS)):
                if self._clock() >= until_s:
                    break
                kind = "image" if self._random.random() < 0.2 else "text"
                group.create_task(self._ask(f"good-{number}", way, kind, dendrite, session))
                await asyncio.sleep(self._random.uniform(0.2, 1.8) * pause_s)

    async def _ask(
        self, task_id: str, way: str, kind: str, dendrite: Any, session: aiohttp.ClientSession
    ) -> None:
        sent_s, started, wrong = self._clock(), time.monotonic(), self._clock_is_wrong()
        colour, thing = self._random.choice(_COLOURS), self._random.choice(_OBJECTS)
        prompt = f"a {colour} {thing}"
        picture = _picture(colour) if kind == "image" else b""
        try:
            if way == "axon":
                status, code = await self._ask_axon(dendrite, task_id, prompt, picture)
            else:
                status, code = await self._ask_http(session, task_id, prompt, picture)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            status, code = 0, type(error).__name__
        taken_s = time.monotonic() - started
        wrong = wrong or self._clock_is_wrong()
        self.asked.append(Asked(task_id, way, kind, sent_s, taken_s, status, code, wrong))

    async def _ask_axon(
        self, dendrite: Any, task_id: str, prompt: str, picture: bytes
    ) -> tuple[int, str]:
        request = GenerateAsset(
            task_type="image" if picture else "text",
            task_id=task_id,
            prompt=base64.b64encode(picture).decode() if picture else prompt,
        )
        exchange = await dendrite.exchange(self._miner, request, BUDGET_S)
        if exchange.reply is None or exchange.status != 200:
            return exchange.status, exchange.fault()
        reply = exchange.reply
        sound = reply.outcome != "completed" or len(base64.b64decode(reply.results)) > 100_000
        return 200, reply.reason_code if sound else "no asset"

    async def _ask_http(
        self, session: aiohttp.ClientSession, task_id: str, prompt: str, picture: bytes
    ) -> tuple[int, str]:
        form = aiohttp.FormData({"task_id": task_id})
        if picture:
            form.add_field("prompt_image_file", picture, filename="object.png")
        else:
            form.add_field("prompt", prompt)
        async with session.post(self._url, data=form) as response:
            if response.status == 200:
                body = await response.read()
                return 200, "ok" if body.startswith(b"ply\n") else "no asset"
            answer = await response.json()
            return response.status, str(answer.get("reason_code", answer.get("message")))


def _picture(colour: str) -> bytes:
    image = Image.new("RGB", (256, 256), "lightgrey")
    ImageDraw.Draw(image).ellipse((50, 50, 206, 206), fill=colour)
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
