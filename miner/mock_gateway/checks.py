"""What a gateway checks of a request, parsed here and nowhere else: strict where the real one is.

None of the worker's own readers is used, so that a fault of theirs is not hidden.
"""

import base64
import binascii
import json
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from miner.mock_gateway.replies import bad_request, invalid_field, unauthorized
from miner.mock_gateway.rules import GatewayRules
from protocol.text import printable

KNOWN_MODELS = ("404-3dgs", "404-mesh", "404-mesh-v2")
SIGNATURE_BYTES = 64
MAX_TAG_CHARACTERS = 32

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}|[0-9a-fA-F]{32}")
_HYPHENATED = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_TIMESTAMP = re.compile(r"404_GATEWAY_\+?([0-9]{1,20})", re.ASCII)
_TAG = re.compile(r"[a-z0-9_-]*")

Verify = Callable[[str, bytes, bytes], bool]
"""Whether a signature over a payload is a hotkey's: (hotkey, payload, signature)."""


@dataclass(frozen=True)
class WorkerChecks:
    """The checks that need to know more than the request.

    Attributes:
        rules: The numbers.
        clock: The gateway's clock, in seconds since the epoch.
        verify: See `Verify`.
        is_hotkey: Whether a text is an address of the right format.
    """

    rules: GatewayRules
    clock: Callable[[], float]
    verify: Verify
    is_hotkey: Callable[[str], bool]

    def hotkey(self, name: str, value: str) -> str:
        """Returns an address.

        Raises:
            GatewayRefusal: 400, it is none of format 42.
        """
        if not self.is_hotkey(value):
            raise bad_request(f"Invalid {name}: Invalid SS58 address")
        return value

    def signed(self, hotkey: str, timestamp: str, signature: str) -> None:
        """Checks that a worker may work here and has signed now.

        Raises:
            GatewayRefusal: 401, it is not on the whitelist, or the signature is stale, of the
                future, or not its own; 400, the timestamp has another form.
        """
        if self.rules.whitelist and hotkey not in self.rules.whitelist:
            raise unauthorized("Worker hotkey is not whitelisted")
        match = _TIMESTAMP.fullmatch(timestamp)
        if match is None or int(match[1]) >= 2**64:
            raise bad_request("Invalid timestamp format")
        age = int(self.clock()) - int(match[1])
        if not 0 <= age <= self.rules.fresh_s or not self._is_own(hotkey, timestamp, signature):
            raise unauthorized("Invalid worker authentication")

    def _is_own(self, hotkey: str, timestamp: str, signature: str) -> bool:
        try:
            raw = base64.b64decode(signature.encode("ascii"), validate=True)
        except (UnicodeEncodeError, binascii.Error):
            return False
        # Only one text is the base64 of these bytes.
        exact = len(raw) == SIGNATURE_BYTES and base64.b64encode(raw).decode() == signature
        return exact and self.verify(hotkey, timestamp.encode(), raw)


def json_object(body: bytes) -> dict[str, Any]:
    """Reads a JSON object whose keys come once each.

    Raises:
        GatewayRefusal: 400.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        for key, value in pairs:
            if key in fields:
                raise ValueError(f"duplicate field `{printable(key, 64)}`")
            fields[key] = value
        return fields

    try:
        value = json.loads(body.decode(), object_pairs_hook=once, parse_constant=_no_constant)
        json.dumps(value, ensure_ascii=False).encode()  # \ud800 alone is no text.
    except (ValueError, RecursionError) as error:
        raise bad_request(f"Parse json failed: {error}") from None
    if not isinstance(value, dict):
        raise bad_request("Parse json failed: invalid type, expected an object")
    return value


def text_field(value: dict[str, Any], *names: str) -> str:
    """Returns a required text of a JSON object; the further names are aliases.

    Raises:
        GatewayRefusal: 400, it is missing, given twice or no text.
    """
    given = [name for name in names if name in value]
    if not given:
        raise bad_request(f"missing field `{names[0]}`")
    if len(given) > 1:
        raise bad_request(f"duplicate field `{names[0]}`")
    text = value[given[0]]
    if not isinstance(text, str):
        raise bad_request(f"invalid type of `{given[0]}`, expected a string")
    return text


def task_count(value: dict[str, Any]) -> int:
    """Returns `requested_task_count`.

    Raises:
        GatewayRefusal: 400, it is missing or no unsigned whole number.
    """
    if "requested_task_count" not in value:
        raise bad_request("missing field `requested_task_count`")
    count = value["requested_task_count"]
    if type(count) is not int or not 0 <= count < 2**64:
        raise bad_request("invalid value of `requested_task_count`, expected usize")
    return count


def models(value: dict[str, Any]) -> tuple[str, ...]:
    """Returns the models of a worker, each once.

    Raises:
        GatewayRefusal: 400.
    """
    if "model" not in value:
        raise bad_request("missing field `model`")
    given = value["model"]
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise bad_request("data did not match any variant of untagged enum ModelFilter")
    if not names:
        raise invalid_field("model", "Expected at least one model")
    return tuple(dict.fromkeys(known_model(name) for name in names))


def known_model(name: str) -> str:
    """Returns the name of a model.

    Raises:
        GatewayRefusal: 400, there is none of this name.
    """
    if name not in KNOWN_MODELS:
        known = ", ".join(KNOWN_MODELS)
        raise invalid_field("model", f"Invalid value '{name}'. Expected one of: {known}")
    return name


def worker_tags(value: dict[str, Any]) -> tuple[str, ...]:
    """Returns the tags of a worker, trimmed, in lower case, each once.

    Raises:
        GatewayRefusal: 400.
    """
    tags = value.get("worker_tags", [])
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise bad_request("invalid type of `worker_tags`, expected a sequence of strings")
    cleaned = [tag.strip().lower() for tag in tags]
    for tag in cleaned:
        if not tag:
            raise invalid_field("worker_tags", "worker_tags cannot contain empty tags")
        if len(tag) > MAX_TAG_CHARACTERS:
            raise invalid_field(
                "worker_tags", f"worker_tags entries cannot exceed {MAX_TAG_CHARACTERS} characters"
            )
        if not _TAG.fullmatch(tag):
            raise invalid_field(
                "worker_tags",
                "worker_tags entries may only contain lowercase letters, numbers, underscores, or "
                "dashes",
            )
    return tuple(dict.fromkeys(cleaned))


def uuid_of(name: str, value: str) -> str:
    """Returns a UUID in its usual form.

    Raises:
        GatewayRefusal: 400.
    """
    if not _UUID.fullmatch(value):
        raise bad_request(f"Invalid {name} format: invalid character")
    return str(uuid.UUID(value))


def is_api_key(value: str) -> bool:
    """Whether a text has the form of an API key: a UUID with hyphens, 36 characters."""
    return _HYPHENATED.fullmatch(value) is not None


def _no_constant(name: str) -> Any:
    raise ValueError(f"expected value, got {name}")
