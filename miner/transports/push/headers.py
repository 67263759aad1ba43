"""What a request's headers claim, read before anything is believed. Pure."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from miner.transports.push.refused import Refused

HOTKEY = "bt_header_dendrite_hotkey"
NONCE = "bt_header_dendrite_nonce"
VERSION = "bt_header_dendrite_version"
UUID = "bt_header_dendrite_uuid"
SIGNATURE = "bt_header_dendrite_signature"
BODY_HASH = "computed_body_hash"
TIMEOUT = "timeout"
CONTENT_TYPE = "content-type"
CONTENT_ENCODING = "content-encoding"

_READ = frozenset(
    (HOTKEY, NONCE, VERSION, UUID, SIGNATURE, BODY_HASH, TIMEOUT, CONTENT_TYPE, CONTENT_ENCODING)
)
MAX_CHARACTERS = 256
"""Of one value. A signature has 130, everything else less."""

_WHOLE = re.compile(r"-?[0-9]{1,30}", re.ASCII)
_JSON = re.compile(r"application/(?:[\w.+-]+\+)?json", re.ASCII)


@dataclass(frozen=True)
class Claim:
    """The headers of Bittensor that the axon uses; only what `verified` says is proven.

    Attributes:
        hotkey: SS58 address of the caller; signed.
        nonce: The caller's time in nanoseconds since the epoch; signed.
        uuid: The id of the caller's dendrite; signed.
        body_hash: SHA3-256 over the fields of the body that the signature covers; signed.
        signature: Hex of the sr25519 signature.
        version: The caller's Bittensor version as an integer; not signed.
        timeout: Seconds; not signed, and may be infinite or no number.
    """

    hotkey: str
    nonce: int
    uuid: str
    body_hash: str
    signature: str
    version: int
    timeout: float


def read_headers(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Returns the values of the headers that the axon reads, by lower-case name.

    Raises:
        Refused: A header is there twice, so that two readers could take different values.
    """
    values: dict[str, str] = {}
    for raw_name, raw_value in headers:
        name = raw_name.decode("latin-1").lower()
        if name not in _READ:
            continue
        if name in values:
            raise Refused(400, "bad_headers", f"the header {name} is there twice")
        values[name] = raw_value.decode("latin-1").strip()
    return values


def check_content(headers: Mapping[str, str]) -> None:
    """Raises `Refused` unless the body is plain JSON, as far as the headers tell."""
    kind = headers.get(CONTENT_TYPE)
    if kind is not None and not _JSON.fullmatch(kind.partition(";")[0].strip().lower()):
        raise Refused(
            415, "bad_content_type", f"content-type is {kind[:80]!r}; send application/json"
        )
    coding = headers.get(CONTENT_ENCODING, "identity")
    if coding.lower() != "identity":
        raise Refused(
            415, "bad_content_type", f"content-encoding is {coding[:80]!r}; send the body as it is"
        )


def read_claim(headers: Mapping[str, str]) -> Claim:
    """Reads the headers of Bittensor.

    Raises:
        Refused: One is missing, too long, or not of its type; names it.
    """
    return Claim(
        hotkey=_text(headers, HOTKEY),
        nonce=_whole(headers, NONCE),
        uuid=_text(headers, UUID),
        body_hash=_text(headers, BODY_HASH),
        # What is no signature is answered 401 by its check, however it looks.
        signature=headers.get(SIGNATURE, "")[:MAX_CHARACTERS],
        version=_whole(headers, VERSION),
        timeout=_seconds(headers, TIMEOUT),
    )


def _text(headers: Mapping[str, str], name: str) -> str:
    value = headers.get(name, "")
    if not value:
        raise Refused(400, "bad_headers", f"the header {name} is missing or empty")
    if len(value) > MAX_CHARACTERS:
        raise Refused(
            400,
            "bad_headers",
            f"the header {name} has {len(value)} characters, the limit is {MAX_CHARACTERS}",
        )
    if not (value.isascii() and value.isprintable()):
        raise Refused(400, "bad_headers", f"the header {name} is not printable ASCII")
    return value


def _whole(headers: Mapping[str, str], name: str) -> int:
    value = _text(headers, name)
    if not _WHOLE.fullmatch(value):
        raise Refused(
            400, "bad_headers", f"the header {name} is {value[:40]!r}; send a whole number"
        )
    return int(value)


def _seconds(headers: Mapping[str, str], name: str) -> float:
    value = _text(headers, name)
    try:
        if "_" in value:
            raise ValueError
        return float(value)
    except ValueError:
        raise Refused(
            400, "bad_headers", f"the header {name} is {value[:40]!r}; send seconds"
        ) from None
