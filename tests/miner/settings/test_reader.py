import contextlib
import subprocess
import sys
import tempfile
import time
from operator import attrgetter
from pathlib import Path

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from generation.weights.sources import FLUX_KLEIN, FLUX_SCHNELL
from miner.settings.miner import MinerConfig
from miner.settings.model import settings_of
from miner.settings.reader import read_settings
from protocol.errors import SetupError

CASES = Path(__file__).parents[2] / "golden" / "cases"
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(12)
)
ON_FILE = ("--chain.file", "neurons.json")


def read(*argv: str, **environ: str) -> MinerConfig:
    return read_settings(MinerConfig, prog="miner", env_prefix="MINER", argv=argv, environ=environ)


def written(folder: Path, text: str) -> str:
    path = folder / "miner.yaml"
    path.write_text(text)
    return str(path)


def test_without_a_chain_the_defaults_are_enough() -> None:
    config = read(*ON_FILE)
    assert (config.netuid, config.axon.port, config.budget) == (17, 8091, 30.0)
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
    assert config.axon.external_port == 2002
    assert config.axon.port == 3001
    assert config.budget == 13.0
    assert config.wallet.name == "default"


def test_the_file_may_be_nested_or_flat_and_named_by_the_environment(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        "chain: {file: n.json}\npreset: embedded\nblacklist:\n  min_stake: 7\n"
        "allow_embedded: true\n",
    )
    config = read(MINER_CONFIG=file)
    assert config.blacklist.min_stake == 7.0
    assert config.allow_embedded is True


@pytest.mark.parametrize(
    ("argv", "expected"),
    [((), False), (("--blacklist.allow_no_permit",), True)]
    + [((f"--blacklist.allow_no_permit={word}",), word == "true") for word in ("true", "false")]
    + [(("--blacklist.allow_no_permit", word), word == "True") for word in ("True", "False")],
)
def test_a_flag_needs_no_value(argv: tuple[str, ...], expected: bool) -> None:
    assert read(*ON_FILE, *argv).blacklist.allow_no_permit is expected


