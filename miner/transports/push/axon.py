"""The push transport: validators call this miner's axon, through Bittensor 10."""

import asyncio
import base64
import contextlib
import time
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Tuple  # noqa: UP035  # Axon.attach compares annotations literally.

import bittensor as bt
from bittensor.core.errors import PriorityException, SynapseException
from fastapi import Request as HttpRequest
from loguru import logger

from miner.chain.metagraph import Chain
from miner.request import Answer, Caller, Request
from miner.score.log import ScoreLog
from miner.service import MinerService
from miner.transports.axon_server import AxonServer
from miner.transports.body_limit import BodyLimit
from miner.transports.connection_book import ConnectionLimits
from miner.transports.connections import ClientConnections, when_sent, while_connected
from miner.transports.push.checks import (
    Admission,
    RateLimit,
    ReplayGuard,
    check_headers,
)
from miner.transports.refusals import Refusal, RefusalLog
from miner.transports.sockets import bound_socket
from protocol.errors import TaskError
from protocol.synapses import GenerateAsset
from protocol.tasks import MAX_PROMPT_CHARACTERS, TaskLimits, log_safe, parse_task

NAME = "axon"
BODY_TIME_LIMIT_S = 20.0
ENVELOPE_BYTES = 64 * 1024
"""Bytes of a request's JSON beside the prompt, at most."""


@dataclass(frozen=True)
class _Verified:
    """What the signature proves, and the time of receipt (monotonic seconds)."""

    caller: Caller
    received_at: float
    body_hash: str
    terminal: bt.TerminalInfo


_verified: ContextVar[_Verified] = ContextVar("verified")


class _CheckedAxon(bt.Axon):  # type: ignore[misc]
    """An axon that checks bodies in a thread, and answers an unusable one with 400, not 500."""

    async def verify_body_integrity(self, request: HttpRequest) -> dict[str, object]:
        await request.body()  # From here on it is kept, so that the check awaits nothing.
        check = super().verify_body_integrity
        try:
            # An image of 8 MiB takes tens of milliseconds, most of them for its hash.
            body: dict[str, object] = await asyncio.to_thread(lambda: asyncio.run(check(request)))
            return body
        except (ValueError, TypeError) as error:
            text = " ".join(str(error).split()).encode("ascii", "replace").decode()[:300]
            raise _bad_request(f"the body cannot be used: {text}") from None


def _bad_request(reason: str) -> SynapseException:
    return SynapseException(reason, GenerateAsset(axon=bt.TerminalInfo(status_code=400)))


