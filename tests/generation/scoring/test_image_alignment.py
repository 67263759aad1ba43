"""The likeness of views and picture is the validator's, also by code of a repository."""

import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers.dynamic_module_utils
from PIL import Image
from torch import Tensor

from generation.scoring.image_alignment import Llm2Clip, image_alignment, prompt_picture
from generation.scoring.text_alignment import cosines, unit
from protocol.errors import SetupError
from tests.generation.scoring.golden import GOLDEN, floats, sequence

EXPECTED = json.loads((GOLDEN / "text_alignment/image_path.json").read_text())
PROMPT = (GOLDEN / "quality/image_2.png").read_bytes()
CPU = torch.device("cpu")

# Average pooling of 56 x 56, as the reference data's stand-in for the network.
CODE = """
import torch
from transformers import PretrainedConfig, PreTrainedModel

class PoolingConfig(PretrainedConfig):
    model_type = "pooling"

class PoolingModel(PreTrainedModel):
    config_class = PoolingConfig

    def __init__(self, config):
        super().__init__(config)
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.post_init()

    def _init_weights(self, module):
        pass

    def get_image_features(self, pixels):
        return torch.nn.functional.avg_pool2d(pixels, 56).flatten(1)
"""


class Pooling:
    def get_image_features(self, pixels: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(pixels, 56).flatten(1)


def found_cosines(eye: Llm2Clip) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    picture = torch.from_numpy(prompt_picture(PROMPT))
    reference = eye.encode(eye.prepare(picture[None]))
    return cosines(eye.encode(eye.prepare(sequence("orbit"))), reference).numpy()


@pytest.mark.parametrize(
    ("variant", "dtype", "tolerance"),
    [("float32", torch.float32, 1e-5), ("half_rounded_once", torch.float16, 0.002)],
)
def test_the_image_path(variant: str, dtype: torch.dtype, tolerance: float) -> None:
    expected = EXPECTED[variant]
    found = found_cosines(Llm2Clip(Pooling(), dtype, pixels=dtype))
    assert found == pytest.approx(floats(expected["raw_cosines"]), abs=tolerance)
    assert image_alignment(found) == pytest.approx(expected["score"], abs=tolerance)


@pytest.mark.parametrize("name", ["random_embeddings", "random_positive_embeddings"])
def test_from_embeddings_on(name: str) -> None:
    expected = EXPECTED[name]
    views = torch.from_numpy(
        floats(expected["image_embeddings_16x8_row_major"], "float32").reshape(16, 8)
    )
    prompt = torch.from_numpy(floats(expected["prompt_embedding"], "float32")[None])
    found = cosines(unit(views), unit(prompt)).numpy()
    assert found == pytest.approx(floats(expected["raw_cosines"]), abs=1e-5)
    score = float(expected["score"])
    assert image_alignment(found) == pytest.approx(score, abs=1e-5, nan_ok=True)


def test_a_negative_cosine_that_stays_is_no_number() -> None:
    values = np.full(16, 0.8, dtype=np.float32)
    values[:3] = -0.1, -0.2, -0.3
    assert np.isnan(image_alignment(values))


def test_a_transparent_picture_is_laid_on_white() -> None:
    file = BytesIO()
    Image.new("RGBA", (8, 4), (200, 100, 0, 0)).save(file, "PNG")
    picture = prompt_picture(file.getvalue())
    assert picture.shape == (4, 8, 3)
    assert (picture == 255).all()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like that of LLM2CLIP: a config that names a class in a file of code."""
    monkeypatch.setattr(
        transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules")
    )
    folder = tmp_path / "repository"
    folder.mkdir()
    classes = {"AutoConfig": "pooling.PoolingConfig", "AutoModel": "pooling.PoolingModel"}
    config = {"model_type": "pooling", "auto_map": classes}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "pooling.py").write_text(CODE)
    from safetensors.torch import save_file

    save_file({"weight": torch.ones(1)}, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_the_code_of_a_repository_computes_the_features(repository: Path) -> None:
    eye = Llm2Clip.load(repository, CPU, torch.float32)
    found = found_cosines(eye)
    assert found == pytest.approx(floats(EXPECTED["float32"]["raw_cosines"]), abs=2e-3)


def test_code_that_does_not_load_names_the_stand_in(repository: Path) -> None:
    (repository / "pooling.py").write_text("import a_module_of_another_release")
    with pytest.raises(SetupError, match=r"--scoring\.image_alignment convnext"):
        Llm2Clip.load(repository, CPU, torch.float32)
