"""Downloads weights: pinned by this version or by the lock file, resumable, verified."""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import TypeVar

from generation.weights.pins import inside
from generation.weights.refusals import reason
from generation.weights.sources import FILE_LICENCES, ModelSource, ReleaseModel
from generation.weights.store import ModelStore
from protocol.errors import SetupError

T = TypeVar("T")

_RESERVE = 500_000_000
"""Bytes that must stay free beside the weights."""

_AGAIN = "run the same command again; if it stays so, do not use the file"


@dataclass(frozen=True)
class _Plan:
    """What has to be downloaded of one model.

    Attributes:
        model: The model.
        revision: Resolved commit, or the address of a single file.
        sizes: Bytes by path inside the model's folder.
        sha256: Hexadecimal digests that the publisher states, by path; not every file has one.
    """

    model: ModelSource
    revision: str
    sizes: dict[str, int]
    sha256: dict[str, str]


def fetch_models(
    models: Sequence[ModelSource],
    store: ModelStore,
    *,
    endpoint: str | None = None,
    report: Callable[[str], None],
) -> None:
    """Brings models into the store; what is there and matches the lock is left alone.

    A model in the lock is fetched at its locked revision and must come out as locked. One that is
    not is fetched at the revision that its source names, else at the one that this version pins,
    else at the newest, which is then locked. A pinned file must be as pinned, even if the lock
    says otherwise. An interrupted download goes on where it stopped. Gated repositories use the
    token in HF_TOKEN.

    Args:
        models: What to fetch.
        store: Where to put it.
        endpoint: Address of the hub; huggingface_hub's own when None.
        report: Receives one line of text at a time for a person to read.

    Raises:
        SetupError: No access, no network, no disk space, or a file that is not the expected one.
    """
    try:
        _fetch(models, store, endpoint, report)
    except OSError as error:
        raise SetupError(
            f"{error.filename or store.root} cannot be used: {error.strerror or error}",
            fix="check the permissions of this user and the room on that disk, or choose another "
            "folder with --models.dir DIR",
        ) from error


def _fetch(
    models: Sequence[ModelSource],
    store: ModelStore,
    endpoint: str | None,
    report: Callable[[str], None],
) -> None:
    _make_folder(store)
    plans = []
    for model in models:
        if _discard_damaged(model, store):
            plan = _guarded(model, partial(_plan, model, store, endpoint))
            _require_pinned(plan, store)
            plans.append(plan)
        else:
            report(f"{model.name}: complete and verified ({_licence_line(model)})")
            _report_parts(store.lock[model.name].files, report)
    _require_space(plans, store)
    for plan in plans:
        total = sum(plan.sizes.values())
        report(f"{plan.model.name}: {len(plan.sizes)} files, {total / 1e9:.2f} GB")
        report(f"  licence: {_licence_line(plan.model)}")
        _report_parts(plan.sizes, report)
        report(f"  revision: {plan.revision}")
        _guarded(plan.model, partial(_download, plan, store, endpoint))
        _check(plan, store)
        report(f"{plan.model.name}: verified")


def _licence_line(model: ModelSource) -> str:
    if model.licence == "NOASSERTION":
        return f"none that we know of; read the publisher's terms, {model.page}"
    return f"{model.licence}, {model.page}"


def _report_parts(names: Iterable[str], report: Callable[[str], None]) -> None:
    for name in names:
        if name in FILE_LICENCES:
            report(f"    {name}: {FILE_LICENCES[name]}")


def _discard_damaged(model: ModelSource, store: ModelStore) -> bool:
    """Removes files that differ from the lock; returns whether anything has to be downloaded."""
    locked = store.lock.get(model.name)
    if locked is None or store.is_superseded(model):
        store.lock.pop(model.name, None)
        return True
    bad = [name for name in locked.files if store.problem(model, name) is not None]
    for name in bad:
        (store.folder(model) / name).unlink(missing_ok=True)
    return bool(bad)


def _plan(model: ModelSource, store: ModelStore, endpoint: str | None) -> _Plan:
    if isinstance(model, ReleaseModel):
        from huggingface_hub import get_session

        answer = get_session().head(model.url, follow_redirects=True)
        answer.raise_for_status()
        size = answer.headers.get("Content-Length", "")
        if not size.isdecimal():
            raise ValueError(f"{model.url} does not say how large the file is")
        return _Plan(model, model.url, {model.file: int(size)}, {})

    from huggingface_hub import HfApi

    locked = store.lock.get(model.name)
    info = HfApi(endpoint=endpoint).model_info(
        model.repo,
        revision=locked.revision if locked else store.revision(model),
        files_metadata=True,
    )
    siblings = {entry.rfilename: entry for entry in info.siblings or ()}
    names = [name for name in siblings if any(fnmatch(name, glob) for glob in model.files)]
    for pattern in model.files:
        if not any(fnmatch(name, pattern) for name in names):
            raise SetupError(
                f"{model.repo} at {info.sha} holds no file {pattern}",
                fix="report this: the repository has changed since this version was made",
            )
    try:
        names = [inside(name) for name in names]
    except ValueError as error:
        raise SetupError(
            f"{model.repo} at {info.sha} cannot be downloaded: {error}", fix=f"see {model.page}"
        ) from None
    return _Plan(
        model,
        revision=str(info.sha),
        sizes={name: siblings[name].size or 0 for name in names},
        sha256={name: lfs.sha256 for name in names if (lfs := siblings[name].lfs) is not None},
    )


