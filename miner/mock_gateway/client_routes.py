"""What a node answers clients: `/add_task`, `/get_status`, `/get_result`. Pure."""

import io
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from miner.mock_gateway.checks import is_api_key, json_object, known_model, uuid_of
from miner.mock_gateway.replies import (
    GatewayReply,
    as_json,
    bad_request,
    coded,
    internal_error,
    invalid_field,
    not_found,
    unauthorized,
    unavailable,
)
from miner.mock_gateway.rules import GatewayRules, KeyOwner
from miner.mock_gateway.store import StoredTask, TaskStore
from protocol import ply, spz
from protocol.errors import CodecError

DEFAULT_MODEL = "404-3dgs"
MAX_BODY_BYTES = 2_097_152
"""Of `/add_task`, and of a picture."""
MAX_IMAGE_SIDE = 1024
MIN_PROMPT, MAX_PROMPT = 3, 384
MAX_PARAMS_BYTES = 1024

FIELD_BYTES = {
    "prompt": MAX_PROMPT,
    "image": MAX_BODY_BYTES,
    "model": 64,
    "seed": 11,
    "model_params": MAX_PARAMS_BYTES,
}
"""Of the parts of a form; there are no others."""

REFUSALS: Mapping[str, tuple[int, str]] = {
    "concurrent_limit": (429, "Concurrent task limit exceeded."),
    "daily_limit": (429, "Daily free limit exceeded."),
    "unauthorized_daily_limit": (429, "Daily limit of unauthorized requests exceeded."),
    "insufficient_balance": (402, "Insufficient balance."),
    "login_required": (401, "Login is required."),
    "pricing_unavailable": (503, "Pricing is unavailable."),
}
"""Errors of billing: status and message by code."""

MISSES, MISSES_WITHIN_S, BLOCKED_S = 50, 600.0, 300.0
"""Unknown keys from an address that block it, seconds within which they count, and seconds that it
stays blocked."""

ORIGINS = frozenset({"discord", "unity", "blender", "gen.404.xyz", "api"})

_PATTERN = r"^[A-Za-z0-9 .,'():;/?!+%-]+$"
_PROMPT = re.compile(_PATTERN[1:-1])
_SEED = re.compile(r"\s*([+-]?[0-9]+)\s*", re.ASCII)
_TRUE, _FALSE = frozenset({"1", "true", "yes", "on"}), frozenset({"0", "false", "no", "off"})


def origin(header: str | None) -> str:
    """Returns the value of `x-client-origin` that is counted."""
    value = (header or "").strip().lower()
    return value if value in ORIGINS else "unknown"


class ApiKeys:
    """Knows the keys of clients. Without any configured, every key of the right form is its own.

    Args:
        rules: The owners by key.
        clock: The gateway's clock.
    """

    def __init__(self, rules: GatewayRules, clock: Callable[[], float]) -> None:
        self._owners = rules.keys
        self._clock = clock
        self._misses: dict[str, list[float]] = {}
        self._blocked: dict[str, float] = {}

    def owner(self, key: str | None, address: str) -> KeyOwner:
        """Returns whose a key is.

        Args:
            key: The header `x-api-key`, if there is one.
            address: The IP address that sends it.

        Raises:
            GatewayRefusal: 401, it is missing or unknown; 400, it has another form; 429, too many
                unknown keys came from this address.
        """
        if key is None:
            raise unauthorized("Missing API key")
        if not is_api_key(key):
            raise bad_request("Invalid API key format")
        owner = self._owners.get(key.lower()) if self._owners else KeyOwner(key.lower())
        if owner is not None:
            return owner
        now = self._clock()
        if now < self._blocked.get(address, now):
            raise coded(
                429,
                "invalid_api_key_rate_limit",
                "Too many invalid API key attempts from this IP. Please retry later.",
            )
        recent = [at for at in self._misses.get(address, ()) if at > now - MISSES_WITHIN_S]
        self._misses[address] = [*recent, now]
        if len(recent) + 1 >= MISSES:
            self._blocked[address], self._misses[address] = now + BLOCKED_S, []
        raise unauthorized("Invalid API key")


