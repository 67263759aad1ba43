import pytest

from protocol.consent import DECLARATION, decode_signature, encode_signature, signing_payload

SAID = (
    "I, as a miner on SN17, have obtained all licenses, rights and consents required to use, "
    "reproduce, modify, display, distribute and make available my submitted results to this "
    "subnet and its end users"
)


def test_the_declaration_is_the_published_one() -> None:
    assert DECLARATION == SAID


def test_the_payload_is_the_declaration_and_four_fields_without_separators() -> None:
    payload = signing_payload(
        submit_time=1_700_000_000_000_000_000,
        prompt="a blue cube é",
        validator_hotkey="5Validator",
        miner_hotkey="5Miner",
    )
    assert payload == (SAID + "1700000000000000000a blue cube é5Validator5Miner").encode()


def test_a_signature_goes_there_and_back() -> None:
    assert encode_signature(b"\x00\xff\x10") == "AP8Q"
    assert decode_signature("AP8Q") == b"\x00\xff\x10"


@pytest.mark.parametrize("text", ["AP8", "AP8Q!", "é", "AP 8Q"])
def test_what_is_not_base64_is_no_signature(text: str) -> None:
    assert decode_signature(text) is None
