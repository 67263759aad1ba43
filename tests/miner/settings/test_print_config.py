"""--print-config, --help and --version of a program that uses the reader."""

import contextlib
import io
import tempfile
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miner.logs import program_version
from miner.settings.miner import MinerConfig
from miner.settings.reader import read_settings
from protocol.documents import read_yaml
from protocol.errors import SetupError

KEY = "hunter2-hunter2"


def read(*argv: str, **environ: str) -> MinerConfig:
    return read_settings(MinerConfig, prog="miner", env_prefix="MINER", argv=argv, environ=environ)


def printed(*argv: str, **environ: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as out, pytest.raises(SystemExit) as end:
        read(*argv, **environ)
    assert end.value.code == 0
    return out.getvalue()


words = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=20).filter(
    lambda text: not text.startswith("~")
)
SETTINGS: dict[str, st.SearchStrategy[Any]] = {
    "preset": st.sampled_from(["embedded", "gpu16", "gpu24", "gpu80"]),
    "netuid": st.integers(0, 65_535),
    "budget": st.floats(0.25, 3600),
    "transports": st.sampled_from(["push", "pull,http", "push,pull,http"]),
    "wallet.name": words,
    "wallet.path": words,
    "log.dir": words,
    "pull.preferred": words,
    "http.hosts": words,
    "http.up_axis": st.sampled_from(["+y", "-y"]),
    "axon.port": st.integers(1025, 65534),
    "axon.external_port": st.just("null") | st.integers(1025, 65534),
    "blacklist.allow_no_permit": st.booleans(),
    "device": st.sampled_from(["cpu", "cuda", "cuda:3"]),
    "text_to_image.template": st.tuples(words, words)
    .map("{prompt}".join)
    .filter(lambda text: text.count("{prompt}") == 1),
    "text_to_image.guidance": st.floats(0, 30),
    "cutout.skip_plain": st.booleans(),
    "cutout.providers": st.sampled_from(["A", "A,B", "[CPUExecutionProvider]"]),
    "splats.inset": st.floats(0, 0.1),
    "rungs": st.sampled_from(["[]", "[{name: a, steps: 2}]", "[{name: b, skip_plain: true}]"]),
    "triposr.model.repo": st.just("some/repo"),
}


@given(st.fixed_dictionaries({}, optional=SETTINGS))
@hypothesis.settings(max_examples=150)
def test_what_is_printed_reads_back_as_it_was(values: dict[str, Any]) -> None:
    if "triposr.model.repo" in values:
        values["preset"] = "gpu80"
    # The ~ of the default path is resolved once it is read.
    argv = [
        "--chain.file=neurons.json",
        "--wallet.path=/wallets",
        *(f"--{name}={value}" for name, value in values.items()),
    ]
    text = printed(*argv, "--print-config")
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        assert read("--config", file.name) == read(*argv)
        assert read_yaml(Path(file.name)).keys() == MinerConfig.model_fields.keys()


def test_every_value_says_where_it_comes_from(tmp_path: Path) -> None:
    file = tmp_path / "miner.yaml"
    file.write_text("chain.file: n.json\nlog: {level: DEBUG}\n")
    lines = printed(
        *("--config", str(file), "--text_to_image.steps", "2", "--print-config"),
        MINER_AXON_PORT="9000",
    ).splitlines()
    assert "  steps: 2  # on the command line" in lines
    assert "  size: 128  # preset embedded" in lines
    assert "  port: 9000  # in MINER_AXON_PORT" in lines
    assert f"  level: DEBUG  # in {file}" in lines
    assert "netuid: 17" in lines


def test_a_secret_is_left_out_of_what_is_printed(tmp_path: Path) -> None:
    text = printed("--chain.file=n.json", "--print-config", MINER_HTTP_API_KEY=KEY)
    assert "  # api_key: ********  # in MINER_HTTP_API_KEY\n" in text
    assert KEY not in text
    file = tmp_path / "miner.yaml"
    file.write_text(text)
    assert read("--config", str(file)).http.api_key is None


def test_what_is_wrong_is_said_and_not_printed() -> None:
    with pytest.raises(SetupError, match=r"--axon\.port cannot be '80'"):
        read("--chain.file=n.json", "--axon.port=80", "--print-config")


def test_help_shows_the_values_of_the_preset_that_is_named() -> None:
    for preset, steps, size in (("embedded", 8, 128), ("gpu80", 4, 512)):
        text = " ".join(printed("--preset", preset, "--help").split())
        assert f"klein is distilled for 4, schnell for 1 to 4. (default: {steps})" in text
        assert f"a multiple of 16, at most 1024 for klein. (default: {size})" in text
    assert "(default: two_steps, small, half, quarter, draft)" in text


def test_help_stands_in_groups_and_needs_no_valid_settings() -> None:
    lines = printed("--axon.port=80", "-h").splitlines()
    assert {"axon:", "cutout:", "wallet:", "text_to_image.model:"} <= set(lines)
    assert lines[0] == "usage: miner [settings]"


def test_the_version_is_that_of_the_package() -> None:
    assert printed("--version") == f"splat-miner {program_version()}\n"