def _require_pinned(plan: _Plan, store: ModelStore) -> None:
    """Compares what the publisher states with the pins, before anything is downloaded."""
    for name, pin in store.pinned(plan.model).items():
        if name not in plan.sizes:
            continue
        for what, found, expected in (
            ("SHA-256", plan.sha256.get(name, pin.sha256), pin.sha256),
            ("bytes", plan.sizes[name], pin.size),
        ):
            if found != expected:
                raise SetupError(
                    f"{name} of {plan.model.name} has {what} {found} at {plan.revision}, "
                    f"{expected} was expected (pinned by this version)",
                    fix=f"do not use the file, and report this: either the file at "
                    f"{plan.model.page} was changed, or the pin is wrong",
                )


def _make_folder(store: ModelStore) -> None:
    try:
        store.root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SetupError(
            f"the models folder {store.root} cannot be made: {error.strerror or error}",
            fix="choose another with --models.dir DIR",
        ) from error


def _require_space(plans: Sequence[_Plan], store: ModelStore) -> None:
    present = sum(
        file.stat().st_size
        for plan in plans
        for file in store.folder(plan.model).rglob("*")
        if file.is_file()
    )
    needed = sum(sum(plan.sizes.values()) for plan in plans) - present
    free = shutil.disk_usage(store.root).free
    if plans and needed + _RESERVE > free:
        raise SetupError(
            f"{needed / 1e9:.2f} GB are still to be downloaded to {store.root}, "
            f"where {free / 1e9:.2f} GB are free",
            fix=f"make {(needed + _RESERVE - free) / 1e9:.2f} GB of room, "
            "or choose another disk with --models.dir DIR",
        )


def _download(plan: _Plan, store: ModelStore, endpoint: str | None) -> None:
    folder = store.folder(plan.model)
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(plan.model, ReleaseModel):
        _download_file(plan.model, folder / plan.model.file, plan.sizes[plan.model.file])
        return
    from huggingface_hub import snapshot_download

    snapshot_download(
        plan.model.repo,
        revision=plan.revision,
        local_dir=folder,
        allow_patterns=list(plan.sizes),
        endpoint=endpoint,
    )


def _download_file(model: ReleaseModel, file: Path, size: int) -> None:
    from huggingface_hub.file_download import http_get

    part = file.with_name(f"{file.name}.part")
    if part.exists() and part.stat().st_size >= size:
        part.unlink()  # nothing of it is missing, so it was found damaged or is another file's
    with part.open("ab") as stream:
        http_get(
            model.url,
            stream,
            resume_size=stream.tell(),
            expected_size=size,
            displayed_filename=file.name,
        )
    for name, make, start in (
        ("MD5", partial(hashlib.md5, usedforsecurity=False), model.md5),
        ("SHA-256", hashlib.sha256, model.sha256_start),
    ):
        if start is None:
            continue
        with part.open("rb") as stream:
            digest = hashlib.file_digest(stream, make).hexdigest()
        if not digest.startswith(start):
            part.unlink()
            raise SetupError(f"{model.url} has {name} {digest}, {start} was expected", fix=_AGAIN)
    os.replace(part, file)


def _check(plan: _Plan, store: ModelStore) -> None:
    """Compares what came with the lock, the pins and what the publisher states."""
    model, folder = plan.model, store.folder(plan.model)
    if model.name in store.lock:
        store.verify(model, fix=_AGAIN)
        return
    pinned = store.pinned(model)
    for name in plan.sizes:
        if not (folder / name).is_file():
            raise SetupError(f"{folder / name} did not arrive", fix=_AGAIN)
        found, expected, by = store.sha256(folder / name), plan.sha256.get(name), "as published"
        if name in pinned:
            expected, by = pinned[name].sha256, "pinned by this version"
        if expected is not None and found != expected:
            (folder / name).unlink()
            raise SetupError(
                f"{folder / name} has SHA-256 {found}, {expected} was expected ({by})",
                fix=f"{_AGAIN}, and report it",
            )
    store.record(model, plan.revision, list(plan.sizes))


def _guarded(model: ModelSource, action: Callable[[], T]) -> T:
    """Runs a network action and turns its errors into words and a remedy."""
    from huggingface_hub import get_token

    try:
        return action()
    except SetupError:
        raise
    # The network can fail with any of several libraries' errors.
    except Exception as error:
        raise reason(model, error, get_token()) from error
