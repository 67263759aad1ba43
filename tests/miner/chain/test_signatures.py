"""Addresses and signatures of others, with real sr25519 keys."""

import base64

import pytest
from scalecodec.utils.ss58 import ss58_encode  # type: ignore[attr-defined]

from miner.chain.signatures import is_hotkey, verify
from tests.support.running import MINER, OTHER


def test_a_signature_is_checked_over_the_very_payload() -> None:
    payload = "déclaration".encode() * 1000
    signature = MINER.sign(payload)
    assert verify(MINER.ss58_address, payload, signature)
    assert not verify(MINER.ss58_address, payload + b"x", signature)
    assert not verify(OTHER.ss58_address, payload, signature)
    assert not verify(MINER.ss58_address, payload, b"short")
    assert not verify("no address", payload, signature)


def test_a_hotkey_is_an_address_of_format_42_with_its_checksum() -> None:
    address = MINER.ss58_address
    assert is_hotkey(address)
    changed = "1" if address[-1] != "1" else "2"
    for other in (
        ss58_encode(MINER.public_key, ss58_format=0),
        address[:-1] + changed,
        address + " ",
        "0x" + MINER.public_key.hex(),
        base64.b64encode(MINER.public_key).decode(),
        "é" * 48,
        "",
    ):
        assert not is_hotkey(other), other


@pytest.mark.parametrize("text", ["404_GATEWAY_1782345678", ""])
def test_text_and_its_bytes_are_signed_alike(text: str) -> None:
    assert verify(MINER.ss58_address, text.encode(), MINER.sign(text))
