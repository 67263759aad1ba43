"""Presets are frozen values that say what they load and under which licence."""

import pytest
from pydantic import ValidationError

from generation.presets import PRESETS, preset
from generation.settings import GenerationSettings, ScoringSettings, TextToImageSettings
from generation.weights.sources import FLUX_SCHNELL
from protocol.errors import SetupError


def test_an_unknown_preset_is_answered_with_the_known_ones() -> None:
    with pytest.raises(SetupError, match=r"'gpu8'.*embedded, gpu24, gpu80"):
        preset("gpu8")


@pytest.mark.parametrize("name", PRESETS)
def test_each_preset_carries_its_name_and_survives_json(name: str) -> None:
    settings = preset(name)
    assert settings.name == name
    assert GenerationSettings.model_validate_json(settings.model_dump_json()) == settings


@pytest.mark.parametrize("name", ["gpu24", "gpu80"])
def test_weights_allow_commercial_use_and_gated_ones_come_first(name: str) -> None:
    settings = preset(name)
    makes = settings.model_copy(update={"scoring": ScoringSettings()}).models
    assert {model.licence for model in makes} <= {"Apache-2.0", "MIT"}
    assert len(makes) == 3
    assert makes[0] == settings.models[0] == FLUX_SCHNELL


@pytest.mark.parametrize("name", ["gpu24", "gpu80"])
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
