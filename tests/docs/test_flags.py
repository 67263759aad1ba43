"""Every flag on the pages for people exists in the program that it is shown with."""

import contextlib
import importlib.util
import io
import re
import sys

import pytest

from scripts.cli import PROGRAMS
from tests.support.pages import Page, pages

OTHER_PROGRAMS = {
    "scripts.train_embedded": "scripts.train_embedded.__main__",
    "scripts.train_embedded.evaluate": "scripts.train_embedded.evaluate",
    "scripts.train_embedded.train_scorer": "scripts.train_embedded.train_scorer",
}
"""Programs without a subcommand, and the modules that hold them."""

FLAG = re.compile(r"(?<![\w-])--[a-z][\w.-]*[a-z0-9_]")
STARTED = re.compile(r"(?:python -m ([\w.]+)|(?:^|bin/|miner )splat-miner ([a-z-]+))(.*)")
TRIPOSR = {
    *("--pretrained-model-name-or-path", "--chunk-size", "--mc-resolution"),
    *("--foreground-ratio", "--no-remove-bg"),
}
"""Flags of TripoSR's own program, which docs/configuration.md translates."""
PAGES = [shown for shown in pages() if shown.name != "CHANGELOG.md"]
"""The changelog names flags of earlier versions."""


def flags_of(module: str) -> set[str]:
    """The flags in the help of a program, subcommands included."""
    shown = help_of(module, "--help")
    if module == "scripts.benchmark":
        for name in re.findall(r"^    ([a-z]+) ", shown, re.MULTILINE):
            shown += help_of(module, name, "--help")
    return set(FLAG.findall(shown))


def help_of(module: str, *arguments: str) -> str:
    out = io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.suppress(SystemExit),
    ):
        patch.setattr(sys, "argv", [module, *arguments])
        importlib.import_module(OTHER_PROGRAMS.get(module, module)).main()
    return out.getvalue()


@pytest.fixture(scope="module")
def flags() -> dict[str, set[str]]:
    """The flags of every program, by its module."""
    modules = [program.module for program in PROGRAMS.values()] + list(OTHER_PROGRAMS)
    found = {module: flags_of(module) for module in modules}
    assert all(found.values())
    return found


def started(shown: Page) -> list[tuple[str, list[str]]]:
    """Our programs in the commands and code spans of a page, with the flags that they are given."""
    calls = []
    for text in [*shown.commands(), *shown.code()]:
        for module, name, rest in STARTED.findall(text):
            if name and name not in PROGRAMS:
                assert name.startswith("-"), text
                continue
            rest = re.split(r" #| && | \| ", rest)[0]
            calls.append((module or PROGRAMS[name].module, FLAG.findall(rest)))
    return calls


@pytest.mark.parametrize("shown", PAGES, ids=lambda shown: shown.name)
def test_a_program_takes_the_flags_that_it_is_shown_with(
    shown: Page, flags: dict[str, set[str]]
) -> None:
    for module, given in started(shown):
        if module in flags:
            assert set(given) <= flags[module], module
        else:
            assert importlib.util.find_spec(module) is not None, module


@pytest.mark.parametrize("shown", PAGES, ids=lambda shown: shown.name)
def test_a_flag_that_stands_alone_is_one_of_some_program(
    shown: Page, flags: dict[str, set[str]]
) -> None:
    known = TRIPOSR.union(*flags.values())
    for code in shown.code():
        if code.startswith("--"):
            for flag in FLAG.findall(code):
                assert flag in known, code


def test_flags_are_read_from_the_help_of_every_benchmark(flags: dict[str, set[str]]) -> None:
    assert {"--minutes", "--requests", "--count"} <= flags["scripts.benchmark"]
    assert {"--axon.port", "--wallet.name", "--help"} <= flags["neurons.miner"]


def test_a_misspelt_flag_on_a_page_is_found(flags: dict[str, set[str]]) -> None:
    page = Page("x.md", "```sh\npython -m neurons.miner --axon.prot 1 \\\n    --preset x\n```\n")
    assert started(page) == [("neurons.miner", ["--axon.prot", "--preset"])]
    assert "--axon.prot" not in flags["neurons.miner"]
