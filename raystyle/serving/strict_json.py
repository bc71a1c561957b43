"""JSON by the letter, from whoever sends it: what Python's own reader lets through beyond it is refused."""

import json
import math
from typing import Any, NoReturn

from raystyle.serving.errors import refuse

MAX_DEPTH = 32
MAX_KEYS = 256  # of one object
SHOWN_CHARS = 60


def load_json(raw: bytes) -> Any:
    """JSON by the letter: UTF-8, no NaN, numbers that fit into 64 bits, not nested too deeply, no object of many keys, no halves
    of surrogates. Raises `RequestError` `invalid_value`."""
    try:
        value = json.loads(
            raw.decode("utf-8"), parse_constant=_no_constant, parse_int=_int_of_64_bits, parse_float=_finite
        )
    except UnicodeDecodeError as error:
        refuse(f"the body is not UTF-8: byte {error.start} does not belong there")
    except json.JSONDecodeError as error:
        refuse(f"the body is no JSON: {error.msg} at character {error.pos}")
    except RecursionError:
        refuse(f"the body is nested more than {MAX_DEPTH} deep")
    _check_shape(value)
    if b"\\u" in raw:
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            refuse("the body has half a surrogate pair, which no text has")
    return value


def _no_constant(name: str) -> NoReturn:
    refuse(f"the body has {name}, which JSON has not")


def _int_of_64_bits(digits: str) -> int:
    # int() of a very long one is refused by Python; 20 characters hold any of 64 bits.
    value = int(digits) if len(digits) <= 20 else None
    if value is None or not -(2**63) <= value < 2**63:
        refuse(f"the body has the whole number {digits[:SHOWN_CHARS]}, which does not fit into 64 bits")
    return value


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        refuse(f"the body has the number {digits[:SHOWN_CHARS]}, which is too large")
    return value


def _check_shape(value: Any) -> None:
    level, depth = [value], 0
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        if depth > MAX_DEPTH:
            refuse(f"the body is nested more than {MAX_DEPTH} deep")
        keys = max((len(item) for item in level if isinstance(item, dict)), default=0)
        if keys > MAX_KEYS:
            refuse(f"the body has an object of {keys} keys, where {MAX_KEYS} are taken")
        level = [item for parent in level for item in (parent.values() if isinstance(parent, dict) else parent)]
