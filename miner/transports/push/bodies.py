"""The body of a request to the axon, which nothing but its hash is known of."""

import json

from pydantic import ValidationError

from miner.transports.push.refused import Refused
from protocol.synapses import GenerateAsset
from protocol.text import printable

HASHED = ", ".join(GenerateAsset.required_hash_fields)


def read_body(body: bytes, body_hash: str) -> GenerateAsset:
    """Returns the request in a body; takes tens of milliseconds for a large picture.

    Args:
        body: All of it.
        body_hash: The hash that the caller has signed.

    Raises:
        Refused: It is not JSON, not a `GenerateAsset`, or not what the caller has signed. The
            reason names the place and quotes nothing.
    """
    try:
        fields = json.loads(body.decode())
        if not isinstance(fields, dict):
            raise _bad(f"it is a JSON {_KINDS.get(type(fields), 'value')}, not an object")
        synapse = GenerateAsset(**fields)
        found = synapse.body_hash
    except Refused:
        raise
    except ValidationError as error:
        raise _bad(_in_words(error)) from None
    except json.JSONDecodeError as error:
        raise _bad(f"it is not JSON: {error.msg} at character {error.pos}") from None
    except UnicodeDecodeError as error:
        raise _bad(f"it is not UTF-8 at byte {error.start}") from None
    except UnicodeEncodeError:
        raise _bad("a text in it has half of a surrogate pair") from None
    except RecursionError:
        raise _bad("its values are nested too deeply") from None
    except (ValueError, TypeError, OverflowError):
        # From Bittensor's conversions, whose texts quote the value.
        raise _bad("a value in it has the wrong type or size") from None
    if found != body_hash:
        raise Refused(
            400,
            "hash_mismatch",
            f"Hash mismatch: the signed computed_body_hash is not that of the body. The caller's "
            f"class {GenerateAsset.__name__} needs required_hash_fields = ({HASHED}), in this "
            "order, as docs/push-protocol.md shows",
        )
    return synapse


_KINDS = {list: "array", str: "string", bool: "boolean", int: "number", float: "number"}


def _bad(reason: str) -> Refused:
    return Refused(400, "bad_body", f"the body cannot be used: {reason}")


def _in_words(error: ValidationError) -> str:
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    words = [
        f"{printable('.'.join(map(str, problem['loc'])), 60)}: "
        # The text of a conversion quotes the value.
        f"{'cannot be used' if problem['type'] == 'value_error' else problem['msg']}"
        for problem in problems[:3]
    ]
    more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
    return "; ".join(words) + more
