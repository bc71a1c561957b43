"""Texts as Arrow columns of lines and of paragraphs, with what Arrow and numpy can say about all of them at once.

L lines of all texts; M paragraphs; D texts.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raystyle.corpus.context import Layout

# What `str.strip` takes, but for the line feed.
WHITESPACE = "".join(
    map(
        chr,
        [
            9,
            11,
            12,
            13,
            *range(28, 33),
            0x85,
            0xA0,
            0x1680,
            *range(0x2000, 0x200B),
            0x2028,
            0x2029,
            0x202F,
            0x205F,
            0x3000,
        ],
    )
)


class Lines(NamedTuple):
    """Lines of texts: as they are (`raw`), and without outer whitespace (`body`). Text d has the lines bounds[d] to bounds[d + 1]."""

    raw: pa.Array
    body: pa.Array
    raw_chars_L: NDArray[np.int32]
    left_L: NDArray[np.int32]
    chars_L: NDArray[np.int32]
    bounds_D: NDArray[np.int64]

    def layout(self) -> Layout:
        return layout_of(self.body, self.chars_L, self.left_L)


class Paragraphs(NamedTuple):
    """Lines put together where a file breaks them at a width. Paragraph m begins at line first_M[m]; `spaced_L`: where a
    space stands for the line break, between two words of an alphabet."""

    body: pa.Array
    first_M: NDArray[np.int64]
    chars_M: NDArray[np.int32]
    bounds_D: NDArray[np.int64]
    wrapped_L: NDArray[np.bool_]
    spaced_L: NDArray[np.bool_]


def split_lines(texts: Sequence[str]) -> Lines:
    """Cut texts at line feeds."""
    whole = pa.array(["\n".join(texts)], pa.large_string())
    raw = pc.cast(pc.split_pattern(whole, "\n").values, pa.large_string())
    left_trimmed = pc.utf8_ltrim(raw, WHITESPACE)
    body = pc.utf8_rtrim(left_trimmed, WHITESPACE)
    raw_chars_L = _numbers(pc.utf8_length(raw))
    bounds_D = np.cumsum([0, *(text.count("\n") + 1 for text in texts)])
    return Lines(raw, body, raw_chars_L, raw_chars_L - _numbers(pc.utf8_length(left_trimmed)), _numbers(pc.utf8_length(body)), bounds_D)  # fmt: skip


def put_together(lines: Lines, hard_wraps: Callable[[Layout], NDArray[np.bool_]], min_lines: int) -> Paragraphs:
    """Paragraphs of lines, asking `hard_wraps` of each text of at least `min_lines` which lines go on in the next one."""
    wrapped_L = np.zeros(len(lines.raw), bool)
    if (long := np.flatnonzero(np.diff(lines.bounds_D) >= min_lines)).size:
        layout = lines.layout()
        for number in long:
            start, end = lines.bounds_D[number], lines.bounds_D[number + 1]
            wrapped_L[start:end] = hard_wraps(Layout(*(column[start:end] for column in layout)))
            wrapped_L[end - 1] = False
    if not wrapped_L.any():
        first_M = np.arange(len(wrapped_L))
        return Paragraphs(lines.body, first_M, lines.chars_L, lines.bounds_D, wrapped_L, np.zeros_like(wrapped_L))
    place_N = np.flatnonzero(lines.chars_L)
    goes_on_N = wrapped_L[place_N]
    latin_N = [(code >= 0x21) & (code <= 0x7E) for code in (layout.last_L[place_N], layout.first_L[place_N])]
    spaced_L = np.zeros_like(wrapped_L)
    spaced_L[place_N[:-1]] = (goes_on_N & latin_N[0])[:-1] & latin_N[1][1:]
    # A line, blank or not, belongs to the paragraph of the last line with text before it, where that goes on.
    before_L = np.searchsorted(place_N, np.arange(len(wrapped_L))) - 1
    first_M = np.flatnonzero(~((before_L >= 0) & goes_on_N[before_L]))
    spaces = pc.if_else(pa.array(spaced_L), " ", "").cast(pa.large_string())
    parts = pc.binary_join_element_wise(lines.body, spaces, pa.scalar("", pa.large_string()))
    groups = pa.ListArray.from_arrays(pa.array(np.append(first_M, len(wrapped_L)), pa.int32()), parts)
    body = pc.binary_join(groups, pa.scalar("", pa.large_string()))
    bounds_D = np.searchsorted(first_M, lines.bounds_D)
    return Paragraphs(body, first_M, _numbers(pc.utf8_length(body)), bounds_D, wrapped_L, spaced_L)


def layout_of(body: pa.Array, chars_L: NDArray[np.int32], indent_L: NDArray[np.int32]) -> Layout:
    """First and last code points of lines, read from the column's UTF-8 bytes."""
    offsets = np.frombuffer(body.buffers()[1], np.int64)[body.offset : body.offset + len(body) + 1]
    if body.buffers()[2] is None or offsets[-1] == offsets[0]:
        return Layout(chars_L, indent_L, np.zeros_like(chars_L), np.zeros_like(chars_L))
    data = np.frombuffer(body.buffers()[2], np.uint8)
    start, end = offsets[:-1], offsets[1:]
    filled = end > start
    last = end - 1
    for _ in range(3):  # back over continuation bytes to the byte that starts the last character
        last = np.where(filled & (data[np.clip(last, 0, len(data) - 1)] >> 6 == 0b10), last - 1, last)
    first_L, last_L = (np.where(filled, _code_point(data, place), 0).astype(np.int32) for place in (start, last))
    return Layout(chars_L, indent_L, first_L, last_L)


def _code_point(data: NDArray[np.uint8], place: NDArray[np.int64]) -> NDArray[np.int64]:
    """The code points of UTF-8 characters that start at given bytes."""
    b0, b1, b2, b3 = (data[np.clip(place + i, 0, len(data) - 1)].astype(np.int64) for i in range(4))
    two, three = (b0 & 31) << 6 | b1 & 63, (b0 & 15) << 12 | (b1 & 63) << 6 | b2 & 63
    four = (b0 & 7) << 18 | (b1 & 63) << 12 | (b2 & 63) << 6 | b3 & 63
    return np.select([b0 < 0x80, b0 < 0xE0, b0 < 0xF0], [b0, two, three], four)


def _numbers(column: pa.Array) -> NDArray[np.int32]:
    numbers: NDArray[np.int32] = column.to_numpy(zero_copy_only=False).astype(np.int32)
    return numbers
