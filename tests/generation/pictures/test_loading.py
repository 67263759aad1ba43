"""The model of a folder is recognised by its index, and nothing else is loaded."""

import json
from pathlib import Path

import pytest

from generation.pictures.flux1 import Flux1
from generation.pictures.flux2 import Flux2Klein
from generation.pictures.loading import load_text_to_image
from generation.presets import preset
from generation.weights.store import ModelPaths
from protocol.errors import SetupError

SETTINGS = preset("embedded").text_to_image


def test_the_shipped_folder_holds_a_flux1(embedded_paths: ModelPaths) -> None:
    found = load_text_to_image(embedded_paths.text_to_image, SETTINGS, "cpu")
    assert type(found) is Flux1


def test_a_klein_is_recognised_by_its_index(tiny_klein: Path) -> None:
    assert type(load_text_to_image(tiny_klein, SETTINGS, "cpu")) is Flux2Klein


@pytest.mark.parametrize(
    "content", [{"_class_name": "os.system"}, {"_class_name": ["FluxPipeline"]}, {}, []]
)
def test_a_pipeline_that_is_not_known_is_named_with_those_that_are(
    tmp_path: Path, content: object
) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps(content))
    with pytest.raises(SetupError, match="it runs FluxPipeline and Flux2KleinPipeline") as caught:
        load_text_to_image(tmp_path, SETTINGS, "cpu")
    if isinstance(content, dict):
        assert f"pipeline {str(content.get('_class_name'))!r}" in caught.value.problem


def test_a_folder_without_an_index_is_named(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=f"{tmp_path}.*") as caught:
        load_text_to_image(tmp_path, SETTINGS, "cpu")
    assert "fetch_models" in caught.value.fix
