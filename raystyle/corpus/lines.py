"""Texts as lines and as paragraphs, with what numpy can say about all of them at once.

A batch of texts is one string, and the same characters as numbers: what stands at a place of one stands at that place of
the other. So numpy looks at all lines together, and Python cuts out the few that somebody wants to read.

C characters; L lines of all texts; M paragraphs; D texts; I pieces of any kind.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raystyle.corpus.context import Layout
from raystyle.corpus.literals import Codes, code_points

Places = NDArray[np.int64]
Counts = NDArray[np.int32]
Flags = NDArray[np.bool_]
# What `str.strip` takes.
_WHITESPACE = np.array([chr(code).isspace() for code in range(0x10000)])
# Indents have some characters; what is longer is counted line by line.
_LONG_INDENT = 16
# Strings of so many characters are told apart as one number.
_SHORT, _CODE_BITS = 3, 21


class Pieces(NamedTuple):
    """Pieces of a string: piece i is its characters start_I[i] to start_I[i] + chars_I[i].

    `codes_C` are the string's characters, and behind the last one a line feed.
    """

    whole: str
    codes_C: Codes
    start_I: Places
    chars_I: Counts

    def text(self, index: int) -> str:
        start = int(self.start_I[index])
        return self.whole[start : start + int(self.chars_I[index])]

    def texts(self, index_I: Places | slice) -> list[str]:
        start_I, chars_I = self.start_I[index_I], self.chars_I[index_I]
        return [
            self.whole[start:end] for start, end in zip(start_I.tolist(), (start_I + chars_I).tolist(), strict=True)
        ]

    def layout(self, indent_I: Counts) -> Layout:
        first_I, last_I = self.codes_C[self.start_I], self.codes_C[np.maximum(self.start_I + self.chars_I - 1, 0)]
        filled_I = self.chars_I > 0
        return Layout(
            self.chars_I,
            indent_I,
            np.where(filled_I, first_I, 0).astype(np.int32),
            np.where(filled_I, last_I, 0).astype(np.int32),
        )


class Lines(NamedTuple):
    """Lines of texts: as they are (`raw`), and without outer whitespace (`body`). Text d has the lines bounds[d] to
    bounds[d + 1]; `left_L` characters of a line stand before its body."""

    raw: Pieces
    body: Pieces
    left_L: Counts
    bounds_D: Places


class Paragraphs(NamedTuple):
    """Lines put together where a file breaks them at a width. Paragraph m begins at line first_M[m]; `spaced_L`: where a
    space stands for the line break, between two words of an alphabet."""

    body: Pieces
    first_M: Places
    bounds_D: Places
    wrapped_L: NDArray[np.bool_]
    spaced_L: NDArray[np.bool_]


def pieces_of(texts: Sequence[str]) -> Pieces:
    """Strings as pieces of one."""
    chars_I = np.array([len(text) for text in texts], np.int32)
    whole = "\n".join(texts)
    start_I = np.append(0, np.cumsum(chars_I[:-1] + 1, dtype=np.int64)) if texts else np.empty(0, np.int64)
    return Pieces(whole, code_points(whole + "\n"), start_I, chars_I)


def split_lines(texts: Sequence[str]) -> Lines:
    """Cut texts at line feeds."""
    whole = "\n".join(texts)
    codes_C = code_points(whole + "\n")
    end_L = np.flatnonzero(codes_C == ord("\n"))
    start_L = np.insert(end_L[:-1] + 1, 0, 0)
    left_L = _whitespace(whole, codes_C, start_L, end_L, 1)
    right_L = _whitespace(whole, codes_C, start_L + left_L, end_L, -1)
    raw_chars_L = (end_L - start_L).astype(np.int32)
    bounds_D = np.cumsum([0, *(text.count("\n") + 1 for text in texts)])
    raw = Pieces(whole, codes_C, start_L, raw_chars_L)
    return Lines(raw, Pieces(whole, codes_C, start_L + left_L, raw_chars_L - left_L - right_L), left_L, bounds_D)


def _whitespace(whole: str, codes_C: Codes, start_L: Places, end_L: Places, step: int) -> Counts:
    """How many characters of whitespace each line begins with (`step` 1) or ends with (-1)."""
    count_L = np.zeros(len(start_L), np.int32)
    line_I = np.flatnonzero(start_L < end_L)
    for count in range(_LONG_INDENT):
        place_I = start_L[line_I] + count if step > 0 else end_L[line_I] - 1 - count
        line_I = line_I[_WHITESPACE.take(codes_C[place_I], mode="clip")]
        count_L[line_I] += 1
        line_I = line_I[start_L[line_I] + count + 1 < end_L[line_I]]
    for i in line_I.tolist():
        line = whole[start_L[i] : end_L[i]]
        count_L[i] = len(line) - len(line.lstrip() if step > 0 else line.rstrip())
    return count_L


def put_together(lines: Lines, hard_wraps: Callable[[Layout], NDArray[np.bool_]], min_lines: int) -> Paragraphs:
    """Paragraphs of lines, asking `hard_wraps` of each text of at least `min_lines` which lines go on in the next one."""
    chars_L = lines.body.chars_I
    wrapped_L = np.zeros(len(chars_L), bool)
    layout = lines.body.layout(lines.left_L)
    for number in np.flatnonzero(np.diff(lines.bounds_D) >= min_lines):
        start, end = lines.bounds_D[number], lines.bounds_D[number + 1]
        wrapped_L[start:end] = hard_wraps(Layout(*(column[start:end] for column in layout)))
        wrapped_L[end - 1] = False
    spaced_L = np.zeros_like(wrapped_L)
    if not wrapped_L.any():
        return Paragraphs(lines.body, np.arange(len(chars_L)), lines.bounds_D, wrapped_L, spaced_L)
    place_N = np.flatnonzero(chars_L)
    goes_on_N = wrapped_L[place_N]
    latin_N = [(code >= 0x21) & (code <= 0x7E) for code in (layout.last_L[place_N], layout.first_L[place_N])]
    spaced_L[place_N[:-1]] = (goes_on_N & latin_N[0])[:-1] & latin_N[1][1:]
    # A line, blank or not, belongs to the paragraph of the last line with text before it, where that goes on.
    before_L = np.searchsorted(place_N, np.arange(len(wrapped_L))) - 1
    first_M = np.flatnonzero(~((before_L >= 0) & goes_on_N[before_L]))
    parts = lines.body.texts(slice(None))
    for line in np.flatnonzero(spaced_L).tolist():
        parts[line] += " "
    bounds = [*first_M.tolist(), len(parts)]
    whole = "\n".join(["".join(parts[start:end]) for start, end in pairwise(bounds)])
    chars_M = np.add.reduceat(chars_L + spaced_L, first_M, dtype=np.int32)
    start_M = np.cumsum(np.append(0, chars_M[:-1] + 1), dtype=np.int64)
    body = Pieces(whole, code_points(whole + "\n"), start_M, chars_M)
    return Paragraphs(body, first_M, np.searchsorted(first_M, lines.bounds_D), wrapped_L, spaced_L)


def column(pieces: Pieces) -> pa.Array:
    """Pieces as an Arrow column. Most are indents and other strings of a few characters, the same again and again: each
    of those is made once."""
    key_I = np.zeros(len(pieces.start_I), np.int64)
    for place in range(_SHORT):
        code_I = pieces.codes_C[np.minimum(pieces.start_I + place, len(pieces.codes_C) - 1)].astype(np.int64)
        key_I |= np.where(pieces.chars_I > place, code_I + 1, 0) << _CODE_BITS * place
    long_I = np.flatnonzero(pieces.chars_I > _SHORT)
    key_I[long_I] = 0
    keys = pa.array(key_I).dictionary_encode()
    texts = [_short(key) for key in keys.dictionary.to_pylist()]
    index_I = keys.indices.to_numpy().astype(np.int64)
    index_I[long_I] = len(texts) + np.arange(len(long_I))
    return pa.array([*texts, *pieces.texts(long_I)], pa.string()).take(pa.array(index_I))


def _short(key: int) -> str:
    codes = [key >> _CODE_BITS * place & (1 << _CODE_BITS) - 1 for place in range(_SHORT)]
    return "".join(chr(code - 1) for code in codes if code)