@dataclass(frozen=True)
class ClientRoutes:
    """Answers clients whose key has been checked.

    Attributes:
        submit: Queues a task; returns False if the queue is full.
        store: The node's tasks.
        new_id: Makes UUIDs.
        chance: Returns 0..1, for random seeds.
    """

    submit: Callable[[StoredTask], bool]
    store: TaskStore
    new_id: Callable[[], str]
    chance: Callable[[], float]

    def add_json(self, body: bytes, owner: KeyOwner) -> GatewayReply:
        """Answers `POST /add_task` with a JSON body.

        Raises:
            GatewayRefusal: The task is not taken.
        """
        value = json_object(body)
        for name in ("prompt", "model"):
            if not isinstance(value.get(name), str | None):
                raise bad_request(f"invalid type of `{name}`, expected a string")
        if "model_params" in value and value["model_params"] is None:
            raise bad_request("Model params must be a JSON object")
        seed = value.get("seed")
        if seed is not None and type(seed) is not int:
            raise bad_request("data did not match any variant of untagged enum SeedValue")
        return self._add(
            owner,
            prompt=value.get("prompt"),
            image=None,
            model=value.get("model"),
            seed=seed,
            params=value.get("model_params"),
        )

    def add_form(self, parts: Iterable[tuple[str | None, bytes]], owner: KeyOwner) -> GatewayReply:
        """Answers `POST /add_task` with a form, whose last part of a name counts.

        Raises:
            GatewayRefusal: The task is not taken.
        """
        fields: dict[str, bytes] = {}
        for name, value in parts:
            if name not in FIELD_BYTES:
                raise bad_request(f"Field error: unknown field received: {name}")
            if len(value) > FIELD_BYTES[name]:
                raise bad_request(
                    f"Failed to read {name}: field '{name}' exceeded the size limit: "
                    f"{FIELD_BYTES[name]} bytes"
                )
            fields[name] = value
        texts = {name: value.decode("utf-8", "replace") for name, value in fields.items()}
        seed, params = None, None
        if "seed" in texts:
            match = _SEED.fullmatch(texts["seed"])
            if match is None:
                raise bad_request("Invalid seed value: invalid digit found in string")
            seed = int(match[1])
        if "model_params" in texts:
            params = json_object(fields["model_params"])
        return self._add(
            owner,
            prompt=texts.get("prompt"),
            image=fields.get("image"),
            model=texts.get("model"),
            seed=seed,
            params=params,
        )

    def status(self, query: Mapping[str, str]) -> GatewayReply:
        """Answers `GET /get_status`.

        Raises:
            GatewayRefusal: 400, the id is missing or none.
        """
        return as_json(200, self.store.status(_id_of(query)))

    def result(self, query: Mapping[str, str], owner: KeyOwner) -> Callable[[], GatewayReply]:
        """Answers `GET /get_result`.

        Returns:
            What converts the files and answers. It takes a while and needs none of the node's
            state: call it off the event loop.

        Raises:
            GatewayRefusal: There is nothing for this owner, or the query is not in order; what is
                returned raises it for an asset that cannot be converted.
        """
        task_id, every = _id_of(query), _flag(query, "all")
        compress, form = _flag(query, "compress"), query.get("format", "").lower()
        found = self.store.results(task_id)
        if found is None or found[0].owner != owner.name:
            raise not_found(f"Task ID {task_id} not found")
        task, results = found
        if not results:
            raise not_found(f"Task ID {task_id} not found")
        assets = [result.asset for result in results if result.asset is not None]
        if not assets:
            raise not_found(
                f"No successful results found for task ID {task_id}. Failure reason: "
                f"{results[-1].reason}"
            )
        as_ply = form == "ply" or (form != "spz" and compress is False)
        end = "ply" if as_ply else "spz"
        if task.model != DEFAULT_MODEL:
            end, as_ply = "glb", False
        chosen = assets if every else assets[:1]

        def answer() -> GatewayReply:
            files = [_as_ply(asset) if as_ply else asset for asset in chosen]
            if every:
                return _download(_zipped(files, end), "results.zip", "application/zip")
            return _download(files[0], f"result.{end}", "application/octet-stream")

        return answer

    def seed(self, seed: int | None) -> int:
        """Returns the seed of a task: signed, 32 bits; a random one for None, -1 and 2**32 - 1.

        Raises:
            GatewayRefusal: 400, it has more than 32 bits.
        """
        if seed is None or seed in (-1, 2**32 - 1):
            seed = min(int(self.chance() * (2**32 - 1)), 2**32 - 2)
        if not -(2**31) <= seed < 2**32:
            raise bad_request("Invalid seed value: number too large or too small for 32 bits")
        return seed - 2**32 if seed >= 2**31 else seed

    def _add(
        self,
        owner: KeyOwner,
        *,
        prompt: str | None,
        image: bytes | None,
        model: str | None,
        seed: int | None,
        params: Any,
    ) -> GatewayReply:
        if bool(prompt) == bool(image):
            raise bad_request(
                "Cannot provide both prompt and image. Choose one."
                if prompt
                else "Must provide either prompt or image"
            )
        check_content(prompt, image)
        if params is not None:
            _check_params(params)
        name = known_model(model if model is not None else DEFAULT_MODEL)
        if prompt and name != DEFAULT_MODEL:
            raise invalid_field("model", f"Model '{name}' does not support text input")
        refusal = owner.refusal
        most = owner.most_at_once
        if most is not None and self.store.unfinished(owner.name) >= most:
            refusal = "concurrent_limit"
        if refusal is not None:
            status, message = REFUSALS[refusal]
            raise coded(status, refusal, message)
        task = StoredTask(
            id=self.new_id(),
            owner=owner.name,
            model=name,
            seed=self.seed(seed),
            prompt=prompt or None,
            image=image or None,
            params=params,
            tags=owner.tags,
        )
        if not self.submit(task):
            raise unavailable("Task queue is full")
        return as_json(200, {"id": task.id})