class AxonTransport:
    """Serves `GenerateAsset` on a Bittensor axon, in an event loop and a thread of its own.

    A request passes, in this order: body limit, blacklist (a look-up of headers that nobody has
    verified yet, which counts nothing), verification (signed, recent, not seen before), rate
    limit, body, forward.

    Args:
        service: Answers requests, in the event loop that calls `serve`.
        chain: Lists the registered hotkeys.
        score_log: Receives `refused` lines.
        wallet: Its hotkey signs the answers.
        admission: Rules for callers.
        ip: Address to listen on.
        port: Port to listen on, 1025..65534.
        external_ip: Address that the chain publishes.
        external_port: Port that the chain publishes; `port` if not given.
        per_minute: Requests of one caller in any minute.
        version: The miner's version, sent in every answer.
        limits: Limits on tasks.
        connection_limits: Limits on connections.
    """

    name = NAME

    def __init__(
        self,
        service: MinerService,
        chain: Chain,
        score_log: ScoreLog,
        *,
        wallet: Any,
        admission: Admission,
        ip: str,
        port: int,
        external_ip: str,
        external_port: int | None = None,
        per_minute: int = 120,
        version: str = "",
        limits: TaskLimits | None = None,
        connection_limits: ConnectionLimits | None = None,
    ) -> None:
        bt.logging.off()  # It prints callers' bytes unescaped; the logs of this miner do not.
        self._service = service
        self._chain = chain
        self._admission = admission
        self._version = version
        self._limits = limits or TaskLimits()
        self._refusals = RefusalLog(score_log, NAME, time.monotonic)
        self._replays = ReplayGuard(time.monotonic)
        self._rate = RateLimit(per_minute, time.monotonic)
        self._started = time.time_ns()
        self._loop: asyncio.AbstractEventLoop | None = None
        bound = bound_socket(ip, port)
        self.axon = _CheckedAxon(
            wallet=wallet,
            config=bt.Config(),  # Without a parser, so that it does not read our command line.
            ip=ip,
            port=port,
            external_ip=external_ip,  # Otherwise the constructor asks the internet.
            external_port=external_port or port,
        )
        self._server = AxonServer(self.axon, bound, connection_limits, self._refusals)
        self._attach()

    async def serve(self) -> None:
        """Starts to listen and returns once the server does.

        Raises:
            SetupError: It did not start in time.
        """
        self._loop = asyncio.get_running_loop()
        await self._server.start()
        logger.info("listening on {}", self.axon.full_address)

    async def close(self) -> None:
        """Sends the answers that are ready and stops listening."""
        await self._server.stop()
        self._refusals.flush()

    def _attach(self) -> None:
        axon = self.axon
        axon.attach(
            forward_fn=self._forward,
            blacklist_fn=self._blacklist,
            verify_fn=self._verify,
            priority_fn=self._priority,
        )
        # The built-in ping answers any key and never forgets one.
        del axon.forward_class_types["Synapse"]
        axon.app.add_middleware(
            BodyLimit,
            max_bytes=self._limits.base64_characters + ENVELOPE_BYTES,
            time_limit_s=BODY_TIME_LIMIT_S,
            on_refusal=lambda size: self._refusals.note(
                Refusal("body_too_large", f"{size} bytes") if size else Refusal("slow_body", "")
            ),
        )
        axon.app.add_middleware(ClientConnections)  # Added last, so that it is outermost.
        axon.fast_config.timeout_graceful_shutdown = 5

    def _blacklist(self, synapse: GenerateAsset) -> Tuple[bool, str]:  # noqa: UP006
        refusal = self._admission.refusal(self._chain, synapse.dendrite.hotkey or "")
        if refusal is None:
            return False, ""
        self._refusals.note(refusal)
        return True, refusal.reason

    async def _verify(self, synapse: GenerateAsset) -> None:
        received_at = time.monotonic()
        sender = synapse.dendrite
        try:
            synapse.timeout = check_headers(
                nonce=sender.nonce,
                version=sender.version,
                timeout=synapse.timeout,
                now=time.time_ns(),
                started=self._started,
            )
            await self.axon.default_verify(synapse)
            self.axon.nonces.clear()
            self._replays.remember(sender.hotkey, sender.uuid, sender.nonce)
        except Exception as error:
            self._refusals.note(Refusal("bad_signature", type(error).__name__))
            raise
        neuron = self._chain.snapshot.neurons.get(sender.hotkey)
        caller = Caller(
            sender.hotkey, neuron.uid if neuron else None, neuron.stake if neuron else 0.0
        )
        _verified.set(_Verified(caller, received_at, synapse.computed_body_hash, sender))

    def _priority(self, synapse: GenerateAsset) -> float:
        # Bittensor calls this between verification and body, which is where the limit belongs. The
        # priority itself orders nothing here.
        caller = _verified.get().caller
        if not self._rate.allow(caller.hotkey):
            refusal = Refusal("rate_limited", "too many requests in the last minute")
            self._refusals.note(refusal)
            synapse.axon.status_code = 429
            raise PriorityException(refusal.reason, synapse=synapse)
        return 0.0

    async def _forward(self, synapse: GenerateAsset) -> GenerateAsset:
        # The signature covers the body by its hash. The caller comes from the verified headers, not
        # from synapse.dendrite, which anybody can write into a body.
        verified = _verified.get()
        if await asyncio.to_thread(lambda: synapse.body_hash) != verified.body_hash:
            raise _bad_request("the body can be read in two ways; send plain JSON")
        answer, answered_at = await self._ask(synapse, verified)
        when_sent(lambda: self._note_delivery(len(answer.asset), time.monotonic() - answered_at))
        return await asyncio.to_thread(_reply, synapse, verified, answer, self._version)

    def _note_delivery(self, size: int, seconds: float) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # The loop of the service is closed.
            self._loop.call_soon_threadsafe(self._service.delivered, NAME, size, seconds)

    async def _ask(self, synapse: GenerateAsset, verified: _Verified) -> tuple[Answer, float]:
        """Returns the answer of the service, and when it was there (monotonic seconds)."""
        try:
            allowed = _allowed_seconds(synapse)
            task = await asyncio.to_thread(
                parse_task,
                kind=synapse.task_type,
                task_id=synapse.task_id,
                prompt=synapse.prompt,
                seed=synapse.seed,
                limits=self._limits,
            )
        except TaskError as error:
            reason = str(error)

            async def reject() -> Answer:
                return self._service.reject(
                    task_id=synapse.task_id,
                    caller=verified.caller,
                    transport=NAME,
                    received_at=verified.received_at,
                    reason=reason,
                )

            return await self._in_service_loop(reject)
        request = Request(task, verified.caller, NAME, verified.received_at, allowed)
        return await self._in_service_loop(lambda: self._service.handle(request))

    async def _in_service_loop(
        self, call: Callable[[], Coroutine[Any, Any, Answer]]
    ) -> tuple[Answer, float]:
        async def timed() -> tuple[Answer, float]:
            return await call(), time.monotonic()

        assert self._loop is not None
        future = asyncio.run_coroutine_threadsafe(timed(), self._loop)
        return await while_connected(asyncio.wrap_future(future))  # Cancels it in its own loop.


def _allowed_seconds(synapse: GenerateAsset) -> float | None:
    given = [seconds for seconds in (synapse.budget_s, synapse.timeout) if seconds is not None]
    for seconds in given:
        if not 0.0 < seconds < float("inf"):
            raise TaskError(f"budget_s and timeout must be positive numbers, got {seconds}")
    return min(given, default=None)


def _reply(
    synapse: GenerateAsset, verified: _Verified, answer: Answer, version: str
) -> GenerateAsset:
    """Builds the answer from checked values only, and echoes nothing else."""
    sound = answer.outcome != "rejected"
    echo = sound and synapse.task_type == "text" and len(synapse.prompt) <= MAX_PROMPT_CHARACTERS
    return GenerateAsset(
        task_type=synapse.task_type if sound else "",
        task_id=answer.task_id if sound else log_safe(answer.task_id),
        prompt=synapse.prompt if echo else "",
        seed=synapse.seed if sound else None,
        budget_s=synapse.budget_s if sound else None,
        results=base64.b64encode(answer.asset).decode("ascii"),
        outcome=answer.outcome,
        reason_code=answer.reason_code,
        reason=answer.reason,
        timings=dict(answer.timings),
        total_s=answer.total_s,
        gaussians=answer.gaussians,
        size_bytes=len(answer.asset),
        miner_version=version,
        dendrite=verified.terminal,
        axon=bt.TerminalInfo(status_code=200, status_message="Success"),
    )
