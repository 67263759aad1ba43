"""A back end loads weights under a licence with conditions only once these are accepted."""

import json
from fnmatch import fnmatch
from pathlib import Path

import pytest

from generation.loading import load
from generation.presets import preset
from generation.settings import GenerationSettings, LiftSettings
from generation.weights.acceptance import (
    DINOV3,
    OPENRAIL,
    TERMS,
    LicenceToAccept,
    require_acceptance,
)
from generation.weights.pins import read_models, shipped_pins
from generation.weights.sources import FILE_LICENCES, TRIPOSPLAT, ZERO123, HubModel
from generation.weights.store import EMBEDDED, LOCK_NAME, ModelStore, locate_models
from protocol.errors import SetupError

NOT_ACCEPTED = "whose licence has not been accepted"
OWN = HubModel(repo="me/mine", files=("*",), licence="MIT")
MODELS = {DINOV3: TRIPOSPLAT, OPENRAIL: ZERO123}
WORDS = {
    DINOV3: (
        *("commercial", "copy of it", "publication", "trade controls", "reverse", "ITAR"),
        *("military", "nuclear", "espionage", "weapons", "warranty", "indemnify", "sue"),
    ),
    OPENRAIL: (
        *("commercial", "hosted service", "enforceable", "your users", "accountable", "latest"),
        *("warranty", "break the law", "minors", "false information", "personal", "defame"),
        *("automated decisions", "discriminate", "vulnerabilities", "medical", "law enforcement"),
    ),
}
both = pytest.mark.parametrize("terms", TERMS, ids=lambda terms: terms.setting)


def under(
    terms: LicenceToAccept, model: HubModel | None = None, *, accepted: bool = False
) -> GenerationSettings:
    """Settings that load a model under a licence: the public one unless given."""
    back_end, _, switch = terms.setting.partition(".")
    base = preset("gpu24")
    own = getattr(base, back_end)
    own = own.model_copy(update={"model": model or MODELS[terms], switch: accepted})
    lift = LiftSettings.model_validate({"backend": back_end})
    return base.model_copy(update={back_end: own, "lift": lift, "device": "cpu"})


@both
def test_the_fix_spells_the_conditions_out_and_says_where_the_text_is(
    terms: LicenceToAccept, tmp_path: Path
) -> None:
    with pytest.raises(SetupError, match=NOT_ACCEPTED) as caught:
        locate_models(under(terms), tmp_path)
    lines = caught.value.fix.splitlines()
    assert [line[2:] for line in lines if line.startswith("- ")] == [*terms.conditions]
    assert tuple(lines[: len(terms.read)]) == terms.read
    assert all("https://" in line for line in lines[:2])
    assert any(line.endswith(f"{terms.flag} true") for line in lines)
    for word in WORDS[terms]:
        assert word in caught.value.fix
    # One line each in a terminal too.
    assert all(f"\n       {line}" in str(caught.value) for line in lines[1:])


@pytest.mark.parametrize("image_only", [True, False])
@pytest.mark.parametrize("model", [None, OWN], ids=["public", "own"])
@both
def test_nothing_is_loaded_before(
    terms: LicenceToAccept, model: HubModel | None, image_only: bool, tmp_path: Path
) -> None:
    with pytest.raises(SetupError, match=NOT_ACCEPTED):
        load(under(terms, model), tmp_path, lambda what: None, image_only=image_only)
    accepted = under(terms, model, accepted=True)
    with pytest.raises(SetupError, match="has not been downloaded"):
        load(accepted, tmp_path, lambda what: None, image_only=image_only)


@both
def test_what_is_not_under_the_licence_needs_no_acceptance(
    terms: LicenceToAccept, tmp_path: Path
) -> None:
    back_end = terms.setting.partition(".")[0]
    lift = LiftSettings.model_validate({"backend": back_end})
    shipped = preset("embedded").model_copy(update={"lift": lift})
    require_acceptance(shipped)
    assert locate_models(shipped).lift == EMBEDDED / back_end
    other = under(terms).model_copy(update={"lift": LiftSettings(backend="triposr")})
    with pytest.raises(SetupError, match="has not been downloaded"):
        locate_models(other, tmp_path)


@pytest.mark.parametrize("guidance", ["denoiser", "none"])
def test_without_zero123_nothing_is_asked_and_nothing_of_it_is_fetched(
    guidance: str, tmp_path: Path
) -> None:
    settings = under(OPENRAIL)
    own = settings.dreamgaussian.model_copy(update={"guidance": guidance})
    settings = settings.model_copy(update={"dreamgaussian": own})
    require_acceptance(settings)
    assert ZERO123 in under(OPENRAIL).models
    assert ZERO123 not in settings.models
    # What is missing is the picture's model.
    with pytest.raises(SetupError, match=r"FLUX\.2-klein-4B has not been downloaded"):
        locate_models(settings, tmp_path)


def test_zero123_is_pinned_by_its_commit_with_both_licences_and_without_its_code() -> None:
    pin = shipped_pins()[ZERO123.name]
    assert (pin.licence, pin.files) == (ZERO123.licence, {})
    assert len(pin.revision) == 40
    assert "LicenseRef-CreativeML-OpenRAIL-M" in ZERO123.licence
    assert not any(fnmatch("clip_camera_projection/zero123.py", glob) for glob in ZERO123.files)


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
