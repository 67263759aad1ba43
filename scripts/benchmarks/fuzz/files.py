"""Mutated files: bytes in, bytes out, a seed decides what becomes of them."""

import random
from collections.abc import Callable

_MOST_MUTATIONS = 4
_MOST_BYTES = 1 << 22
"""A mutated file is at most this large, unless the original is larger."""

_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_WORDS = (
    *(b"nan", b"inf", b"-inf", b"infinity", b"1_000", b"1e999", b"-1e-999", b"0x1p3", b"+-1"),
    *(b"1,5", b"\xef\xbc\x91", b"%s", b"\x1b[2J", b"\x00", b"\r\n", b"\n\n", b"\t", b"\xff\xfe"),
    *(b"4294967296", b"-1", b"99999999999999999999", b"end_header\n", b"A" * 5000),
)

Mutation = Callable[[random.Random, bytearray], None]


def mutate(data: bytes, seed: int) -> bytes:
    """Returns the bytes with one to four changes of the kinds below; same seed, same changes."""
    choice = random.Random(seed)
    changed = bytearray(data)
    for _ in range(choice.randint(1, _MOST_MUTATIONS)):
        choice.choice(_MUTATIONS)(choice, changed)
    return bytes(changed[: max(_MOST_BYTES, len(data))])


def _span(choice: random.Random, data: bytearray) -> tuple[int, int]:
    """Start and end of a piece; short and early ones are likelier, since headers come first."""
    start = int(len(data) * choice.random() ** 3)
    return start, min(len(data), start + int(2 ** choice.uniform(0, 10)))


def _flip_bit(choice: random.Random, data: bytearray) -> None:
    if data:
        start, _ = _span(choice, data)
        data[min(start, len(data) - 1)] ^= 1 << choice.randrange(8)


def _noise(choice: random.Random, data: bytearray) -> None:
    start, end = _span(choice, data)
    data[start:end] = choice.randbytes(end - start)


def _number(choice: random.Random, data: bytearray) -> None:
    start, _ = _span(choice, data)
    size = choice.choice((1, 2, 4, 8))
    value = choice.choice(_NUMBERS).to_bytes(8, choice.choice(("little", "big")))
    data[start : start + size] = value[:size]


def _word(choice: random.Random, data: bytearray) -> None:
    start, end = _span(choice, data)
    data[start : choice.choice((start, end))] = choice.choice(_WORDS)


def _truncate(choice: random.Random, data: bytearray) -> None:
    del data[choice.randint(0, len(data)) :]


def _cut_out(choice: random.Random, data: bytearray) -> None:
    start, end = _span(choice, data)
    del data[start:end]


def _repeat(choice: random.Random, data: bytearray) -> None:
    start, end = _span(choice, data)
    times = int(2 ** choice.uniform(0, 12))
    data[end:end] = (data[start:end] * times)[:_MOST_BYTES]


def _move(choice: random.Random, data: bytearray) -> None:
    start, end = _span(choice, data)
    piece = data[start:end]
    del data[start:end]
    at, _ = _span(choice, data)
    data[at:at] = piece


def _append(choice: random.Random, data: bytearray) -> None:
    data += choice.choice((b"\n", bytes(8), bytes(data[:200]), choice.randbytes(64)))


_MUTATIONS: tuple[Mutation, ...] = (
    _flip_bit,
    _noise,
    _number,
    _word,
    _truncate,
    _cut_out,
    _repeat,
    _move,
    _append,
)
