"""Links between the pages lead somewhere."""

import pytest

from tests.support.pages import ROOT, Page, page, pages

PAGES = pages()


@pytest.mark.parametrize("shown", PAGES, ids=lambda shown: shown.name)
def test_every_link_to_a_file_or_heading_leads_there(shown: Page) -> None:
    folder = (ROOT / shown.name).parent
    for link in shown.links():
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, anchor = link.partition("#")
        target = (folder / path).resolve() if path else ROOT / shown.name
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        if anchor:
            name = target.relative_to(ROOT).as_posix()
            assert anchor in page(name).anchors(), link


def test_anchors_are_those_of_github() -> None:
    text = "# A `b` & [c](d.md)!\n\n## Twice\n\n## Twice\n\n```sh\n# no heading\n```\n"
    assert Page("x.md", text).anchors() == {"a-b--c", "twice", "twice-1"}


def test_every_page_in_docs_is_linked_from_another_one() -> None:
    linked = {
        (ROOT / other.name).parent.joinpath(link.partition("#")[0]).resolve()
        for other in PAGES
        for link in other.links()
        if "://" not in link and link.partition("#")[0]
    }
    for shown in PAGES:
        if shown.name.startswith("docs/"):
            assert ROOT / shown.name in linked, shown.name
