import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from miner.settings.miner import MinerConfig
from miner.settings.reader import read_settings
from protocol.errors import SetupError

ON_FILE = ("--chain.file", "neurons.json")


def read(*argv: str, **environ: str) -> MinerConfig:
    return read_settings(MinerConfig, prog="miner", env_prefix="MINER", argv=argv, environ=environ)


def written(folder: Path, text: str) -> str:
    path = folder / "miner.yaml"
    path.write_text(text)
    return str(path)


def test_without_a_chain_the_defaults_are_enough() -> None:
    config = read(*ON_FILE)
    assert (config.netuid, config.axon_port, config.budget) == (17, 8091, 30.0)
    assert config.preset_name == "embedded"
    assert config.network == "file neurons.json"


def test_the_result_cannot_be_changed() -> None:
    config = read(*ON_FILE)
    with pytest.raises(ValidationError):
        config.netuid = 1  # type: ignore[misc]


def test_the_command_line_wins_over_the_environment_over_the_file_over_the_default(
    tmp_path: Path,
) -> None:
    file = written(
        tmp_path,
        "chain.file: n.json\nnetuid: 1\naxon: {port: 2001, external_port: 2002}\nbudget: 11\n",
    )
    environ = {"MINER_AXON_PORT": "3001", "MINER_BUDGET": "12", "UNRELATED": "x"}
    config = read("--config", file, "--budget", "13", **environ)
    assert config.netuid == 1
    assert config.axon_external_port == 2002
    assert config.axon_port == 3001
    assert config.budget == 13.0
    assert config.wallet_name == "default"


def test_the_file_may_be_nested_or_flat_and_named_by_the_environment(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        "chain: {file: n.json}\npreset: embedded\nblacklist:\n  min_stake: 7\n"
        "preset.allow_embedded: true\n",
    )
    config = read(MINER_CONFIG=file)
    assert config.blacklist_min_stake == 7.0
    assert config.preset_allow_embedded is True


@pytest.mark.parametrize(
    ("argv", "expected"),
    [((), False), (("--blacklist.allow_no_permit",), True)]
    + [((f"--blacklist.allow_no_permit={word}",), word == "true") for word in ("true", "false")],
)
def test_a_flag_needs_no_value(argv: tuple[str, ...], expected: bool) -> None:
    assert read(*ON_FILE, *argv).blacklist_allow_no_permit is expected


@pytest.mark.parametrize(
    ("argv", "environ", "problem", "fix"),
    [
        (("--axon.prot", "1"), {}, "unknown argument '--axon.prot'", "did you mean --axon.port?"),
        (("--chain.fil=x",), {}, "unknown argument '--chain.fil=x'", "did you mean --chain.file?"),
        (("--budge", "1"), {}, "unknown argument '--budge'", "did you mean --budget?"),
        (("--zzzzzzz",), {}, "unknown argument '--zzzzzzz'", "--help"),
        (("stray",), {}, "unknown argument 'stray'", "--help"),
        (("--axon.port",), {}, "argument --axon.port: expected one argument", "--help"),
        (("--axon.port", "80"), {}, "--axon.port cannot be '80' (on the command line)", "--help"),
        (("--budget", "nan"), {}, "--budget cannot be 'nan'", "--budget takes"),
        (("--log.level", "LOUD"), {}, "--log.level cannot be 'LOUD'", "--log.level takes"),
        ((), {"MINER_NETUID": "x"}, "--netuid cannot be 'x' (in MINER_NETUID)", "--help"),
    ],
)
def test_mistakes_are_named_with_their_place_and_remedy(
    argv: tuple[str, ...], environ: dict[str, str], problem: str, fix: str
) -> None:
    with pytest.raises(SetupError) as caught:
        read(*ON_FILE, *argv, **environ)
    assert problem in caught.value.problem
    assert fix in caught.value.fix


@pytest.mark.parametrize(
    ("text", "problem", "fix"),
    [
        ("axon: {prot: 1}", "unknown setting 'axon.prot'", "did you mean axon.port?"),
        ("axon.port: [1]", "--axon.port cannot be '[1]' (in ", "--axon.port takes"),
        ("- a\n- b", "holds a list", "one 'name: value' a line"),
        ("a: [", "is not YAML", "correct it"),
    ],
)
def test_mistakes_in_the_file_are_named_too(
    tmp_path: Path, text: str, problem: str, fix: str
) -> None:
    with pytest.raises(SetupError) as caught:
        read(*ON_FILE, "--config", written(tmp_path, text))
    assert problem in caught.value.problem
    assert fix in caught.value.fix


def test_an_absent_file_is_named() -> None:
    with pytest.raises(SetupError, match=r"absent\.yaml cannot be read: No such file"):
        read(*ON_FILE, "--config", "absent.yaml")


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    assert read(*ON_FILE, "--config", written(tmp_path, "")) == read(*ON_FILE)


@pytest.mark.parametrize(
    ("given", "transports"),
    [
        ("push", "push"),
        ("http,push", "push,http"),
        (" pull , pull,push", "push,pull"),
        ("push,pull,http", "push,pull,http"),
    ],
)
def test_any_set_of_transports(given: str, transports: str) -> None:
    assert read("--chain.file", "n.json", "--transports", given).transports == transports
    assert read("--chain.file", "n.json").transports == "push"


def test_transports_may_be_a_list_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "miner.yaml"
    file.write_text("chain.file: n.json\ntransports: [pull, http]\n")
    assert read("--config", str(file)).transports == "pull,http"
    file.write_text("chain.file: n.json\ntransports: []\n")
    with pytest.raises(SetupError, match="is none of push, pull, http"):
        read("--config", str(file))


@pytest.mark.parametrize("given", ["", "pul", "push;pull", "push,"])
def test_an_unknown_transport_is_named(given: str) -> None:
    with pytest.raises(SetupError, match="is none of push, pull, http"):
        read("--chain.file", "n.json", "--transports", given)


def test_on_a_real_chain_a_preset_must_be_chosen() -> None:
    with pytest.raises(SetupError, match="no preset is given, and there is no default on finney"):
        read()
    assert read("--preset", "gpu24").preset_name == "gpu24"


def test_on_a_real_chain_the_untrained_preset_must_be_insisted_on() -> None:
    argv = ("--preset", "embedded", "--subtensor.network", "test")
    with pytest.raises(SetupError, match="would earn nothing on test") as caught:
        read(*argv)
    assert "--preset.allow_embedded" in caught.value.fix
    assert read(*argv, "--preset.allow_embedded").preset_name == "embedded"


def test_help_names_every_setting_and_needs_nothing_heavy() -> None:
    script = (
        "import sys\nfrom neurons.miner import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n"
        "    heavy = {'torch', 'bittensor', 'diffusers', 'transformers'} & set(sys.modules)\n"
        "    sys.exit(repr(heavy) if heavy or end.code else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    for field in MinerConfig.model_fields.values():
        assert f"--{field.alias}" in done.stdout
        assert field.description


def test_a_secret_that_cannot_be_used_is_not_repeated(tmp_path: Path) -> None:
    file = written(tmp_path, "chain.file: n.json\nhttp.api_key: 12345678\n")
    with pytest.raises(SetupError) as caught:
        read("--config", file)
    assert "--http.api_key" in str(caught.value)
    assert "12345678" not in str(caught.value)
