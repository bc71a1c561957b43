"""What a safetensors file says it holds, read from its header alone: no torch, and no memory for what it only claims.

The format (huggingface.co/docs/safetensors): 8 bytes with the header's length, little endian; the header, a JSON object of
name -> dtype, shape and place; then the tensors' bytes one after another, without a gap.
"""

import json
import os
from typing import Any, BinaryIO, NamedTuple

from raystyle.errors import ModelError

MAX_HEADER_BYTES = 16 << 20  # 100,000 tensors have some 10 MB; the format itself allows 100 MB


class Tensor(NamedTuple):
    """A stored tensor: what it is, and from which byte of the file to which."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_header(stream: BinaryIO) -> list[Tensor]:
    """Every tensor of a file that can be read and seeked, in the order of their bytes, which fill the file exactly.

    Raises `ModelError` for a header that is too long, is no JSON, or places tensors elsewhere than one after another up to
    the end of the file. Dtypes are as they stand there: any name.
    """
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    length = int.from_bytes(stream.read(8), "little")
    if size < 8 or length > size - 8:
        raise ModelError(
            f"it has {size} bytes, and its header alone needs {length + 8}: it is cut off, or no safetensors"
        )
    if length > MAX_HEADER_BYTES:
        raise ModelError(f"its header has {length} bytes, more than the {MAX_HEADER_BYTES} that are read")
    try:
        header = json.loads(stream.read(length), object_pairs_hook=_once)
        header.pop("__metadata__", None)
        tensors = [_tensor(name, entry, 8 + length) for name, entry in header.items()]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ModelError(f"its header cannot be understood: {' '.join(str(error).split())[:200]}") from error
    tensors.sort(key=lambda tensor: (tensor.start, tensor.end))
    reached = 8 + length
    for tensor in tensors:
        if tensor.start != reached or tensor.end < tensor.start:
            raise ModelError(
                f"its header puts `{tensor.name[:200]}` at bytes {tensor.start} to {tensor.end}, and the one before it ends at {reached}"
            )
        reached = tensor.end
    if reached != size:
        raise ModelError(f"its header speaks of {reached} bytes, and the file has {size}: it is cut off or grown")
    return tensors


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys stand there once: of two, another reader might take the other one."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands there twice")
    return found


def _tensor(name: str, entry: dict[str, Any], data_start: int) -> Tensor:
    shape, (start, end) = entry["shape"], entry["data_offsets"]
    for number in (*shape, start, end):
        if type(number) is not int or number < 0:
            raise ValueError(f"`{name[:200]}` has {number!r} for a size or a place")
    name.encode()  # a name that is no text is a ValueError
    return Tensor(name, str(entry["dtype"]), tuple(shape), data_start + start, data_start + end)
