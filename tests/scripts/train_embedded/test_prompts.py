import random
from collections import Counter
from pathlib import Path

import pytest

from scripts.train_embedded import text
from scripts.train_embedded.prompts import (
    COLOUR_NAMES,
    OBJECT_NAMES,
    evaluation_prompts,
    held_out_pairs,
    known_words,
    plain_prompt,
    training_pairs,
    write_prompt,
)


def test_two_colours_of_every_object_are_held_out_and_every_colour_somewhere() -> None:
    held_out = held_out_pairs()
    assert Counter(shape for _, shape in held_out) == dict.fromkeys(range(len(OBJECT_NAMES)), 2)
    assert {colour for colour, _ in held_out} == set(range(len(COLOUR_NAMES)))
    assert len(training_pairs()) + len(held_out) == len(COLOUR_NAMES) * len(OBJECT_NAMES)
    assert not held_out & set(training_pairs())


def test_the_evaluation_is_seeded_and_asks_only_for_held_out_pairs() -> None:
    prompts = list(evaluation_prompts(200))
    assert prompts == list(evaluation_prompts(200))
    assert {(prompt.colour, prompt.shape) for prompt in prompts} == held_out_pairs()
    assert sum(p == plain_prompt(p.colour, p.shape) for p in prompts) >= 100


@pytest.mark.parametrize("seed", range(20))
def test_free_wording_still_names_the_colour_and_the_object(seed: int) -> None:
    from scripts.train_embedded.objects import SHAPES
    from scripts.train_embedded.palette import SYNONYMS

    rng = random.Random(seed)
    colour, shape = rng.randrange(len(COLOUR_NAMES)), rng.randrange(len(OBJECT_NAMES))
    prompt = write_prompt(colour, shape, rng).text.lower()
    colours = (COLOUR_NAMES[colour], *SYNONYMS.get(COLOUR_NAMES[colour], ()))
    assert any(word in prompt for word in colours)
    assert any(word in prompt for word in (OBJECT_NAMES[shape], *SHAPES[shape].synonyms))


def test_tokenizers_know_every_word_and_load_again(tmp_path: Path) -> None:
    from transformers import CLIPTokenizer, T5TokenizerFast

    for tokenizer, kind, marks in (
        (text.clip_tokenizer(), CLIPTokenizer, 2),
        (text.t5_tokenizer(), T5TokenizerFast, 1),
    ):
        tokenizer.save_pretrained(tmp_path / kind.__name__)
        loaded = kind.from_pretrained(tmp_path / kind.__name__)
        words = [word for word in known_words() if word.isalpha()]
        assert all(len(loaded(word).input_ids) == 1 + marks for word in words)
        for sentence in ("a detailed red sports car", "Two RED Cars, 红色 of ünkown häuser"):
            assert loaded(sentence).input_ids == tokenizer(sentence).input_ids
            assert max(loaded(sentence).input_ids) < len(loaded)