@pytest.mark.parametrize(
    ("argv", "environ", "problem", "fix"),
    [
        (("--axon.prot", "1"), {}, "unknown argument '--axon.prot'", "did you mean --axon.port?"),
        (("--chain.fil=x",), {}, "unknown argument '--chain.fil=x'", "did you mean --chain.file?"),
        (("--budge", "1"), {}, "unknown argument '--budge'", "did you mean --budget?"),
        (("--budget.margin=1",), {}, "unknown argument '--budget.margin=1'", "--budget_margin?"),
        (("--preset.allow_embedded",), {}, "'--preset.allow_embedded'", "--allow_embedded?"),
        (
            ("--splats.resolutoin", "64"),
            {},
            "unknown argument",
            "did you mean --splats.resolution?",
        ),
        ((), {"MINER_CUTOUT_SKIP_PLANE": "1"}, "MINER_CUTOUT_SKIP_PLANE in", "_SKIP_PLAIN?"),
        (("--zzzzzzz",), {}, "unknown argument '--zzzzzzz'", "--help"),
        (("stray",), {}, "unknown argument 'stray'", "--help"),
        (("--axon.port",), {}, "argument --axon.port: expected one argument", "--help"),
        (("--axon.port", "80"), {}, "--axon.port cannot be '80' (on the command line)", "--help"),
        (("--http.up_axis", "-y"), {}, "argument --http.up_axis: expected one", "--NAME=-VALUE"),
        (("--versoin",), {}, "unknown argument '--versoin'", "did you mean --version?"),
        (("--print_config",), {}, "unknown argument", "did you mean --print-config?"),
        (("--budget", "nan"), {}, "--budget cannot be 'nan'", "--budget takes"),
        (("--netuid", "65536"), {}, "--netuid cannot be '65536'", "--netuid takes"),
        (("--budget", "1", "--budget_margin", "1"), {}, "leaves nothing of --budget 1:", "lower"),
        (("--rungs", "[{nam: a}]"), {}, "--rungs cannot be '{'nam': 'a'}' (on the", "--help"),
        (("--rungs", "[{name: a}, {name: a}]"), {}, "two levels are called 'a'", "--rungs takes"),
        (("--rungs", "[{name: full}]"), {}, "two levels are called 'full'", "--rungs takes"),
        (("--cutout.providers", "A,"), {}, "one of the names is empty", "--cutout.providers takes"),
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
        ("text_to_image: {step: 2}", "'text_to_image.step'", "did you mean text_to_image.steps?"),
        (
            "triposr:\n  model: {rep: a/b}",
            "'triposr.model.rep'",
            "did you mean triposr.model.repo?",
        ),
        ("axon.port: [1]", "--axon.port cannot be '[1]' (in ", "--axon.port takes"),
        (
            "preset: gpu24\ntext_to_image: {model: a/b}",
            "--text_to_image.model cannot be 'a/b' (in ",
            "--text_to_image.model takes",
        ),
        (
            "text_to_image: {model: dev, model.repo: a/b}",
            "--text_to_image.model cannot be 'dev' (in ",
            "--text_to_image.model takes",
        ),
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


@pytest.mark.parametrize("name", ["preset", "chain.file", "log.dir", "http.api_key", "transports"])
def test_a_setting_without_a_value_is_refused_and_not_taken_for_the_default(
    tmp_path: Path, name: str
) -> None:
    """A shell writes one where a variable is not set. `--preset ""` would be a toy on the chain."""
    file = written(tmp_path, f"{name}: ''")
    for argv in ((f"--{name}=",), (f"--{name}", ""), ("--config", file)):
        with pytest.raises(SetupError, match=f"--{name} is empty"):
            read(*argv)
    with pytest.raises(SetupError, match="--config is empty"):
        read(*ON_FILE, "--config", "")


def test_a_short_name_is_a_model_whose_fields_may_be_changed(tmp_path: Path) -> None:
    name, revision = "text_to_image.model", "text_to_image.model.revision"
    for preset in ("gpu24", "gpu80", "embedded"):
        argv = (*ON_FILE, "--preset", preset)
        file = written(tmp_path, f"text_to_image: {{model: schnell}}\n{revision}: abc")
        of_line = read(*argv, f"--{name}", "schnell").generation.text_to_image
        of_file = read(*argv, "--config", file).generation.text_to_image
        of_environment = read(*argv, MINER_TEXT_TO_IMAGE_MODEL="schnell").generation.text_to_image
        assert of_line.model == of_environment.model == FLUX_SCHNELL
        assert of_file.model == FLUX_SCHNELL.model_copy(update={"revision": "abc"})
    assert read(*argv, f"--{name}", "klein").generation.text_to_image.model == FLUX_KLEIN


def test_hosts_of_the_file_are_names(tmp_path: Path) -> None:
    file = written(tmp_path, "http.hosts: [a.example, b.example]")
    assert read(*ON_FILE, "--config", file).http.hosts == "a.example,b.example"
    for text in ("http.hosts: [~]", "http.hosts: [{a: b}]", "http.hosts: [[a]]"):
        with pytest.raises(SetupError, match=r"--http\.hosts cannot be"):
            read(*ON_FILE, "--config", written(tmp_path, text))


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


@pytest.mark.parametrize("given", [",", "pul", "push;pull", "push,"])
def test_an_unknown_transport_is_named(given: str) -> None:
    with pytest.raises(SetupError, match="is none of push, pull, http"):
        read("--chain.file", "n.json", "--transports", given)


def test_on_a_real_chain_a_preset_must_be_chosen() -> None:
    with pytest.raises(SetupError, match="no preset is given, and there is no default on finney"):
        read()
    assert read("--preset", "gpu24").preset_name == "gpu24"


def test_on_a_real_chain_the_untrained_preset_must_be_insisted_on() -> None:
    argv = ("--preset", "embedded", "--subtensor.network", "test")
    with pytest.raises(SetupError, match="no use on test") as caught:
        read(*argv)
    assert "--allow_embedded" in caught.value.fix
    assert read(*argv, "--allow_embedded").preset_name == "embedded"


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
    for setting in settings_of(MinerConfig).values():
        assert f"{setting.flag} " in done.stdout
        assert setting.field.description


def test_a_secret_that_cannot_be_used_is_not_repeated(tmp_path: Path) -> None:
    file = written(tmp_path, "chain.file: n.json\nhttp.api_key: 12345678\n")
    with pytest.raises(SetupError) as caught:
        read("--config", file)
    assert "--http.api_key" in str(caught.value)
    assert "12345678" not in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "fix"),
    [
        ("MINER_AXON_PROT", "did you mean MINER_AXON_PORT?"),
        ("MINER_axon_port", "MINER_"),
        ("MINER_CONFIGURATION", "did you mean MINER_CONFIG?"),
        ("MINER_HTTP_APIKEY", "did you mean MINER_HTTP_API_KEY?"),
        ("MINER_ZZZZZZZZZZZZ", "unset it"),
        ("MINER_AXN_PORT", "did you mean MINER_AXON_PORT?"),
    ],
)
def test_a_misspelt_variable_is_named_and_its_value_is_not(variable: str, fix: str) -> None:
    with pytest.raises(SetupError, match=f"unknown setting {variable} in the env") as caught:
        read(*ON_FILE, **{variable: "hf_s3cret"})
    assert fix in caught.value.fix
    assert "s3cret" not in str(caught.value)


