"""The wording around a colour and an object, and the pairs that training never sees."""

import random
import string
from collections.abc import Iterator
from dataclasses import dataclass

from scripts.train_embedded.objects import SHAPES
from scripts.train_embedded.palette import COLOURS, SYNONYMS

COLOUR_NAMES = tuple(COLOURS)
OBJECT_NAMES = tuple(shape.name for shape in SHAPES)

ADJECTIVES = (
    "small", "big", "large", "tiny", "shiny", "matte", "glossy", "simple", "detailed",
    "realistic", "cartoon", "stylized", "smooth", "modern", "old", "new", "beautiful",
    "cute", "plain", "solid", "bright", "sports", "toy", "wooden", "plastic", "metal",
    "ceramic", "polished", "low", "poly", "high", "quality", "single", "elegant", "vintage",
)  # fmt: skip
OPENINGS = (
    "a", "a", "a", "an", "the", "one", "", "", "a photo of a", "a picture of a", "a render of a",
    "a 3d model of a", "an image of a", "3d render of a",
)  # fmt: skip
ENDINGS = (
    "", "", "", "", "on a plain background", "on a white background", "in the studio",
    "with soft light", "3d model", "isolated", "centred in view", "game asset", "with many details",
)  # fmt: skip


@dataclass(frozen=True)
class Prompt:
    """A prompt and what it asks for, as indices into `COLOUR_NAMES` and `OBJECT_NAMES`."""

    text: str
    colour: int
    shape: int


def held_out_pairs() -> frozenset[tuple[int, int]]:
    """The (colour, object) pairs kept from training: two of every object, spread over colours."""
    count = len(COLOUR_NAMES)
    return frozenset(
        ((5 * shape + offset) % count, shape)
        for shape in range(len(OBJECT_NAMES))
        for offset in (2, 9)
    )


def training_pairs() -> list[tuple[int, int]]:
    """All other (colour, object) pairs."""
    held_out = held_out_pairs()
    pairs = ((c, s) for s in range(len(OBJECT_NAMES)) for c in range(len(COLOUR_NAMES)))
    return [pair for pair in pairs if pair not in held_out]


def known_words() -> list[str]:
    """Every word that has a token of its own, sorted."""
    phrases = [*COLOUR_NAMES, *OBJECT_NAMES, *ADJECTIVES, *OPENINGS, *ENDINGS]
    phrases += [word for words in SYNONYMS.values() for word in words]
    phrases += [word for shape in SHAPES for word in shape.synonyms]
    return sorted({word for phrase in phrases for word in phrase.split()})


def write_prompt(colour: int, shape: int, rng: random.Random) -> Prompt:
    """Words a pair freely: synonyms, adjectives, made-up words, an opening and an ending."""
    colour_word = _one_of(COLOUR_NAMES[colour], SYNONYMS.get(COLOUR_NAMES[colour], ()), rng)
    shape_word = _one_of(OBJECT_NAMES[shape], SHAPES[shape].synonyms, rng)
    words = [rng.choice(OPENINGS), *_fillers(rng), colour_word, *_fillers(rng), shape_word]
    if rng.random() < 0.12:
        # "a cube in red" says the same as "a red cube".
        words = [
            rng.choice(OPENINGS),
            *_fillers(rng),
            shape_word,
            rng.choice(("in", "of")),
            colour_word,
        ]
    words.append(rng.choice(ENDINGS))
    if rng.random() < 0.1:
        words += ["with", _made_up(rng), _made_up(rng)]
    text = " ".join(word for word in words if word)
    return Prompt(_dress(text, rng), colour, shape)


def plain_prompt(colour: int, shape: int) -> Prompt:
    """The plainest wording: "a red car"."""
    return Prompt(f"a {COLOUR_NAMES[colour]} {OBJECT_NAMES[shape]}", colour, shape)


def evaluation_prompts(count: int, seed: int = 2026) -> Iterator[Prompt]:
    """Seeded prompts over the held-out pairs, which take turns; every other one plainly worded."""
    rng = random.Random(seed)
    pairs = sorted(held_out_pairs())
    rng.shuffle(pairs)
    for index in range(count):
        pair = pairs[index % len(pairs)]
        plain = (index + index // len(pairs)) % 2 == 0
        yield plain_prompt(*pair) if plain else write_prompt(*pair, rng)


def _one_of(name: str, synonyms: tuple[str, ...], rng: random.Random) -> str:
    return rng.choice(synonyms) if synonyms and rng.random() < 0.25 else name


def _fillers(rng: random.Random) -> list[str]:
    count = rng.choice((0, 0, 0, 1, 1, 2))
    return [_made_up(rng) if rng.random() < 0.25 else rng.choice(ADJECTIVES) for _ in range(count)]


def _made_up(rng: random.Random) -> str:
    return "".join(rng.choices(string.ascii_lowercase, k=rng.randint(3, 9)))


def _dress(text: str, rng: random.Random) -> str:
    """Capitals and punctuation as people write them."""
    draw = rng.random()
    if draw < 0.15:
        text = text[:1].upper() + text[1:]
    elif draw < 0.25:
        text = text.title()
    elif draw < 0.30:
        text = text.upper()
    return text + rng.choice(("", "", "", ".", "!"))
