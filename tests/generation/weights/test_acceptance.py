"""TripoSplat starts with weights from elsewhere only once DINOv3's licence is accepted."""

import json
from pathlib import Path

import pytest

from generation.loading import load
from generation.presets import preset
from generation.settings import GenerationSettings, LiftSettings, TripoSplatSettings
from generation.weights.acceptance import (
    CONDITIONS,
    FLAG,
    LICENCE_PAGE,
    MODEL_PAGE,
    require_acceptance,
)
from generation.weights.pins import read_models, shipped_pins
from generation.weights.sources import FILE_LICENCES, TRIPOSPLAT, HubModel
from generation.weights.store import EMBEDDED, LOCK_NAME, ModelStore, locate_models
from protocol.errors import SetupError

NOT_ACCEPTED = "DINOv3, whose licence has not been accepted"
OWN = HubModel(repo="me/mine", files=("*",), licence="MIT")


def splat(model: HubModel | None = TRIPOSPLAT, *, accepted: bool = False) -> GenerationSettings:
    own = TripoSplatSettings(model=model, accept_dinov3_license=accepted)
    return preset("gpu24-splat").model_copy(update={"triposplat": own, "device": "cpu"})


def test_the_fix_spells_the_conditions_out_and_says_where_the_text_is(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=NOT_ACCEPTED) as caught:
        locate_models(splat(), tmp_path)
    lines = caught.value.fix.splitlines()
    assert [line[2:] for line in lines if line.startswith("- ")] == [*CONDITIONS]
    assert LICENCE_PAGE in lines[0]
    assert MODEL_PAGE in lines[1]
    assert any(line.endswith(f"{FLAG} true") for line in lines)
    for word in ("commercial", "copy of it", "publication", "trade controls", "reverse", "ITAR"):
        assert word in caught.value.fix
    for word in ("military", "nuclear", "espionage", "weapons", "warranty", "indemnify", "sue"):
        assert word in caught.value.fix
    # One line each in a terminal too.
    assert all(f"\n       {line}" in str(caught.value) for line in lines[1:])


@pytest.mark.parametrize("image_only", [True, False])
@pytest.mark.parametrize("model", [TRIPOSPLAT, OWN])
def test_nothing_is_loaded_before(model: HubModel, image_only: bool, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=NOT_ACCEPTED):
        load(splat(model), tmp_path, lambda what: None, image_only=image_only)
    with pytest.raises(SetupError, match="has not been downloaded"):
        load(splat(model, accepted=True), tmp_path, lambda what: None, image_only=image_only)


def test_what_holds_no_dinov3_needs_no_acceptance(tmp_path: Path) -> None:
    shipped = preset("embedded").model_copy(update={"lift": LiftSettings(backend="triposplat")})
    require_acceptance(shipped)
    assert locate_models(shipped).lift == EMBEDDED / "triposplat"
    other = splat().model_copy(update={"lift": LiftSettings(backend="triposr")})
    with pytest.raises(SetupError, match="has not been downloaded"):
        locate_models(other, tmp_path)


def test_every_file_of_triposplat_has_a_licence_and_the_model_has_all_of_them() -> None:
    assert tuple(FILE_LICENCES) == TRIPOSPLAT.files
    assert set(FILE_LICENCES.values()) == set(TRIPOSPLAT.licence.split(" AND "))
    pinned = shipped_pins()[TRIPOSPLAT.name].files
    assert {name: file.licence for name, file in pinned.items()} == dict(FILE_LICENCES)


def test_the_lock_file_names_the_licence_of_each_part(tmp_path: Path, no_pins: None) -> None:
    store = ModelStore(tmp_path)
    for name in (*TRIPOSPLAT.files, "README.md"):
        file = store.folder(TRIPOSPLAT) / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"weights")
    store.record(TRIPOSPLAT, "c0ffee", [*TRIPOSPLAT.files, "README.md"])
    entry = json.loads((tmp_path / LOCK_NAME).read_text())["models"][TRIPOSPLAT.name]
    assert entry["licence"] == TRIPOSPLAT.licence
    found = {name: file.get("licence") for name, file in entry["files"].items()}
    assert found == {**FILE_LICENCES, "README.md": None}
    assert "licence" not in entry["files"]["README.md"]
    # A later process reads it.
    assert read_models(tmp_path / LOCK_NAME) == store.lock
    ModelStore(tmp_path).verify(TRIPOSPLAT, fix="-")
