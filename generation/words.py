"""Which words of a prompt the networks of a preset know, and the prompt as they are handed it."""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from protocol.text import printable

FUNCTION_WORDS = frozenset(
    """
    a an the and or but of in on at by to from with without for as into onto over under near beside
    is are was be it its this that these those some one i me my you your we our
    """.split()  # noqa: SIM905 - thirty quoted words are harder to read
)
"""Words without a meaning that could be drawn: neither understood nor ignored."""

OTHER_WORDS = frozenset(
    """
    blank blocs blown brawn brock brownie brows chain chaise choir clair greed greek greet gulden
    horse housed orang pyralid racket rickets rochet rocked rocker sphene starlet
    tabla tabled tablet tolus tonus tophus torts tours violent while whine whiten write
    """.split()  # noqa: SIM905
)
"""English words one letter away from a word of the shipped networks: not misspellings of it."""

LEAST_LETTERS = 5
"""A shorter word is not taken for a misspelling: "tale" is no table, and "bule" may be anything."""

MOST_NAMED = 400
"""Characters of the list of known words in a refusal."""

MOST_LOGGED = 16
"""Words of a prompt that a log holds at most, each cut after `LOGGED_CHARACTERS`."""
LOGGED_CHARACTERS = 32

_WORD = re.compile(r"([^\W_]+)(?:['’][^\W_]+)*")  # noqa: RUF001 - as people type it
_TAKES_ES = ("s", "x", "z", "ch", "sh", "o")


@dataclass(frozen=True)
class Understanding:
    """What the networks make of the words of a prompt.

    Attributes:
        understood: The words that they know, each once, in the order of the prompt: "red", or
            "car (cars)" where the prompt has another form of it.
        ignored: The other words, in lower case, each once. Function words (`FUNCTION_WORDS`) are
            in neither.
        prompt: What the networks are handed: the prompt with known words in place of their other
            forms.
    """

    understood: tuple[str, ...]
    ignored: tuple[str, ...]
    prompt: str


def understand(prompt: str, vocabulary: Collection[str]) -> Understanding:
    """Divides the words of a prompt into those that the networks know and all others.

    A word is a run of letters and digits, without an apostrophe and what follows it; upper and
    lower case are the same. It means a known word if it is that word, its regular plural, or a
    misspelling of either: the same first letter, and one letter added, left out or changed, or two
    neighbours swapped, where "ph" may be written "f". Both then have at least `LEAST_LETTERS`
    letters, only one known word is that near, and the written one is neither one of `OTHER_WORDS`
    nor the plural of one.

    Args:
        prompt: Any text.
        vocabulary: Lower-case words, and phrases such as "ring stand"; the longest phrase wins.
            Empty if the networks know too many words to list: then nothing is understood or
            ignored, and the prompt stays as it is.
    """
    if not vocabulary:
        return Understanding((), (), prompt)
    known = _known(frozenset(vocabulary))
    matches = list(_WORD.finditer(prompt))
    written = [match[1].casefold() for match in matches]
    forms = [known.form_of(word) for word in written]
    understood: dict[str, str] = {}
    ignored: dict[str, None] = {}
    pieces, end, position = [], 0, 0
    while position < len(forms):
        length = known.phrase_at(forms, position)
        if length == 0:
            if written[position] not in FUNCTION_WORDS:
                ignored[written[position]] = None
            position += 1
            continue
        there = slice(position, position + length)
        phrase, as_written = " ".join(forms[there]), " ".join(written[there])
        shown = phrase if phrase == as_written else f"{phrase} ({as_written})"
        understood.setdefault(phrase, shown)
        for match, word, form in zip(matches[there], written[there], forms[there], strict=True):
            if word != form:
                pieces += [prompt[end : match.start(1)], form]
                end = match.end(1)
        position += length
    handed = "".join([*pieces, prompt[end:]])
    return Understanding(tuple(understood.values()), tuple(ignored), handed)


