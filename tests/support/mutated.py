"""Files as a crash, a full disk or a stranger leaves them: bytes in, bytes out, by a seed."""

import random

STRANGE = (
    b"\0" * 512,
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"NaN",
    b"-1",
    b"1e999",
    b"9" * 400,
    b"null",
    b"[" * 3000,
    b'{"a":' * 2000,
    b"[]",
    b"{}",
    b'"\\ud800"',
    b'"[/x]\\u001b[2J"',
    b"true",
    b"\n",
    b",",
    b'"',
    b"\\",
)


def mutated(data: bytes, seed: int) -> bytes:
    """Returns the bytes after one to four changes: cut, torn out, doubled, swapped, overwritten."""
    chance = random.Random(seed)
    for _ in range(chance.randint(1, 4)):
        a, b = sorted(chance.randint(0, len(data)) for _ in range(2))
        match chance.randrange(6):
            case 0:
                data = data[:a]
            case 1:
                data = data[:a] + data[b:]
            case 2:
                data = data[:b] + data[a:b] + data[b:]
            case 3:
                data = data[:a] + bytes(chance.randbytes(min(8, b - a))) + data[b:]
            case 4:
                data = data[:a] + chance.choice(STRANGE) + data[a:]
            case _:
                data = _value_replaced(data, a, chance.choice(STRANGE))
    return data


def _value_replaced(data: bytes, position: int, value: bytes) -> bytes:
    """Replaces the value after a colon, so that what follows is still JSON where `value` is."""
    start = data.find(b":", position) + 1
    if start == 0:
        return data
    ends = [end for mark in b",}\n" if (end := data.find(mark, start)) >= 0]
    return data[:start] + value + data[min(ends, default=len(data)) :]
