"""A config from outside costs neither time nor memory, whatever it holds."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from generation.lift.triposr import CheckpointError, TripoSR
from generation.lift.triposr.config import TripoSRConfig


@pytest.fixture
def folder(golden: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(golden / "tiny", tmp_path / "model"))


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(12)
)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("config.yaml", BOMB, "anchors"),
        ("config.yaml", "[" * 50_000, "more than 32"),
        ("config.yaml", "a: 1\na: 2", "the key 'a' stands twice (line 2, column 1)"),
        ("config.yaml", "# " + "x" * 1_000_000, "more than 65,536 bytes"),
        ("config.yaml", "a: \xff".encode("latin-1"), "not UTF-8"),
        ("dino_config.json", "[" * 1_000_000, "more than 32"),
        ("dino_config.json", '{"hidden_size": NaN}', "NaN is not a finite number"),
        ("dino_config.json", '{"hidden_size": ' + "9" * 100_000 + "}", "does not fit into 64 bits"),
    ],
)
def test_a_document_outside_the_bounds_is_refused_at_once(
    folder: Path, file: str, content: str | bytes, said: str
) -> None:
    (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    started = time.thread_time()  # Other processes count for nothing.
    with pytest.raises(CheckpointError) as caught:
        TripoSR.from_pretrained(folder)
    assert time.thread_time() - started < 1.0
    assert said in caught.value.problem
    assert str(folder / file) in caught.value.problem


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("cond_image_size", 10**9),
        ("tokenizer.plane_size", 100_000),
        ("backbone.num_layers", 10**12),
        ("backbone.num_attention_heads", 2**40),
        ("decoder.n_hidden_layers", 10**9),
        ("renderer.radius", "1e999"),
        ("renderer.radius", "nan"),
        ("renderer.density_bias", "-inf"),
    ],
)
def test_numbers_that_no_model_has_are_refused_before_a_network_is_built(
    folder: Path, path: str, value: object
) -> None:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    *sections, key = path.split(".")
    section: dict[str, Any] = config
    for name in sections:
        section = section[name]
    section[key] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    started = time.thread_time()  # Other processes count for nothing.
    with pytest.raises(CheckpointError, match=path) as caught:
        TripoSR.from_pretrained(folder)
    assert time.thread_time() - started < 1.0
    assert "expected a" in caught.value.problem


def test_a_number_of_layers_that_no_image_tokenizer_has_is_refused(folder: Path) -> None:
    file = folder / "dino_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_hidden_layers": 10**9}))
    with pytest.raises(CheckpointError, match="num_hidden_layers is 1000000000"):
        TripoSR.from_pretrained(folder)


def test_the_public_model_is_within_the_bounds(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(TripoSRConfig().as_dict()))
    assert TripoSRConfig.load(tmp_path / "config.yaml") == TripoSRConfig()