def test_variables_of_other_software_are_left_alone() -> None:
    others = {
        "MINERS_HOME": "x",
        "MINER": "x",
        "TRIAL_SEED": "1",
        "MINER_SERVICE_HOST": "10.0.0.1",
        "MINER_SERVICE_PORT": "8091",
        "MINER_SERVICE_PORT_AXON": "8091",
        "MINER_PORT": "tcp://10.0.0.1:8091",
        "MINER_PORT_8091_TCP": "tcp://10.0.0.1:8091",
        "MINER_PORT_8091_TCP_ADDR": "10.0.0.1",
        "MINER_METRICS_SERVICE_HOST": "10.0.0.1",
        "MINER_METRICS_PORT": "tcp://10.0.0.1:9090",
        "MINER_AXON_PORT": "tcp://10.0.0.1:8091",
    }
    assert read(*ON_FILE, **others) == read(*ON_FILE)


def test_a_misspelt_flag_does_not_show_a_secret() -> None:
    with pytest.raises(SetupError) as caught:
        read(*ON_FILE, "--http.api_kye=s3cret")
    assert caught.value.fix == "did you mean --http.api_key?"
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("wallet:\n  name: 007\n", "wallet.name", "007"),
        ("wallet:\n  hotkey: 0\n", "wallet.hotkey", "0"),
        ("wallet.name: no\n", "wallet.name", "no"),
        ("wallet.name: 2024-01-31\n", "wallet.name", "2024-01-31"),
        ("wallet.name: 12:30:45\n", "wallet.name", "12:30:45"),
        ("wallet.name: 0x1F\n", "wallet.name", "0x1F"),
        ("wallet.name: 1_000\n", "wallet.name", "1_000"),
        ("wallet.name: .inf\n", "wallet.name", ".inf"),
        ("models.dir: 80\n", "models.dir", "80"),
        ("log.dir: 2024\n", "log.dir", "2024"),
        ("pull.preferred: yes\n", "pull.preferred", "yes"),
    ],
)
def test_text_that_yaml_takes_for_something_else_is_to_be_quoted(
    tmp_path: Path, text: str, name: str, value: str
) -> None:
    with pytest.raises(SetupError, match=f"--{name} cannot be '{value}'") as caught:
        read(*ON_FILE, "--config", file := written(tmp_path, text))
    assert file in caught.value.problem
    assert caught.value.fix == f"put it into quotes, as {name}: '{value}'"
    quoted = text.replace(value, f"'{value}'")
    config = read(*ON_FILE, "--config", written(tmp_path, quoted))
    assert str(attrgetter(name)(config)) == value


