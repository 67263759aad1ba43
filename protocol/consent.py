"""What a miner of subnet 17 declares and signs with every result that it submits.

The declaration is part of the wire format: validators verify the signature over exactly these
bytes, so neither the text nor the order of the fields may change.
"""

import base64
import binascii

DECLARATION = (
    "I, as a miner on SN17, have obtained all licenses, rights and consents required to use, "
    "reproduce, modify, display, distribute and make available my submitted results to this "
    "subnet and its end users"
)
"""The consent that every submitted result carries; it is true only of models that allow it."""


def signing_payload(
    *, submit_time: int, prompt: str, validator_hotkey: str, miner_hotkey: str
) -> bytes:
    """Returns the bytes that the miner's hotkey signs.

    Args:
        submit_time: Nanoseconds since the epoch, as sent in `SubmitResults.submit_time`.
        prompt: The task's prompt exactly as it came: the text, or the base64 of the image.
        validator_hotkey: SS58 address of the validator that assigned the task.
        miner_hotkey: SS58 address of the signer.
    """
    return f"{DECLARATION}{submit_time}{prompt}{validator_hotkey}{miner_hotkey}".encode()


def encode_signature(signature: bytes) -> str:
    """Returns a signature in its wire form, base64."""
    return base64.b64encode(signature).decode("ascii")


def decode_signature(text: str) -> bytes | None:
    """Returns the bytes of a signature in its wire form, or None if it is not base64."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
