"""Which words of a prompt count as understood, and which as ignored."""

import pytest

from generation.presets import PRESETS, preset
from generation.words import understood_words
from scripts.train_embedded.objects import SHAPES
from scripts.train_embedded.palette import COLOURS, SYNONYMS

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


def test_the_vocabulary_of_the_shipped_networks_is_what_they_were_trained_on() -> None:
    colours = {*COLOURS, *(word for words in SYNONYMS.values() for word in words)}
    objects = {name for shape in SHAPES for name in (shape.name, *shape.synonyms)}
    vocabulary = preset("embedded").vocabulary
    assert set(vocabulary) == colours | objects
    assert len(vocabulary) == len(set(vocabulary))


def test_presets_that_know_what_flux_knows_list_no_words() -> None:
    assert [name for name, settings in PRESETS.items() if settings.vocabulary] == ["embedded"]
