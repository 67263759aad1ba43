"""The push transport: validators call this miner's axon, through Bittensor 10."""

import asyncio
import base64
import contextlib
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import bittensor as bt
from loguru import logger
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from miner.chain.metagraph import Chain
from miner.request import Answer, Request
from miner.score.log import ScoreLog
from miner.service import MinerService
from miner.transports.axon_server import AxonServer
from miner.transports.body_limit import App, BodyLimit, Message, Receive, Send
from miner.transports.connection_book import ConnectionLimits
from miner.transports.connections import ClientConnections, when_sent, while_connected
from miner.transports.failures import ServerErrors
from miner.transports.push.bodies import read_body
from miner.transports.push.checks import CLOCK_AHEAD, CLOCK_BEHIND, Admission
from miner.transports.push.clock import WallClock
from miner.transports.push.entrance import Entrance, Verified
from miner.transports.push.headers import Claim
from miner.transports.push.nonce_file import FILE_NAME, NonceFile
from miner.transports.push.refused import Refused
from miner.transports.refusals import RefusalLog
from miner.transports.sockets import bound_socket
from protocol.errors import TaskError
from protocol.synapses import GenerateAsset
from protocol.tasks import MAX_PROMPT_CHARACTERS, TaskLimits, log_safe, parse_task

NAME = "axon"
BODY_TIME_LIMIT_S = 20.0
ENVELOPE_BYTES = 64 * 1024
"""Bytes of a request's JSON beside the prompt, at most."""

_WARN = frozenset({CLOCK_AHEAD, CLOCK_BEHIND})
"""Refusals that may be the fault of this machine, so the operator reads of them in the log."""


class AxonTransport:
    """Serves `GenerateAsset` on a Bittensor axon, in an event loop and a thread of its own.

    The Bittensor axon gives the address for the chain, the server and the check of signatures. Its
    own middleware is not used: it builds and signs a synapse even for a request that it refuses.
    docs/push-protocol.md lists what is answered.

    Args:
        service: Answers requests, in the event loop that calls `serve`.
        chain: Lists the registered hotkeys.
        score_log: Receives `refused` lines.
        wallet: Its hotkey is the one that callers address and sign for.
        admission: Rules for callers.
        ip: Address to listen on.
        port: Port to listen on, 1025..65534.
        external_ip: Address that the chain publishes.
        external_port: Port that the chain publishes; `port` if not given.
        per_minute: Requests of one caller in any minute.
        version: The miner's version, sent in every answer.
        send_gated: Whether an asset that the gate is against is sent all the same.
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
        send_gated: bool = True,
        limits: TaskLimits | None = None,
        connection_limits: ConnectionLimits | None = None,
    ) -> None:
        bt.logging.off()  # It prints callers' bytes unescaped; the logs of this miner do not.
        self._service = service
        self._version = version
        self._send_gated = send_gated
        self._limits = limits or TaskLimits()
        self._refusals = RefusalLog(score_log, NAME, time.monotonic)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._entrance = Entrance(
            chain,
            admission,
            per_minute=per_minute,
            verify=self._verify,
            wall=WallClock(lambda: time.time_ns(), time.monotonic),
            nonces=NonceFile(score_log.path.with_name(FILE_NAME)),
        )
        bound = bound_socket(ip, port)
        self.axon = bt.Axon(
            wallet=wallet,
            config=bt.Config(),  # Without a parser, so that it does not read our command line.
            ip=ip,
            port=port,
            external_ip=external_ip,  # Otherwise the constructor asks the internet.
            external_port=external_port or port,
        )
        self.axon.fast_config.app = self._app()
        self.axon.fast_config.lifespan = "off"
        self.axon.fast_config.timeout_graceful_shutdown = 5
        self._server = AxonServer(self.axon, bound, connection_limits, self._refusals)

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

    def _app(self) -> App:
        limited = BodyLimit(
            self._answer_http,
            max_bytes=self._limits.base64_characters + ENVELOPE_BYTES,
            time_limit_s=BODY_TIME_LIMIT_S,
            on_refusal=self._refusals.note,
        )
        return ServerErrors(ClientConnections(limited), refusals=self._refusals)

    async def _answer_http(self, scope: Message, receive: Receive, send: Send) -> None:
        response: Response
        try:
            verified = await self._entrance.check(scope)
            body = await HttpRequest(scope, receive).body()
            # An image of 8 MiB takes tens of milliseconds, most of them for its hash.
            synapse = await asyncio.to_thread(read_body, body, verified.claim.body_hash)
            del body
        except Refused as refused:
            self._refusals.note(refused.refusal, warn=refused.refusal.code in _WARN)
            response = refused.response()
        else:
            answer, answered_at = await self._ask(synapse, verified)
            if answer.gated and not self._send_gated:
                answer = replace(answer, asset=b"", gaussians=0)
            when_sent(
                lambda: self._note_delivery(len(answer.asset), time.monotonic() - answered_at)
            )
            response = await asyncio.to_thread(_reply, synapse, verified, answer, self._version)
        await response(scope, receive, send)

    async def _verify(self, claim: Claim) -> None:
        # The library's check of the signature; its check of the time is left to ours.
        terminal = SimpleNamespace(
            hotkey=claim.hotkey,
            nonce=claim.nonce,
            uuid=claim.uuid,
            version=claim.version,
            signature=claim.signature,
        )
        await self.axon.default_verify(
            SimpleNamespace(
                dendrite=terminal, timeout=float("inf"), computed_body_hash=claim.body_hash
            )
        )
        self.axon.nonces.clear()

    def _note_delivery(self, size: int, seconds: float) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # The loop of the service is closed.
            self._loop.call_soon_threadsafe(self._service.delivered, NAME, size, seconds)

    async def _ask(self, synapse: GenerateAsset, verified: Verified) -> tuple[Answer, float]:
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


def _reply(synapse: GenerateAsset, verified: Verified, answer: Answer, version: str) -> Response:
    """Builds the answer from checked values only, and echoes nothing else."""
    sound = answer.outcome != "rejected"
    withheld = answer.gated and not answer.asset
    echo = sound and synapse.task_type == "text" and len(synapse.prompt) <= MAX_PROMPT_CHARACTERS
    reply = GenerateAsset(
        timeout=verified.claim.timeout,
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
        understood=list(answer.understood),
        ignored=list(answer.ignored),
        dendrite=_terminal(verified),
        axon=bt.TerminalInfo(
            status_code=200,
            status_message=f"{answer.reason_code}: {answer.reason}" if withheld else "Success",
            process_time=time.monotonic() - verified.received_at,
        ),
    )
    return Response(
        reply.model_dump_json(), media_type="application/json", headers=reply.to_headers()
    )


def _terminal(verified: Verified) -> bt.TerminalInfo:
    claim, (ip, port) = verified.claim, verified.address
    return bt.TerminalInfo(
        ip=ip,
        port=port,
        version=claim.version,
        nonce=claim.nonce,
        uuid=claim.uuid,
        hotkey=claim.hotkey,
        signature=claim.signature,
    )