def known_prompt(prompt: str, vocabulary: Collection[str]) -> str:
    """Returns the prompt as the networks are handed it; see `Understanding.prompt`."""
    return understand(prompt, vocabulary).prompt


def refusal(prompt: str, vocabulary: Collection[str]) -> str | None:
    """Returns why a prompt cannot be drawn: it has no known word; None if it has one.

    The sentence names the known words. With an empty vocabulary nothing is refused.
    """
    if not vocabulary or understand(prompt, vocabulary).understood:
        return None
    words = ", ".join(sorted(vocabulary))
    return f"the networks know no word of the prompt; use some of {printable(words, MOST_NAMED)}"


def in_one_line(understood: Sequence[str], ignored: Sequence[str]) -> str:
    """Returns "understood: red, car; ignored: dragon", harmless to terminals and logs."""
    return f"understood: {listed(understood)}; ignored: {listed(ignored)}"


def listed(words: Sequence[str]) -> str:
    """Returns the words with commas, as a terminal may show them; "nothing" if there are none."""
    return printable(", ".join(for_log(words))) or "nothing"


def for_log(words: Sequence[str]) -> list[str]:
    """Returns the first `MOST_LOGGED` words, cut, with "..." for the rest."""
    shown = [printable(word, LOGGED_CHARACTERS) for word in words[:MOST_LOGGED]]
    return [*shown, "..."] if len(words) > MOST_LOGGED else shown


class _Known:
    """A vocabulary, taken apart into its phrases and their words."""

    def __init__(self, vocabulary: Collection[str]) -> None:
        self._phrases = {tuple(phrase.split()) for phrase in vocabulary}
        self._words = {word for phrase in self._phrases for word in phrase}
        self._longest = max(map(len, self._phrases))
        self._by_letter: dict[str, list[str]] = {}
        for word in sorted(self._words):
            self._by_letter.setdefault(word[0], []).append(word)

    def phrase_at(self, words: Sequence[str], position: int) -> int:
        """Returns the number of words of the longest phrase that begins there; 0 if none does."""
        for length in range(min(self._longest, len(words) - position), 0, -1):
            if tuple(words[position : position + length]) in self._phrases:
                return length
        return 0

    def form_of(self, word: str) -> str:
        """Returns the known word that a word means, or the word itself."""
        forms = [word, *_singulars(word)]
        for form in forms:
            if form in self._words:
                return form
        if not FUNCTION_WORDS.isdisjoint(forms) or not OTHER_WORDS.isdisjoint(forms):
            return word
        near = {
            known
            for form in forms
            for known in self._by_letter.get(form[:1], ())
            if _is_misspelt(form, known)
        }
        return near.pop() if len(near) == 1 else word


_known = lru_cache(maxsize=8)(_Known)


def _singulars(word: str) -> Iterator[str]:
    """What a word is the regular plural of, if it is one."""
    if word.endswith("ies"):
        yield f"{word[:-3]}y"
    if word.endswith("es") and word[:-2].endswith(_TAKES_ES):
        yield word[:-2]
    if word.endswith("s") and not word.endswith("ss"):
        yield word[:-1]


def _is_misspelt(word: str, known: str) -> bool:
    if min(len(word), len(known)) < LEAST_LETTERS:
        return False
    return _one_edit(word, known) or _one_edit(word.replace("ph", "f"), known.replace("ph", "f"))


def _one_edit(one: str, other: str) -> bool:
    """Whether at most one letter differs, is missing or added, or two neighbours are swapped."""
    short, long = sorted((one, other), key=len)
    if len(long) - len(short) > 1:
        return False
    at = 0
    while at < len(short) and short[at] == long[at]:
        at += 1
    if len(short) < len(long):
        return short[at:] == long[at + 1 :]
    swapped = short[at : at + 2] == long[at : at + 2][::-1]
    return short[at + 1 :] == long[at + 1 :] or (swapped and short[at + 2 :] == long[at + 2 :])
