"""Text from outside, as a terminal, a log or an error message may show it."""

import unicodedata

_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode categories that a terminal obeys, or shows as nothing."""


def printable(text: str, limit: int = 200) -> str:
    r"""Returns a foreign text on one line, harmless to terminals and without surrogates.

    White space is folded; control characters, text direction marks and characters without a shape
    are written as `\x1b` or `\u202e`. It is still not safe as markup: show it through
    `rich.text.Text` or escape it there.

    Args:
        text: Any text.
        limit: Most characters returned; a longer text ends with "...".
    """
    # Cut first, so that a text of megabytes costs nothing.
    line = " ".join(text[: 4 * limit].split())
    shown = line[: limit + 1]
    if not shown.isprintable():
        shown = "".join(map(_escaped, shown))
    cut = len(shown) > limit or len(text) > 4 * limit
    return f"{shown[: limit - 3]}..." if cut else shown


def _escaped(character: str) -> str:
    if unicodedata.category(character) not in _UNSEEN:
        return character
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
