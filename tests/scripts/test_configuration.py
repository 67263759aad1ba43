"""docs/configuration.md and miner.example.yaml say what the programs read."""

import re
from pathlib import Path

import pytest

from generation.presets import PRESETS
from miner.mock_validator.settings import TrialSettings
from miner.settings.miner import MinerConfig
from miner.settings.model import settings_of
from miner.settings.reader import read_settings
from miner.settings.sources import variable_name
from scripts import configuration
from scripts.configuration import BEGIN, DOCUMENT, EXAMPLE, ROOT, document, example, main

TEXT = (ROOT / DOCUMENT).read_text("utf-8")


def read(*argv: str) -> MinerConfig:
    return read_settings(MinerConfig, prog="x", env_prefix="MINER", argv=argv, environ={})


def test_both_files_are_current(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0, f"{capsys.readouterr().out}; run python -m scripts.configuration --write"


def test_what_is_not_current_is_named_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(configuration, "ROOT", tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / DOCUMENT).write_text(TEXT.replace("`8091`", "`8092`"), "utf-8")
    assert main([]) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"{name} is not current: add --write" for name in (DOCUMENT, EXAMPLE)
    ]
    assert main(["--write"]) == 0
    assert (tmp_path / DOCUMENT).read_text("utf-8") == TEXT
    assert (tmp_path / EXAMPLE).read_text("utf-8") == example()
    assert main([]) == 0


def test_the_document_names_every_setting_its_variable_and_what_it_does() -> None:
    rows = {row.split("`")[1]: row for row in TEXT.splitlines() if row.startswith("| `--")}
    mine = [("MINER", settings_of(MinerConfig)), ("TRIAL", settings_of(TrialSettings))]
    for prefix, settings in mine:
        for name, setting in settings.items():
            row = f"`--{name}`<br>`{variable_name(prefix, name)}`"
            assert TEXT.count(row) == 1, name
            assert setting.field.description, name
    assert (
        "`N`, 64 to 2,048, a multiple of 16 | `128` | `512` | `512` |"
        in (rows["--text_to_image.size"])
    )
    assert "`N`, 1,025 to 65,534 |  |" in rows["--axon.external_port"]
    assert "`push\\|pull\\|gateway`" in rows["--protocol"]


def test_a_document_without_a_place_for_a_table_is_refused() -> None:
    with pytest.raises(ValueError, match="no place for the table of miner"):
        document(TEXT.replace(BEGIN.format("miner"), ""))


def test_the_example_is_loaded_as_it_is_and_with_every_line_of_it(tmp_path: Path) -> None:
    text = (ROOT / EXAMPLE).read_text("utf-8")
    config = read("--config", str(ROOT / EXAMPLE))
    assert config.generation == PRESETS["gpu80"]
    assert config == read("--preset", "gpu80")

    every = tmp_path / "miner.yaml"
    every.write_text(re.sub(r"(?m)^( *)# (?=\w+:)", r"\1", text), "utf-8")
    assert not re.search(r"(?m)^ *# \w+:", every.read_text("utf-8"))
    whole = read("--config", str(every))
    home = {"path": whole.wallet.path}  # The ~ is resolved in what is read.
    assert whole == config.model_copy(update={"wallet": config.wallet.model_copy(update=home)})
    names = {line.strip("# ").split(":")[0] for line in text.splitlines() if ":" in line}
    assert {setting.path[-1] for setting in settings_of(MinerConfig).values()} <= names
