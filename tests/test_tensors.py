import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raystyle import tensors
from raystyle.errors import ModelError


def file_of(header, data: bytes = b"") -> io.BytesIO:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return io.BytesIO(len(raw).to_bytes(8, "little") + raw + data)


def entry(start, end, dtype="F32", shape=(1,)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


@given(st.dictionaries(st.text(min_size=1), st.lists(st.integers(0, 3), max_size=3), max_size=5))
def test_what_safetensors_writes_is_read_as_it_is(shapes):
    import numpy as np
    from safetensors.numpy import save

    shapes.pop("__metadata__", None)
    arrays = {
        name: np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape) for name, shape in shapes.items()
    }
    data = save(arrays, metadata={"format": "np"})
    found = tensors.read_header(io.BytesIO(data))
    assert {tensor.name: tensor.shape for tensor in found} == {name: tuple(shape) for name, shape in shapes.items()}
    for tensor in found:
        assert tensor.dtype == "F32" and data[tensor.start : tensor.end] == arrays[tensor.name].tobytes()


@pytest.mark.parametrize(
    ("stream", "reason"),
    [
        (io.BytesIO(b""), "0 bytes"),
        (io.BytesIO(b"\x02\0\0"), "cut off"),
        (io.BytesIO((9).to_bytes(8, "little") + b"{}"), "cut off"),
        (file_of(b"[]"), "cannot be understood"),
        (file_of(b"\xff\xff"), "cannot be understood"),
        (file_of({"a": 1}), "cannot be understood"),
        (file_of({"a": {"dtype": "F32"}}), "cannot be understood"),
        (file_of({"a": entry(0, 4, shape=[1.5])}, b"1234"), "1.5 for a size"),
        (file_of({"a": entry(0, 4, shape=[True])}, b"1234"), "True for a size"),
        (
            file_of(b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "a": 1}', b"1234"),
            "stands there twice",
        ),
        (file_of({"a": entry(4, 8)}, b"12345678"), "ends at"),
        (file_of({"a": entry(0, 8), "b": entry(4, 12)}, b"x" * 12), "ends at"),
        (file_of({"a": entry(0, 4)}, b"12345"), "cut off or grown"),
        (file_of({"a": entry(0, 4)}, b"123"), "cut off or grown"),
    ],
)
def test_a_header_that_lies_is_refused(stream, reason):
    with pytest.raises(ModelError, match=reason):
        tensors.read_header(stream)


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(data):
    for stream in (io.BytesIO(data), file_of(data)):
        try:
            tensors.read_header(stream)
        except ModelError:
            continue
