"""Why a download failed, and what to do: by the answer's status, or by what broke on the way."""

import errno
import ssl
from collections.abc import Iterator
from typing import Any

from generation.weights.sources import ModelSource
from protocol.errors import SetupError
from protocol.text import printable

_TOKENS = "https://huggingface.co/settings/tokens"
_AGAIN = "run the same command again; the download goes on where it stopped"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}


def reason(model: ModelSource, error: Exception, token: str | None) -> SetupError:
    """Turns what a library raised into a sentence and a remedy.

    Args:
        model: What was to be downloaded.
        error: What was raised; its causes are looked at too.
        token: The token in use, which is never shown.
    """
    chain = list(_chain(error))
    problem, fix = (
        _of_the_disk(chain)
        or _of_the_hub(model, chain, token)
        or _of_the_way(chain)
        or (_words(error), f"check the network and {_AGAIN}")
    )
    if token:
        problem = problem.replace(token, "(the token)")
    return SetupError(f"{model.name} could not be downloaded: {problem}", fix=fix)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {printable(str(error), 300)}"


def _of_the_disk(chain: list[BaseException]) -> tuple[str, str] | None:
    for error in chain:
        # TLS and the hub have errors of their own among these, with other numbers or none.
        if not isinstance(error, OSError) or isinstance(error, ssl.SSLError):
            continue
        where = printable(str(error.filename)) if error.filename else "the models folder"
        if error.errno in _FULL:
            return (
                f"{where} takes no more: {error.strerror}",
                f"make room, or choose another disk with --models.dir DIR, and {_AGAIN}",
            )
        if error.errno in _DENIED:
            return (
                f"{where} cannot be written: {error.strerror}",
                "let this user write there, or choose another folder with --models.dir DIR",
            )
    return None


def _of_the_hub(
    model: ModelSource, chain: list[BaseException], token: str | None
) -> tuple[str, str] | None:
    from huggingface_hub.errors import (
        DisabledRepoError,
        EntryNotFoundError,
        GatedRepoError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RevisionNotFoundError,
    )

    status, headers = _answer(chain)
    new_token = f"make a read token at {_TOKENS} and run again with HF_TOKEN=hf_..."
    for error in chain:
        match error:
            case OfflineModeIsEnabled():
                return ("HF_HUB_OFFLINE forbids any download", "unset HF_HUB_OFFLINE")
            case GatedRepoError() if token is None:
                return (
                    "it is gated, and there is no token",
                    f"log in and accept the terms at {model.page}, {new_token}",
                )
            case GatedRepoError():
                return (
                    "it is gated: its terms have not been accepted with the token in use, or the "
                    "token may not read gated repositories",
                    f"log in and accept the terms at {model.page}; if that is done, {new_token}",
                )
            case DisabledRepoError():
                return ("its publisher or the hub has disabled it", f"see {model.page}")
            case RevisionNotFoundError():
                return (
                    "its revision is no longer on the hub",
                    f"see {model.page}/commits; if only models.lock.json names the revision, "
                    "remove the model from it and run the same command again; if this version "
                    "pins it, choose another with the model's setting revision",
                )
            case LocalEntryNotFoundError():
                continue  # The network failed; what follows in the chain says how.
            case EntryNotFoundError():
                return (
                    "a file is no longer on the hub",
                    f"see {model.page}, and report this: the repository has changed",
                )
    match status:
        case None:
            return None
        case 401 if token is not None:
            return (
                "status 401: the hub does not accept the token in use",
                f"{new_token}, or unset HF_TOKEN and run huggingface-cli logout",
            )
        case 401:
            return ("status 401: the address wants a token, and there is none", new_token)
        case 403:
            return (
                "status 403: access is forbidden",
                f"accept the terms at {model.page} if it asks for that; otherwise {new_token}, or "
                "ask whoever runs the network whether it blocks this address",
            )
        case 404 | 410:
            return (
                f"status {status}: it is not there, or not shown to this user",
                f"see {model.page}; check that HF_TOKEN, if set, holds a valid token and that "
                "HF_ENDPOINT, if set, is right",
            )
        case 407:
            return _PROXY
        case 429:
            wait = headers.get("retry-after", "")
            wait = f"{int(wait)} s" if wait.isdigit() and len(wait) < 7 else "some minutes"
            return (
                "status 429: too many requests from this address or token",
                f"wait {wait} and {_AGAIN}"
                + ("" if token else "; requests with HF_TOKEN set have a higher limit"),
            )
    if status >= 500:
        return (
            f"status {status}: the server has trouble",
            f"wait some minutes (https://status.huggingface.co) and {_AGAIN}",
        )
    return (f"status {status}: {_words(chain[0])}", f"see {model.page}, and {_AGAIN}")


_PROXY = (
    "status 407: the proxy wants a name and a password",
    "set HTTPS_PROXY=http://NAME:PASSWORD@HOST:PORT and run the same command again",
)


def _answer(chain: list[BaseException]) -> tuple[int | None, dict[str, str]]:
    for error in chain:
        response: Any = getattr(error, "response", None)
        status = getattr(response, "status_code", None)
        if isinstance(status, int) and status >= 400:
            return status, {
                str(name).lower(): str(value) for name, value in response.headers.items()
            }
    return None, {}


def _of_the_way(chain: list[BaseException]) -> tuple[str, str] | None:
    text = " ".join(str(error) for error in chain)
    kinds = {type(error).__name__ for error in chain}
    if "ProxyError" in kinds:
        if "407" in text:
            return _PROXY
        return (
            f"the proxy gave no way: {_words(chain[0])}",
            "check HTTPS_PROXY, or set NO_PROXY for this address",
        )
    if "CERTIFICATE_VERIFY" in text:
        return (
            f"the server's certificate is not trusted: {_words(chain[0])}",
            "check the clock of this machine; behind a proxy that opens TLS, point SSL_CERT_FILE "
            "at its certificate",
        )
    if any(isinstance(error, ssl.SSLError) for error in chain):
        return (
            f"no TLS with this server: {_words(chain[0])}",
            "check HF_ENDPOINT and HTTPS_PROXY, if they are set: something else answers there",
        )
    return None
