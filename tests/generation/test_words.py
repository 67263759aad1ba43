"""Which words of a prompt count as understood, which as ignored, and what the networks get."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from generation.presets import PRESETS, preset
from generation.words import (
    FUNCTION_WORDS,
    LEAST_LETTERS,
    LOGGED_CHARACTERS,
    MOST_LOGGED,
    OTHER_WORDS,
    for_log,
    in_one_line,
    known_prompt,
    refusal,
    understand,
)
from scripts.train_embedded.objects import SHAPES
from scripts.train_embedded.palette import COLOURS, SYNONYMS

VOCABULARY = ("red", "grey", "car", "ring", "ring stand", "mug", "sphere", "torus")
EMBEDDED = preset("embedded").vocabulary
LONG_WORDS = sorted(word for word in EMBEDDED if len(word) > LEAST_LETTERS and word.isalpha())

prompts = st.one_of(
    st.text(max_size=60),
    st.lists(
        st.sampled_from([*EMBEDDED, "cars", "yelow", "Boxes", "dragon", "the", "horse", "sfere's"])
    ).map(" ".join),
)


@pytest.mark.parametrize(
    ("prompt", "understood", "ignored"),
    [
        ("a red car", ("red", "car"), ()),
        ("A RED Car!", ("red", "car"), ()),
        ("the red dragon on a car", ("red", "car"), ("dragon",)),
        ("a dragon", (), ("dragon",)),
        ("red, red and more red", ("red",), ("more",)),
        ("a ring stand in grey", ("ring stand", "grey"), ()),
        ("a ring-stand, a ring", ("ring stand", "ring"), ()),
        ("a stand beside a ring", ("ring",), ("stand",)),
        ("the car's red_mug", ("car", "red", "mug"), ()),
        ("the car’s 3d model of a Löwe", ("car",), ("3d", "model", "löwe")),  # noqa: RUF001
        ("cars reddish", ("car (cars)",), ("reddish",)),
        ("Two CARS, one car", ("car (cars)",), ("two",)),
        ("two ring stands", ("ring stand (ring stands)",), ("two",)),
        ("stands of rings", ("ring (rings)",), ("stands",)),
        ("一辆红色的车 🚗", (), ("一辆红色的车",)),
        ("...", (), ()),
        ("", (), ()),
    ],
)
def test_words_are_divided(
    prompt: str, understood: tuple[str, ...], ignored: tuple[str, ...]
) -> None:
    words = understand(prompt, VOCABULARY)
    assert (words.understood, words.ignored) == (understood, ignored)


@pytest.mark.parametrize(
    ("written", "known"),
    [
        ("cars", "car"),
        ("mugs", "mug"),
        ("boxes", "box"),
        ("houses", "house"),
        ("toruses", "torus"),
        ("navies", "navy"),
        ("yelow", "yellow"),
        ("yelllow", "yellow"),
        ("purpel", "purple"),
        ("roket", "rocket"),
        ("rokets", "rocket"),
        ("pyramide", "pyramid"),
        ("piramid", "pyramid"),
        ("mushrom", "mushroom"),
        ("sfere", "sphere"),
        ("spheer", "sphere"),
        ("shpere", "sphere"),
        ("spere", "sphere"),
        ("tabel", "table"),
        ("chiar", "chair"),
        ("hosue", "house"),
        ("turqoise", "turquoise"),
        ("cilinder", "cylinder"),
        ("whiter", "white"),
    ],
)
def test_plurals_and_misspellings_stand_for_a_word_of_the_shipped_networks(
    written: str, known: str
) -> None:
    words = understand(f"a {written}", EMBEDDED)
    assert (words.understood, words.ignored) == ((f"{known} ({written})",), ())
    assert words.prompt == f"a {known}"


@pytest.mark.parametrize(
    "word",
    """
    cat cart care card bar bare bore mouse mice horse hose hoses house-mouse three thee free
    think pin pint pinky rod reed bread late cable fable cape ape tape greed chain chains share
    tablet tablets ballet bald tale back sand violent write while racket tours goose bus glass
    tree-house torii gloss s es ies
    """.split(),  # noqa: SIM905
)
def test_another_english_word_stands_for_itself(word: str) -> None:
    words = understand(f"a {word}", EMBEDDED)
    assert not any("(" in shown for shown in words.understood)
    assert words.prompt == f"a {word}"


def test_the_exceptions_are_all_needed_and_none_is_a_known_word(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def taken(word: str) -> bool:
        return bool(understand(f"{word} and {word}s", EMBEDDED).understood)

    assert OTHER_WORDS.isdisjoint(EMBEDDED)
    assert [word for word in OTHER_WORDS if taken(word)] == []
    monkeypatch.setattr("generation.words.OTHER_WORDS", frozenset())
    assert [word for word in OTHER_WORDS if not taken(word)] == []


def test_a_word_between_two_known_ones_stands_for_neither() -> None:
    assert understand("steap", ("steep", "steam")).understood == ()
    assert understand("steap", ("steep",)).understood == ("steep (steap)",)


@given(prompts)
def test_the_prompt_that_the_networks_get_means_the_same_and_changes_no_more(prompt: str) -> None:
    words = understand(prompt, EMBEDDED)
    again = understand(words.prompt, EMBEDDED)
    assert again.prompt == words.prompt == known_prompt(prompt, EMBEDDED)
    assert again.understood == tuple(shown.split(" (")[0] for shown in words.understood)
    assert again.ignored == words.ignored
    assert {shown.split(" (")[0] for shown in words.understood} <= set(EMBEDDED)
    assert FUNCTION_WORDS.isdisjoint(words.ignored)
    assert (refusal(prompt, EMBEDDED) is None) == bool(words.understood)


@given(st.sampled_from(LONG_WORDS), st.data())
def test_one_slip_in_a_long_word_is_forgiven(word: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(1, len(word) - 1))
    letter = data.draw(st.sampled_from(string.ascii_lowercase))
    slips = [word[:at] + letter + word[at:], word[:at] + letter + word[at + 1 :]]
    slips += [word[:at] + word[at + 1 :], word[:-2] + word[-1] + word[-2]]
    for slip in slips:
        (shown,) = understand(slip, EMBEDDED).understood or ("",)
        # A slip may make another word, such as "racket" or "tours", or a plural of one: "orangs".
        assert shown.split(" (")[0] == word or {slip, slip.removesuffix("s")} & OTHER_WORDS


@given(prompts)
def test_nothing_is_said_and_nothing_changed_without_a_vocabulary(prompt: str) -> None:
    words = understand(prompt, ())
    assert (words.understood, words.ignored, words.prompt) == ((), (), prompt)
    assert refusal(prompt, ()) is None


def test_a_function_word_of_the_vocabulary_is_understood() -> None:
    words = understand("one of a kind", ("one",))
    assert (words.understood, words.ignored) == (("one",), ("kind",))


def test_a_prompt_without_a_known_word_is_refused_with_the_known_ones() -> None:
    reason = refusal("a \x1b[31m dragon", EMBEDDED)
    assert reason is not None
    assert all(word in reason for word in ("red", "car", "ring stand"))
    assert "dragon" not in reason
    assert len(refusal("x", [f"word{number}" for number in range(9999)]) or "") < 500


def test_a_line_of_words_is_short_and_harmless() -> None:
    assert in_one_line(("red", "car (cars)"), ()) == (
        "understood: red, car (cars); ignored: nothing"
    )
    many = in_one_line((), ["\x1b[31m", "x" * 999, *map(str, range(999))])
    assert many.startswith(r"understood: nothing; ignored: \x1b[31m, xxx")
    assert len(many) < 300
    assert many.isprintable()
    assert len(for_log([str(number) for number in range(999)])) == MOST_LOGGED + 1
    assert [len(word) for word in for_log(["x" * 999])] == [LOGGED_CHARACTERS]


def test_the_vocabulary_of_the_shipped_networks_is_what_they_were_trained_on() -> None:
    colours = {*COLOURS, *(word for words in SYNONYMS.values() for word in words)}
    objects = {name for shape in SHAPES for name in (shape.name, *shape.synonyms)}
    assert set(EMBEDDED) == colours | objects
    assert len(EMBEDDED) == len(set(EMBEDDED))


def test_presets_that_know_what_flux_knows_list_no_words() -> None:
    assert [name for name, settings in PRESETS.items() if settings.vocabulary] == ["embedded"]
