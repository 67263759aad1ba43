"""The stand-in networks appear in the cache folder whole or not at all."""

from pathlib import Path

import pytest

from generation import embedded
from generation.model_store import ModelPaths
from protocol.errors import SetupError


def _files(paths: ModelPaths) -> dict[str, bytes]:
    folder = paths.triposr.parent
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_they_lie_in_the_layouts_of_the_real_models(embedded_paths: ModelPaths) -> None:
    files = _files(embedded_paths)
    for name in (
        "flux/model_index.json",
        "flux/transformer/config.json",
        "flux/text_encoder_2/config.json",
        "flux/tokenizer/tokenizer_config.json",
        "flux/scheduler/scheduler_config.json",
        "flux/vae/config.json",
        "background/background.onnx",
        "triposr/config.yaml",
    ):
        assert name in files
    assert sum(map(len, files.values())) < 4_000_000


def test_they_are_written_once_and_again_when_incomplete(
    tmp_path: Path, embedded_paths: ModelPaths
) -> None:
    paths = embedded.ensure(tmp_path)
    # The same seed gives the same bytes, whatever else ran in between.
    assert _files(paths) == _files(embedded_paths)
    written = paths.background.stat().st_mtime_ns
    assert embedded.ensure(tmp_path) == paths
    assert paths.background.stat().st_mtime_ns == written

    config = paths.text_to_image / "model_index.json"
    config.write_bytes(config.read_bytes()[:10])
    assert _files(embedded.ensure(tmp_path)) == _files(embedded_paths)
    assert [folder.name for folder in (tmp_path / "embedded").iterdir()] == [
        paths.triposr.parent.name
    ]


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "embedded").write_text("a file where a folder must be")
    with pytest.raises(SetupError, match="XDG_CACHE_HOME"):
        embedded.ensure(tmp_path)