def check_content(prompt: str | None, image: bytes | None) -> None:
    """Checks a prompt, or the header of a picture.

    Raises:
        GatewayRefusal: 400, the gateway does not take it.
    """
    if prompt:
        _check_prompt(prompt)
    if image:
        _check_image(image)


def _check_prompt(prompt: str) -> None:
    if len(prompt) < MIN_PROMPT:
        raise bad_request(
            f"Prompt is too short: minimum length is {MIN_PROMPT} characters (got {len(prompt)})"
        )
    if not _PROMPT.fullmatch(prompt):
        raise bad_request(f"Prompt contains invalid characters; allowed pattern: {_PATTERN}")


def _check_params(params: Any) -> None:
    if not isinstance(params, dict):
        raise bad_request("Model params must be a JSON object")
    size = len(as_json(200, params).body)
    if size > MAX_PARAMS_BYTES:
        raise bad_request(
            f"Model params is too long: maximum length is {MAX_PARAMS_BYTES} bytes (got {size})"
        )


def _check_image(image: bytes) -> None:
    if len(image) > MAX_BODY_BYTES:
        raise bad_request(f"Image too large: {len(image)} bytes (max: {MAX_BODY_BYTES} bytes)")
    try:
        # Reads the header only.
        with Image.open(io.BytesIO(image), formats=("PNG", "JPEG", "WEBP")) as picture:
            width, height = picture.size
    except Exception:
        raise bad_request("Failed to guess image format: it is not PNG, JPEG or WebP") from None
    if width > MAX_IMAGE_SIDE:
        raise bad_request(f"Image too wide: {width}px (max: {MAX_IMAGE_SIDE}px)")
    if height > MAX_IMAGE_SIDE:
        raise bad_request(f"Image too tall: {height}px (max: {MAX_IMAGE_SIDE}px)")


def _id_of(query: Mapping[str, str]) -> str:
    if "id" not in query:
        raise bad_request("missing field `id`")
    return uuid_of("id", query["id"])


def _flag(query: Mapping[str, str], name: str) -> bool | None:
    value = query.get(name)
    if value is None:
        return None
    word = value.strip().lower()
    if word not in _TRUE | _FALSE:
        raise bad_request(f"Invalid {name} value. Use 1/0/true/false.")
    return word in _TRUE


def _as_ply(asset: bytes) -> bytes:
    try:
        return ply.encode(spz.decode(asset), normals=False)
    except CodecError:
        raise internal_error() from None


def _zipped(files: list[bytes], end: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for number, data in enumerate(files, start=1):
            archive.writestr(zipfile.ZipInfo(f"{number}.{end}"), data)
    return file.getvalue()


def _download(data: bytes, name: str, content_type: str) -> GatewayReply:
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return GatewayReply(200, data, content_type, headers)
