import json
from pathlib import Path
from typing import Any

import pytest

from generation.lift.triposplat.encoder_config import PUBLIC_ENCODERS, EncoderConfig
from generation.weights.checkpoint import CheckpointError

GOLDEN = Path(__file__).parents[3] / "golden" / "triposplat"


def written(folder: Path, **sections: Any) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps({"flow": {"width": 1024}} | sections))
    return file


def test_the_default_is_the_public_model() -> None:
    public = json.loads((GOLDEN / "config.json").read_text())
    default = PUBLIC_ENCODERS.model_dump(mode="json")
    assert default["dinov3"] == public["dinov3"]
    assert default["vae"].pop("batch_norm_eps") == public["vae_batch_norm_eps"]
    assert default["vae"] == {name: public["vae"][name] for name in default["vae"]}


def test_a_written_config_reads_back_equal(tmp_path: Path) -> None:
    small = EncoderConfig.model_validate(
        {
            "dinov3": {"hidden_size": 24, "num_attention_heads": 2, "patch_size": 4},
            "vae": {"block_out_channels": (8, 16), "norm_num_groups": 4},
        }
    )
    assert EncoderConfig.load(written(tmp_path, **small.model_dump())) == small


@pytest.mark.parametrize(
    ("dinov3", "vae", "message"),
    [
        ({"depth": 3}, {}, r"dinov3\.depth is 3, expected no such key"),
        ({"hidden_size": "1280"}, {}, r"dinov3\.hidden_size is '1280', expected a valid integer"),
        ({"num_hidden_layers": 10**6}, {}, r"num_hidden_layers is 1000000, expected less than"),
        ({"hidden_act": "os.system"}, {}, r"hidden_act is 'os\.system', expected 'silu' or"),
        (
            {"num_attention_heads": 3},
            {},
            r"dinov3\.hidden_size is 1280, expected a multiple of 4 x 3 heads",
        ),
        ({}, {"block_out_channels": [32, 48]}, r"vae\.block_out_channels is \(32, 48\), .* 32"),
        ({"patch_size": 8}, {}, r"patch_size is 8, expected 16, .* side of the VAE's tokens"),
        ([], {}, r"dinov3 is \[\], expected a valid dictionary"),
    ],
)
def test_what_no_encoder_has_is_refused(
    dinov3: Any, vae: Any, message: str, tmp_path: Path
) -> None:
    file = written(tmp_path, dinov3=dinov3, vae=vae)
    with pytest.raises(CheckpointError, match=message) as caught:
        EncoderConfig.load(file)
    assert str(file) in caught.value.problem


def test_a_config_without_the_sections_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="dinov3 is missing"):
        EncoderConfig.load(written(tmp_path))
    with pytest.raises(CheckpointError, match=r"no\.json"):
        EncoderConfig.load(tmp_path / "no.json")
