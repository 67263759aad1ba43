"""What a PromQL query asks for: names of series, their labels and the values of those."""

import re
from dataclasses import dataclass

_MATCHERS = r"\{([^{}]*)\}"
_MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_SERIES = re.compile(rf"\b([a-zA-Z_:][\w:]*)\b(?!\s*\()\s*(?:{_MATCHERS})?")
_WORDS = {"and", "or", "unless", "bool", "offset"}


@dataclass(frozen=True)
class Used:
    """What a query uses.

    Attributes:
        series: Names.
        matched: (series, label, value): for each value that a matcher names.
        grouped: Labels that are aggregated or joined by.
    """

    series: frozenset[str]
    matched: frozenset[tuple[str, str, str]]
    grouped: frozenset[str]


def used(query: str) -> Used:
    """Reads a query with Grafana's variables, or without."""
    grouped = {
        label.strip()
        for labels in _GROUPING.findall(query)
        for label in labels.split(",")
        if label.strip()
    }
    bare = re.sub(r"\[[^\]]*\]", "", _GROUPING.sub(" ", query))
    series, matched = set(), set()
    for name, matchers in _SERIES.findall(bare):
        if name in _WORDS:
            continue
        series.add(name)
        for label, _, values in _MATCHER.findall(matchers or ""):
            matched |= {(name, label, value) for value in values.split("|")}
    return Used(frozenset(series), frozenset(matched), frozenset(grouped))