def test_a_preset_that_does_not_exist_is_named_with_those_that_do(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="--preset cannot be '80'") as caught:
        read(*ON_FILE, "--config", written(tmp_path, "preset: 80"))
    assert caught.value.fix == "put it into quotes, as preset: '80'"
    for argv in (("--preset", "80"), ("--config", written(tmp_path, "preset: '80'"))):
        with pytest.raises(SetupError, match="no preset '80'; the presets are embedded, gpu16, g"):
            read(*ON_FILE, *argv)


@pytest.mark.parametrize("text", ["wallet.name: 1e3", "wallet.name: 5F", "wallet.name: 'no'"])
def test_other_text_is_taken_as_it_is_written(tmp_path: Path, text: str) -> None:
    config = read(*ON_FILE, "--config", written(tmp_path, text))
    assert config.wallet.name == text.split(" ")[1].strip("'")


def test_names_that_yaml_reads_as_numbers_are_refused_with_the_hint_to_quote() -> None:
    with pytest.raises(SetupError, match="takes it for a number") as caught:
        read("--config", str(CASES / "miner_numeric_names.yaml"))
    assert caught.value.fix == "put it into quotes, as wallet.name: '007'"


@pytest.mark.parametrize(
    ("text", "problem", "fix"),
    [
        (BOMB, "anchors (&) and aliases (*)", "correct it"),
        ("[" * 60_000, "more than 32", "correct it"),
        ("axon.port: 1\naxon.port: 2", "'axon.port' stands twice (line 2, column 1)", "correct it"),
        ("axon: {port: 1}\naxon.port: 2", "axon.port stands twice", "remove one"),
        ("# " + "x" * 100_000, "more than 65,536 bytes", "correct it"),
        ("netuid: " + "9" * 5000, "--netuid cannot be '9999", "--help"),
        ("budget: .nan", "--budget cannot be '.nan'", "--help"),
        ("netuid: 1e400", "--netuid cannot be '1e400'", "--help"),
        ("wallet.name: ~", "--wallet.name cannot be 'null'", "--help"),
        ("just words", "holds text, not names", "'name: value'"),
        ("wallet.name: [a]", "--wallet.name cannot be '[a]'", "--help"),
        ('wallet.name: "a\\0b"', "holds a control character", "without"),
        ('wallet.name: "a\\nb"', "holds a control character", "without"),
        ("'\\e[2J': 1", "unknown setting '", "--help"),
    ],
)
def test_what_a_settings_file_must_not_hold(
    tmp_path: Path, text: str, problem: str, fix: str
) -> None:
    started = time.thread_time()  # Other processes count for nothing.
    with pytest.raises(SetupError) as caught:
        read(*ON_FILE, "--config", written(tmp_path, text))
    assert time.thread_time() - started < 1.0
    assert problem in caught.value.problem
    assert fix in caught.value.fix
    assert len(str(caught.value)) < 1000
    assert caught.value.problem.isprintable()


def test_a_section_without_a_setting_is_empty(tmp_path: Path) -> None:
    file = written(tmp_path, "axon:\n  # port: 1\nhttp: {}\n")
    assert read(*ON_FILE, "--config", file) == read(*ON_FILE)


def test_a_folder_is_no_settings_file(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="cannot be read: Is a directory") as caught:
        read(*ON_FILE, "--config", str(tmp_path))
    assert caught.value.fix == "check --config"


@pytest.mark.parametrize("flag", ["--wallet.name", "--log.dir", "--subtensor.network", "--config"])
def test_a_name_that_is_not_utf_8_is_refused_in_plain_words(flag: str) -> None:
    with pytest.raises(SetupError) as caught:
        read(*ON_FILE, flag, "caf\udce9")
    assert "caf\\udce9" in caught.value.problem
    caught.value.problem.encode("ascii")
    if flag != "--config":
        assert "is not UTF-8" in caught.value.problem
        assert "LC_ALL=C.UTF-8" in caught.value.fix
        with pytest.raises(SetupError, match="is not UTF-8"):
            read(
                *ON_FILE,
                **{f"MINER{flag[1:]}".upper().replace(".", "_").replace("-", "_"): "\udce9"},
            )


