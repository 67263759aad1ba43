"""Presets are frozen values that say what they load and under which licence."""

from fnmatch import fnmatch
from typing import get_args

import pytest
from pydantic import ValidationError

from generation.lift import BACK_ENDS
from generation.presets import PRESETS, preset, variant
from generation.settings import (
    BackEndName,
    CutoutSettings,
    GenerationSettings,
    LiftSettings,
    ScoringSettings,
    TextToImageSettings,
)
from generation.weights import pins
from generation.weights.sources import (
    BIREFNET,
    BIREFNET_LITE,
    FLUX_KLEIN,
    FLUX_SCHNELL,
    ISNET,
    TRIPOSPLAT,
    TRIPOSR,
    ZERO123,
    HubModel,
)
from protocol.errors import SetupError


def test_an_unknown_preset_is_answered_with_the_known_ones() -> None:
    with pytest.raises(SetupError, match=r"'gpu8'.*embedded, gpu16, gpu24, gpu80"):
        preset("gpu8")


@pytest.mark.parametrize("name", PRESETS)
def test_each_preset_carries_its_name_and_survives_json(name: str) -> None:
    settings = preset(name)
    assert settings.name == name
    assert GenerationSettings.model_validate_json(settings.model_dump_json()) == settings


GPU_PRESETS = ("gpu16", "gpu24", "gpu80")


@pytest.mark.parametrize("model", [FLUX_KLEIN, FLUX_SCHNELL])
@pytest.mark.parametrize("name", GPU_PRESETS)
def test_weights_allow_commercial_use_and_gated_ones_come_first(name: str, model: HubModel) -> None:
    settings = preset(name)
    drawing = settings.text_to_image.model_copy(update={"model": model})
    settings = settings.model_copy(update={"text_to_image": drawing})
    makes = settings.model_copy(update={"scoring": ScoringSettings()}).models
    assert {model.licence for model in makes} <= {"Apache-2.0", "MIT"}
    assert len(makes) == 3
    assert makes[0] == settings.models[0] == model


def test_gpu_presets_draw_with_klein_and_the_smallest_holds_it_in_8_bits() -> None:
    drawn = {name: preset(name).text_to_image for name in GPU_PRESETS}
    assert {drawing.model for drawing in drawn.values()} == {FLUX_KLEIN}
    assert [name for name, drawing in drawn.items() if drawing.eight_bit] == ["gpu16"]
    # Nothing but the name tells the two others apart.
    larger = [preset(name).model_dump(exclude={"name"}) for name in ("gpu24", "gpu80")]
    assert larger[0] == larger[1]


def _with_back_end(name: str, back_end: str) -> GenerationSettings:
    settings = preset(name)
    lift = LiftSettings.model_validate({"backend": back_end})
    return settings.model_copy(update={"lift": lift})


@pytest.mark.parametrize("size", ["gpu24", "gpu80"])
def test_the_back_end_is_all_that_a_splat_preset_changes(size: str) -> None:
    splat = preset(f"{size}-splat")
    assert splat == _with_back_end(size, "triposplat").model_copy(update={"name": f"{size}-splat"})
    assert _with_back_end(f"{size}-splat", "triposr").ladder == preset(size).ladder


def test_each_back_end_has_its_own_levels_and_weights() -> None:
    levels = [(rung.name, rung.lift_steps, rung.gaussians) for rung in preset("gpu24-splat").ladder]
    assert levels == [
        ("full", 20, 262_144),
        ("half", 10, 131_072),
        ("quarter", 6, 65_536),
        ("draft", 6, 60_000),
    ]
    assert {rung.back_end for rung in preset("gpu24-splat").ladder} == {"triposplat"}
    plain = preset("gpu24").ladder
    assert [rung.name for rung in plain] == ["full", "two_steps", "small", "draft"]
    assert {(rung.back_end, rung.lift_steps) for rung in plain} == {("triposr", 0)}
    dreamt = _with_back_end("gpu24-splat", "dreamgaussian")
    assert [(rung.name, rung.lift_steps) for rung in dreamt.ladder] == [
        *(("full", 400), ("half", 200), ("quarter", 100), ("draft", 50))
    ]
    assert dreamt.ladder == _with_back_end("gpu24", "dreamgaussian").ladder
    assert {rung.lift_slice for rung in dreamt.ladder} == {dreamt.dreamgaussian.slice}
    assert ZERO123 in dreamt.models
    assert TRIPOSPLAT not in dreamt.models
    assert TRIPOSPLAT in preset("gpu24-splat").models
    assert TRIPOSPLAT not in preset("gpu24").models
    assert TRIPOSR in preset("gpu24").models
    assert TRIPOSR not in preset("gpu24-splat").models


