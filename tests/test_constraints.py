"""`constraints.txt` names one version of every package of every extra, and they fit each other."""

import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PINNED = {
    canonicalize_name(name): version
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if not line.startswith("#")
    for name, _, version in [line.partition("==")]
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def is_pinned(requirement: Requirement) -> bool:
    version = PINNED.get(canonicalize_name(requirement.name))
    return version is not None and requirement.specifier.contains(version)


def test_every_package_of_every_extra_is_pinned_at_a_version_that_is_allowed() -> None:
    named = [*PROJECT["dependencies"], *(entry for extra in EXTRAS.values() for entry in extra)]
    assert [entry for entry in named if not is_pinned(Requirement(entry))] == []


def test_what_the_pinned_packages_need_is_pinned_at_versions_that_they_take() -> None:
    """Of those that are installed; gsplat and torch's libraries for CUDA mostly are not."""
    checked, unfit = 0, []
    for name in PINNED:
        try:
            needed = [Requirement(line) for line in requires(name) or ()]
        except PackageNotFoundError:
            continue
        checked += 1
        unfit += [
            f"{name} needs {requirement}"
            for requirement in needed
            if (requirement.marker is None or requirement.marker.evaluate({"extra": ""}))
            and not is_pinned(requirement)
        ]
    assert unfit == []
    assert checked > 100


def test_torchvision_is_left_to_the_extra_that_scores() -> None:
    named = {name for name, packages in EXTRAS.items() if "torchvision" in str(packages)}
    assert named == {"score", "dev"}
