"""Hotkeys of others, and their sr25519 signatures."""

import bittensor
from bittensor.utils import is_valid_ss58_address


def is_hotkey(address: str) -> bool:
    """Whether a text is an SS58 address of Bittensor: format 42, with its checksum."""
    try:
        # The library overlooks spaces around it.
        return address.isalnum() and bool(is_valid_ss58_address(address))
    except ValueError:
        return False


def verify(hotkey: str, payload: bytes, signature: bytes) -> bool:
    """Whether a signature over a payload, which is UTF-8 text, is a hotkey's."""
    try:
        # As a string: the library takes bytes one by one.
        return bool(bittensor.Keypair(ss58_address=hotkey).verify(payload.decode(), signature))
    except ValueError:
        return False
