"""JSON by the letter. What a body is refused for is in test_protocol.py."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raystyle.serving.errors import RequestError
from raystyle.serving.strict_json import MAX_DEPTH, load_json


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**63), 2**63 - 1)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(st.characters(exclude_categories=["Cs"])),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
    ),
    st.booleans(),
)
def test_what_is_json_is_read_as_it_is(value, ensure_ascii):
    assert load_json(json.dumps(value, ensure_ascii=ensure_ascii).encode()) == value


@given(st.integers(1, 2 * MAX_DEPTH))
def test_depth_is_counted(depth):
    raw = b"[" * depth + b"]" * depth
    if depth <= MAX_DEPTH:
        load_json(raw)
    else:
        with pytest.raises(RequestError):
            load_json(raw)