def test_a_secret_that_is_not_utf_8_is_not_shown() -> None:
    with pytest.raises(SetupError, match=r"--http\.api_key cannot be what it is") as caught:
        read(*ON_FILE, MINER_HTTP_API_KEY="s3cret\udce9")
    assert "s3cret" not in str(caught.value)


def test_a_path_may_begin_at_home_wherever_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    file = written(tmp_path, "log.dir: ~/logs")
    assert read(*ON_FILE, "--config", file).log.dir == tmp_path / "logs"
    assert read(*ON_FILE, MINER_MODELS_DIR="~/m").models.dir == tmp_path / "m"
    assert read(*ON_FILE, "--wallet.name", "~x").wallet.name == "~x"
    with pytest.raises(SetupError, match="no such home folder"):
        read(*ON_FILE, "--log.dir", "~nobody-of-this-name/logs")


@given(st.binary(max_size=200))
@hypothesis.settings(max_examples=500)
def test_any_bytes_are_settings_or_a_short_refusal(data: bytes) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        started = time.thread_time()
        with contextlib.suppress(SetupError):
            read(*ON_FILE, "--config", file.name)
        assert time.thread_time() - started < 1.0


@pytest.mark.parametrize("more", [(), ("--preset", "embedded"), ("--preset", "gpu80")])
def test_http_alone_needs_no_chain_and_has_a_default_preset(more: tuple[str, ...]) -> None:
    config = read("--transports", "http", *more)
    assert not config.needs_chain
    assert config.preset_name == (more[1] if more else "embedded")


@pytest.mark.parametrize("transports", ["push", "pull", "push,http", "pull,http", "push,pull,http"])
def test_any_other_set_of_transports_needs_a_chain_and_its_preset(transports: str) -> None:
    assert read(*ON_FILE, "--transports", transports).needs_chain
    for preset in ((), ("--preset", "embedded")):
        with pytest.raises(SetupError):
            read("--transports", transports, *preset)


@pytest.mark.parametrize("flag", ["--subtensor.network", "--subtensor.chain_endpoint"])
@pytest.mark.parametrize(
    ("value", "hint"),
    [
        ("finey", "did you mean finney?"),
        ("Test", "did you mean test?"),
        ("mainnet", "did you mean finney?"),
        ("bittensor", "the networks are finney, test"),
        ("127.0.0.1:9944", "wss://HOST:PORT"),
        ("https://node", "wss://HOST:PORT"),
        ("ws://", "wss://HOST:PORT"),
        ("ws://node:99999", "wss://HOST:PORT"),
        ("ws://[::1", "wss://HOST:PORT"),
    ],
)
def test_a_misspelt_chain_is_found_before_it_is_called(flag: str, value: str, hint: str) -> None:
    with pytest.raises(SetupError, match=f"{flag} cannot be") as caught:
        read(flag, value, "--preset", "gpu80")
    assert hint in caught.value.problem


@pytest.mark.parametrize("value", ["finney", "test", "local", "ws://127.0.0.1:9944", "wss://a.b"])
def test_networks_and_addresses_of_nodes_are_taken(value: str) -> None:
    assert read("--subtensor.network", value, "--preset", "gpu80").network == value


@pytest.mark.parametrize("value", ["my.host.name", "1.2.3", "1.2.3.4:8091", "localhost"])
def test_the_external_address_is_one(value: str) -> None:
    with pytest.raises(SetupError, match=r"--axon\.external_ip cannot be") as caught:
        read(*ON_FILE, "--axon.external_ip", value)
    assert "IPv4 or IPv6 address" in caught.value.problem


@pytest.mark.parametrize("value", [".", "/", "..", "a/.."])
def test_the_state_of_pull_is_a_file(value: str) -> None:
    with pytest.raises(SetupError, match="it is a folder; name a file in it"):
        read(*ON_FILE, "--pull.state", value)
