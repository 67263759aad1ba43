"""The validator's side of the pull protocol on a Bittensor axon."""

from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from email.utils import formatdate
from typing import Any, Tuple  # noqa: UP035  # Axon.attach compares annotations literally.

import bittensor as bt

from miner.logs import program_version
from miner.mock_validator.pull_rules import Submission
from miner.mock_validator.pull_trial import PullTrial
from miner.transports.axon_server import AxonServer
from miner.transports.sockets import bound_socket
from protocol.synapses import Feedback, GetVersion, PullTask, SubmitResults, WireTask

_caller: ContextVar[str] = ContextVar("caller")
"""The hotkey whose signature was verified; the body may name another."""


class PullAxon:
    """Serves `PullTask`, `SubmitResults` and `GetVersion` for a trial.

    Args:
        trial: Answers the requests.
        wallet: Its hotkey signs the answers.
        ip: Address to listen on.
        port: Port to listen on.
        clock: The clock that dates the answers, in seconds since the epoch; the server's by
            default.

    Raises:
        SetupError: The port cannot be used.
    """

    def __init__(
        self,
        trial: PullTrial,
        wallet: Any,
        *,
        ip: str,
        port: int,
        clock: Callable[[], float] | None = None,
    ) -> None:
        bt.logging.off()
        self._trial = trial
        bound = bound_socket(ip, port)
        self._axon = axon = bt.Axon(
            wallet=wallet,
            config=bt.Config(),  # Without a parser, so that it does not read our command line.
            ip=ip,
            port=port,
            external_ip=ip,  # Otherwise the constructor asks the internet.
        )
        if clock is not None:
            axon.fast_config.date_header = False
            axon.fast_config.app = _dated(axon.app, clock)
        self._server = AxonServer(axon, bound)
        axon.attach(forward_fn=self._pull)
        axon.attach(forward_fn=self._submit, blacklist_fn=self._without_task)
        axon.attach(forward_fn=self._version)
        for synapse in (PullTask, SubmitResults, GetVersion):
            axon.verify_fns[synapse.__name__] = self._verify

    async def start(self) -> None:
        """Returns once the axon listens.

        Raises:
            SetupError: It did not start in time.
        """
        await self._server.start()

    async def stop(self) -> None:
        """Sends the answers that are ready and stops listening."""
        await self._server.stop()

    async def _verify(self, synapse: Any) -> None:
        await self._axon.default_verify(synapse)
        _caller.set(synapse.dendrite.hotkey)

    async def _pull(self, synapse: PullTask) -> PullTask:
        answer, rules = self._trial.pull(_caller.get()), self._trial.rules.rules
        return PullTask(
            task=answer.task
            and WireTask(type=answer.task.kind, id=answer.task.id, prompt=answer.task.wire),
            validation_threshold=rules.threshold,
            throttle_period=rules.throttle_s,
            cooldown_until=answer.cooldown_until,
            cooldown_violations=answer.violations,
            axon=synapse.axon,
            dendrite=synapse.dendrite,
        )

    def _without_task(self, synapse: SubmitResults) -> Tuple[bool, str]:  # noqa: UP006
        absent = self._trial.rules.assigned(synapse.dendrite.hotkey or "") is None
        return absent, "no task is assigned to this hotkey"

    async def _submit(self, synapse: SubmitResults) -> SubmitResults:
        hotkey, rules = _caller.get(), self._trial.rules
        verdict = await self._trial.submit(
            hotkey,
            Submission(synapse.task_id, synapse.results, synapse.submit_time, synapse.signature),
        )
        if verdict.code != "not_registered":
            synapse.feedback = Feedback(
                validation_failed=verdict.validation_failed,
                task_fidelity_score=verdict.score,
                average_fidelity_score=rules.average(hotkey),
                generations_within_the_window=rules.window(hotkey),
            )
        synapse.cooldown_until = verdict.cooldown_until
        synapse.results = synapse.signature = ""
        return synapse

    async def _version(self, synapse: GetVersion) -> GetVersion:
        synapse.validation_version = f"mock {program_version()}"
        return synapse


def _dated(app: Any, clock: Callable[[], float]) -> Callable[[Any, Any, Any], Awaitable[None]]:
    """An ASGI application whose answers have the date of this clock."""

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        async def dated(message: Any) -> None:
            if message["type"] == "http.response.start":
                date = formatdate(clock(), usegmt=True).encode()
                message = {**message, "headers": [*message.get("headers", ()), (b"date", date)]}
            await send(message)

        await app(scope, receive, dated)

    return answer
