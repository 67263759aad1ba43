"""The pages for people: their fenced blocks, commands, links and headings."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_FENCED = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SHELLS = ("sh", "bash", "shell", "console")


@dataclass(frozen=True)
class Page:
    """One Markdown file.

    Attributes:
        name: Its path from the root of the repository.
        text: What it says.
    """

    name: str
    text: str

    def prose(self) -> str:
        """The text without its fenced blocks."""
        return _FENCED.sub("", self.text)

    def blocks(self) -> Iterator[str]:
        """The fenced blocks for a shell."""
        for language, block in _FENCED.findall(self.text):
            if language.split(" ")[0] in _SHELLS:
                yield block

    def commands(self) -> Iterator[str]:
        """The commands in those blocks, continued lines as one, comments beside them kept."""
        for block in self.blocks():
            for line in re.sub(r"\\\n\s*", "", block).splitlines():
                if line.strip() and not line.startswith("#"):
                    yield line.strip()

    def anchors(self) -> set[str]:
        """The names by which its headings are linked to, as GitHub makes them."""
        names: dict[str, int] = {}
        for heading in re.findall(r"^#{1,6} (.+)$", self.prose(), re.MULTILINE):
            shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading.strip())
            name = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
            names[name] = names.get(name, -1) + 1
            if names[name]:
                names[f"{name}-{names[name]}"] = 0
        return set(names)

    def links(self) -> list[str]:
        """The targets of its links and pictures."""
        return re.findall(r"\]\(([^)\s]+)\)", self.prose())

    def code(self) -> list[str]:
        """Its code spans."""
        return re.findall(r"`([^`\n]+)`", self.prose())


def pages() -> list[Page]:
    """The README first, then the other pages at the root and those in `docs`, by name."""
    others = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("**/*.md")]
    paths = [ROOT / "README.md", *sorted(path for path in others if path.name != "README.md")]
    return [Page(path.relative_to(ROOT).as_posix(), path.read_text("utf-8")) for path in paths]


def page(name: str) -> Page:
    """One page.

    Args:
        name: Its path from the root of the repository.
    """
    return Page(name, (ROOT / name).read_text("utf-8"))
