"""What the reader offers to programs of other kinds: arguments without a name, no environment."""

from pathlib import Path
from typing import Annotated

import pytest
from pydantic import Field, SecretStr
from pydantic_settings import CliPositionalArg

from miner.settings.model import ANY_NAME
from miner.settings.reader import Part, Settings, read_settings
from protocol.errors import SetupError


class Shade(Part):
    """How it looks."""

    strength: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    """How much."""
    token: SecretStr = SecretStr("")
    """Who may."""


class AlbumSettings(Settings):
    """Makes an album."""

    files: CliPositionalArg[tuple[str, ...]]
    """What is in it."""
    out: Path = Path("album")
    """Where it goes."""
    as_json: bool = Field(False, validation_alias="json")
    """Say it as JSON."""
    tags: tuple[str, ...] = ()
    """Any."""
    shade: Shade = Shade()


class OneFile(Settings):
    """Shows a file."""

    file: CliPositionalArg[Path]
    """Which one."""


def read(*argv: str, **environ: str) -> AlbumSettings:
    return read_settings(AlbumSettings, prog="album", argv=argv, environ=environ)


def test_arguments_without_a_name_stand_anywhere_and_are_kept_as_they_are() -> None:
    odd = ["a, b", "[1]", '"q"', "{x}", "007", "null", "a\\b", "true"]
    album = read("--json", *odd[:3], "--out", "o", *odd[3:])
    assert list(album.files) == odd
    assert (album.as_json, album.out) == (True, Path("o"))
    assert read("--", "--json").files == ("--json",)
    assert read_settings(OneFile, prog="x", argv=["a,b.ply"], environ={}).file == Path("a,b.ply")


def test_a_missing_or_surplus_argument_is_named() -> None:
    with pytest.raises(SetupError, match="FILES is missing"):
        read("--json")
    with pytest.raises(SetupError, match="FILE is missing"):
        read_settings(OneFile, prog="x", argv=[], environ={})
    with pytest.raises(SetupError, match="unknown argument 'b'"):
        read_settings(OneFile, prog="x", argv=["a", "b"], environ={})
    with pytest.raises(SetupError, match=r"FILE cannot be .* it holds a control character"):
        read_settings(OneFile, prog="x", argv=["a\x1b[2J"], environ={})


def test_a_users_own_file_may_be_called_anything_but_nothing() -> None:
    class AnyFile(Settings):
        """Shows a file."""

        file: Annotated[CliPositionalArg[Path], ANY_NAME]
        """Which one."""

    for name in ("a\x1b[2J", "caf\udce9", "line\nend"):
        assert read_settings(AnyFile, prog="x", argv=[name], environ={}).file == Path(name)
    with pytest.raises(SetupError, match="FILE is empty"):
        read_settings(AnyFile, prog="x", argv=[""], environ={})


def test_help_names_the_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read("--help")
    out = capsys.readouterr().out
    assert out.startswith("usage: album [settings] [FILES ...]\n\nMakes an album.\n")
    assert "What is in it." in out
    assert "the environment" not in out


def test_a_program_without_a_prefix_does_not_read_the_environment() -> None:
    assert read("x", ALBUM_OUT="y", OUT="z", CONFIG="w", _OUT="v").out == Path("album")
    chosen = read_settings(
        AlbumSettings, prog="x", env_prefix="ALBUM", argv=["x"], environ={"ALBUM_OUT": "y"}
    )
    assert chosen.out == Path("y")


def test_a_value_made_in_code_ignores_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("out", "elsewhere")
    monkeypatch.setenv("OUT", "elsewhere")
    assert AlbumSettings(files=("a",)).out == Path("album")


@pytest.mark.parametrize(
    ("argv", "tags"),
    [(("--tags", "a"), None), (("--tags", "[a, 'b, c']"), ("a", "b, c")), ((), ())],
)
def test_a_list_is_written_in_brackets(argv: tuple[str, ...], tags: tuple[str, ...] | None) -> None:
    if tags is None:
        with pytest.raises(SetupError, match=r"--tags cannot be 'a' .on the command line"):
            read("x", *argv)
    else:
        assert read("x", *argv).tags == tags


def test_a_group_is_not_a_setting() -> None:
    for argv in (("--shade",), ("--shade={}",), ('--shade={"token": "s3cret"}',)):
        with pytest.raises(SetupError, match="unknown argument '--shade") as caught:
            read("x", *argv)
        assert "did you mean --shade." in caught.value.fix
        assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("word", ["true", "yes", "on", "false", "no", "off"])
def test_a_flag_takes_a_word_and_nothing_else_that_follows(word: str) -> None:
    assert read("x", "--json", word).as_json is (word in ("true", "yes", "on"))
    assert read("--json", "truth").files == ("truth",)
