"""Which words of a prompt count as understood, and which as ignored."""

import pytest

from generation.words import understood_words

VOCABULARY = ("red", "grey", "car", "ring", "ring stand", "mug")


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
        ("cars reddish", (), ("cars", "reddish")),
        ("一辆红色的车 🚗", (), ("一辆红色的车",)),
        ("...", (), ()),
        ("", (), ()),
    ],
)
def test_words_are_divided(
    prompt: str, understood: tuple[str, ...], ignored: tuple[str, ...]
) -> None:
    assert understood_words(prompt, VOCABULARY) == (understood, ignored)


def test_nothing_is_said_without_a_vocabulary() -> None:
    assert understood_words("a red dragon", ()) == ((), ())


def test_a_function_word_of_the_vocabulary_is_understood() -> None:
    assert understood_words("one of a kind", ("one",)) == (("one",), ("kind",))
