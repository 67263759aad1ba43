"""An engine joins only if it generates what the front expects."""

from dataclasses import replace
from pathlib import Path

import pytest

from generation.presets import preset
from generation.weights.pins import LockedFile, LockedModel, write_models
from generation.weights.store import LOCK_NAME
from miner.engines.joining import Identity, identity_of, require_same
from protocol.errors import SetupError

EMBEDDED = preset("embedded").model_dump_json()
FETCH = "python -m scripts.fetch_models --preset gpu24"


def lock(folder: Path, digest: str) -> None:
    """A lock file with one file for each model of gpu24."""
    write_models(
        folder / LOCK_NAME,
        {
            model.name: LockedModel(
                revision="a" * 40,
                licence=model.licence,
                files={"weights.safetensors": LockedFile(size=1, sha256=digest * 64)},
            )
            for model in preset("gpu24").models
        },
    )


def test_the_same_installation_may_join() -> None:
    require_same("ray0", identity_of(EMBEDDED, None), identity_of(EMBEDDED, None), FETCH)


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("version", "splat-miner 9.9.9 there"),
        ("python", "Python 9.9.9 there"),
        ("torch", "torch 9.9.9 there"),
        ("preset", "preset 9.9.9 there"),
        ("weights", "weights 9.9.9 there"),
    ],
)
def test_each_difference_refuses_and_is_named(field: str, words: str) -> None:
    here = identity_of(EMBEDDED, None)
    there = replace(here, **{field: "9.9.9"})
    with pytest.raises(SetupError, match=words) as refused:
        require_same("engine ray1 on node-b", there, here, FETCH)
    assert refused.value.problem.startswith("engine ray1 on node-b cannot join: ")
    assert f"{getattr(here, field)} here" in refused.value.problem
    assert (FETCH in refused.value.fix) == (field == "weights")


def test_all_differences_are_named_at_once() -> None:
    here = identity_of(EMBEDDED, None)
    with pytest.raises(SetupError) as refused:
        require_same("ray0", Identity("1", "2", "3", "4", "5"), here, FETCH)
    assert refused.value.problem.count(" there, ") == 5


def test_a_changed_setting_is_another_preset_and_the_device_is_not() -> None:
    usual = preset("embedded")
    changed = usual.model_copy(update={"spz_level": 3})
    moved = usual.model_copy(update={"device": "cuda"})
    names = [identity_of(s.model_dump_json(), None).preset for s in (usual, changed, moved)]
    assert names[0] == names[2] != names[1]


def test_settings_that_this_version_does_not_know_are_of_another_version() -> None:
    assert identity_of('{"name": "embedded"}', None).preset == "of another version"


@pytest.mark.usefixtures("no_pins")
def test_weights_are_compared_by_what_the_lock_says(tmp_path: Path) -> None:
    settings = preset("gpu24").model_dump_json()
    seen = []
    for name, digest in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / name).mkdir()
        lock(tmp_path / name, digest)
        seen.append(identity_of(settings, tmp_path / name).weights)
    assert seen[0] == seen[1] != seen[2]


def test_weights_that_are_missing_are_named_with_the_command(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="has not been downloaded") as missing:
        identity_of(preset("gpu24").model_dump_json(), tmp_path)
    assert "scripts.fetch_models" in missing.value.fix
