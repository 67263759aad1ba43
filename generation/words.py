"""Which words of a prompt the networks of a preset know."""

import re
from collections.abc import Collection

FUNCTION_WORDS = frozenset(
    """
    a an the and or but of in on at by to from with without for as into onto over under near beside
    is are was be it its this that these those some one i me my you your we our
    """.split()  # noqa: SIM905 - thirty quoted words are harder to read
)
"""Words without a meaning that could be drawn: neither understood nor ignored."""

_WORD = re.compile(r"([^\W_]+)(?:['’][^\W_]+)*")  # noqa: RUF001 - as people type it


def understood_words(
    prompt: str, vocabulary: Collection[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Divides the words of a prompt into those that the networks know and all others.

    A word is a run of letters and digits, in lower case, without an apostrophe and what follows it.
    It is compared as it is: "cars" is not "car".

    Args:
        prompt: Any text.
        vocabulary: Lower-case words, and phrases such as "ring stand"; the longest phrase wins.
            Empty if the networks know too many words to list: then both results are empty.

    Returns:
        The understood words and the ignored ones, each once, in the order of the prompt. Function
        words (`FUNCTION_WORDS`) that are not in the vocabulary are in neither.
    """
    if not vocabulary:
        return (), ()
    words = _WORD.findall(prompt.casefold())
    known = {tuple(phrase.split()) for phrase in vocabulary}
    longest = max(map(len, known))
    understood: dict[str, None] = {}
    ignored: dict[str, None] = {}
    position = 0
    while position < len(words):
        for length in range(min(longest, len(words) - position), 0, -1):
            phrase = words[position : position + length]
            if tuple(phrase) in known:
                understood[" ".join(phrase)] = None
                position += length
                break
        else:
            if words[position] not in FUNCTION_WORDS:
                ignored[words[position]] = None
            position += 1
    return tuple(understood), tuple(ignored)