def test_an_unknown_back_end_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ValidationError, match="'triposr', 'triposplat' or 'dreamgaussian'"):
        _with_back_end("gpu24", "triposg")
    assert set(get_args(BackEndName)) == set(BACK_ENDS)


def test_two_levels_of_one_back_end_have_different_names_those_of_two_need_not() -> None:
    half = [{"name": "half", "backend": name} for name in ("triposplat", "dreamgaussian")]
    own = preset("gpu24").model_dump()
    assert GenerationSettings.model_validate({**own, "rungs": half}).rungs
    for second in ({"name": "half", "backend": "triposplat"}, {"name": "half"}):
        with pytest.raises(ValidationError, match="two levels are called 'half'"):
            GenerationSettings.model_validate({**own, "rungs": [half[0], second]})


def test_settings_count_as_another_variant_only_if_something_else_is_computed() -> None:
    base = preset("gpu24-splat")
    splat = base.triposplat.model_copy(update={"accept_dinov3_license": True})
    dream = base.dreamgaussian.model_copy(update={"accept_openrail_license": True})
    settings = base.model_copy(update={"triposplat": splat, "dreamgaussian": dream})
    assert variant(settings) == "gpu24-splat"
    changed = {variant(_with_back_end("gpu24", name)) for name in BACK_ENDS}
    assert len(changed) == len(BACK_ENDS)
    assert sorted(changed)[0] == "gpu24"
    assert sorted(changed)[1].startswith("gpu24 changed ")


def test_a_model_may_be_given_by_its_short_name() -> None:
    for name, model in (("klein", FLUX_KLEIN), ("schnell", FLUX_SCHNELL)):
        assert TextToImageSettings.model_validate({"model": name}).model == model
    with pytest.raises(ValidationError, match="the short names are klein and schnell"):
        TextToImageSettings.model_validate({"model": "dev"})
    cutters = {"isnet": ISNET, "birefnet": BIREFNET, "birefnet_lite": BIREFNET_LITE}
    for name, cutter in cutters.items():
        assert CutoutSettings.model_validate({"model": name}).model == cutter


def test_the_second_copy_of_the_weights_is_not_downloaded() -> None:
    """What the repository holds, by the pinned files; the copy is a file in its root."""
    names = [
        *pins.read_models(pins.PINS)[FLUX_KLEIN.repo].files,
        "flux-2-klein-4b.safetensors",
        "README.md",
    ]
    wanted = {n for n in names if any(fnmatch(n, pattern) for pattern in FLUX_KLEIN.files)}
    assert set(names) - wanted == {"flux-2-klein-4b.safetensors", "README.md"}
    assert "text_encoder/model-00002-of-00002.safetensors" in wanted


@pytest.mark.parametrize("name", GPU_PRESETS)
def test_weights_that_only_judge_allow_it_too_where_their_publisher_states_a_licence(
    name: str,
) -> None:
    settings = preset(name)
    makes = settings.model_copy(update={"scoring": ScoringSettings()}).models
    judges = [model for model in settings.models if model not in makes]
    assert [m.licence for m in judges] == ["NOASSERTION", "MIT", "BSD-3-Clause"]
    assert judges[0].name == "404-Gen/validation"


def test_the_known_settings_keep_their_names() -> None:
    for settings in PRESETS.values():
        assert settings.cutout.foreground_ratio == 0.85
        assert settings.triposr.chunk_size > 8192
        assert settings.splats.resolution > 0


def test_only_the_embedded_preset_says_what_little_it_knows() -> None:
    assert [name for name, settings in PRESETS.items() if settings.knows] == ["embedded"]
    assert preset("embedded").models == ()


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 100},
        {"steps": 0},
        {"seed": 2**32},
        {"template": "a chair"},
        {"template": "{prompt} {prompt}"},
        {"stepps": 4},
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        TextToImageSettings.model_validate(wrong)


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        preset("embedded").text_to_image.steps = 8  # type: ignore[misc]
