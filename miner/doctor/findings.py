"""Findings as values, and how a check becomes one even if it fails itself."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum

from protocol.errors import SetupError


class Status(StrEnum):
    """What a check came to; only FAILED says that the miner will not work."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    UNCHECKED = "not checked"


@dataclass(frozen=True)
class Verdict:
    """A status, what was found in one sentence, and what the operator should type or change."""

    status: Status
    found: str
    fix: str = ""


@dataclass(frozen=True)
class Finding:
    """The verdict of one check."""

    check: str
    verdict: Verdict


@dataclass(frozen=True)
class Check:
    """Something to look at.

    Attributes:
        name: One or two words.
        look: Returns the verdict. What may block runs in a daemon thread.
        limit_s: Seconds that it may take.
        if_slow: The fix if it takes longer.
    """

    name: str
    look: Callable[[], Awaitable[Verdict]]
    limit_s: float = 20.0
    if_slow: str = ""


def ok(found: str) -> Verdict:
    """All is well."""
    return Verdict(Status.OK, found)


def warning(found: str, fix: str) -> Verdict:
    """The miner works, but perhaps not as meant."""
    return Verdict(Status.WARNING, found, fix)


def failed(found: str, fix: str) -> Verdict:
    """The miner will not start, or nobody will get an answer."""
    return Verdict(Status.FAILED, found, fix)


def unchecked(found: str, fix: str = "") -> Verdict:
    """It could not be found out."""
    return Verdict(Status.UNCHECKED, found, fix)


async def carry_out(check: Check) -> Finding:
    """Carries a check out within its limit; never raises."""
    try:
        async with asyncio.timeout(check.limit_s):
            verdict = await check.look()
    except TimeoutError:
        verdict = unchecked(f"no answer within {check.limit_s:g} s", check.if_slow)
    except SetupError as error:
        verdict = failed(error.problem, error.fix)
    except Exception as error:
        verdict = unchecked(f"the check itself failed: {type(error).__name__}: {error}"[:300])
    return Finding(check.name, verdict)
