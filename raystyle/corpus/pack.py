"""Documents' token ids to rows. Pure, numpy only; nothing is dropped.

A document is cut into chunks, a chunk into segments of at most `segment_length`, and chunks are laid into rows of
`max_seq_length`:

- `concat`: in order, each row filled to its last place. A document that meets the end of a row is cut there and goes on
  in the next one with a new segment. Only the last row of a shard has padding.
- `best_fit`: a document is cut into chunks of at most a row, and a chunk stays whole: the longest first, each goes into
  the fullest row that still has room for it (Ding et al. 2024, "Fewer Truncations Improve Language Modeling"). Rows end
  in what padding is left.

Where a cut need not be at a row's end it is sought within a tolerance: after the last line break, else after the last
sentence. Padding is covered by no segment: lengths of segments add up to the real tokens.

N rows, T token ids in a row, C chunks, S segments.
"""

import bisect
import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from raystyle.tokens import SENTENCE_END, Ids, Offsets

Mode = Literal["concat", "best_fit"]
# Longer than a sentence's marks get: how far around a window they are looked at, to see them whole.
_MARKS = 8


class Piece(NamedTuple):
    """What a segment holds: the characters `char_start` to `char_end` of a document's text.

    A character whose tokens lie on both sides of a cut belongs to both pieces' borders: one ends where the next starts.
    """

    doc_id: str
    char_start: int
    char_end: int


class Part(NamedTuple):
    """A text whose tokens follow each other: a whole document, or one record of a source whose records make a document.

    `batches` are its ids and the characters of `text` at which they start, as `tokens.stream` gives them; `prefix` and
    `suffix` are ids in front of and behind them; `char_start` is the place of `text` in its document.
    """

    doc_id: str
    text: str
    batches: Iterable[tuple[Ids, Offsets]]
    prefix: Sequence[int] = ()
    suffix: Sequence[int] = ()
    char_start: int = 0


@dataclasses.dataclass
class Rows:
    """Packed rows of one shard. Row n has the segments `first_N1[n]` to `first_N1[n + 1]`."""

    input_ids_NT: Ids
    first_N1: NDArray[np.int32]
    lengths_S: NDArray[np.int32]
    doc_ids_S: list[str]
    char_starts_S: NDArray[np.int64]
    char_ends_S: NDArray[np.int64]

    @property
    def tokens(self) -> int:
        """Real tokens: all but the padding."""
        return int(self.lengths_S.sum())

    @property
    def padding(self) -> int:
        return self.input_ids_NT.size - self.tokens

    @property
    def segment_lengths(self) -> list[list[int]]:
        """By row."""
        lengths = self.lengths_S.tolist()
        return [lengths[a:b] for a, b in zip(self.first_N1[:-1], self.first_N1[1:], strict=True)]

    @property
    def pieces(self) -> list[list[Piece]]:
        """By row, beside `segment_lengths`."""
        pieces = list(map(Piece, self.doc_ids_S, self.char_starts_S.tolist(), self.char_ends_S.tolist()))
        return [pieces[a:b] for a, b in zip(self.first_N1[:-1], self.first_N1[1:], strict=True)]

    def digest(self) -> str:
        """SHA-256 of the content, independent of any file format."""
        content = hashlib.sha256(json.dumps([self.input_ids_NT.shape, self.doc_ids_S]).encode())
        for values in (self.input_ids_NT, self.first_N1, self.lengths_S, self.char_starts_S, self.char_ends_S):
            # Native order and widths are little-endian and fixed wherever this runs; said, for the digest rests on it.
            content.update(np.ascontiguousarray(values, values.dtype.newbyteorder("<")).data)
        return content.hexdigest()


def pack(
    parts: Iterable[Part],
    *,
    max_seq_length: int,
    segment_length: int,
    pad_id: int,
    mode: Mode = "concat",
    boundary_tolerance: float = 0.1,
) -> Rows:
    """Rows of the given parts. A segment never reaches across parts.

    `boundary_tolerance` is the share of `segment_length` (of `max_seq_length` for chunks of `best_fit`) by which a cut
    may come earlier than it must to fall on a boundary; 0 looks for none.
    """
    flat = bytearray()  # int32: grows in place, where a list of arrays would be held twice to join them
    sizes: list[int] = []
    segments: list[tuple[int, int, int, int]] = []  # chunk, tokens, and the characters where it starts and ends
    doc_ids: list[str] = []
    room = max_seq_length
    for part in parts:
        char = part.char_start
        if mode == "concat":
            chunks = _chunks(part, room, max_seq_length, 0)
        else:
            chunks = _chunks(part, max_seq_length, max_seq_length, boundary_tolerance)
        for ids, offsets in chunks:
            for start, end in _segments(part.text, offsets, segment_length, boundary_tolerance):
                char_end = part.char_start + int(offsets[end])
                segments.append((len(sizes), end - start, char, char_end))
                doc_ids.append(part.doc_id)
                char = char_end
            flat += ids.tobytes()
            sizes.append(len(ids))
            room = (room - len(ids)) or max_seq_length
    sizes_C = np.array(sizes, np.int64)
    if mode == "concat":
        # Chunks fill rows, so the row of a chunk's last token is the row of all of it.
        row_C = (np.cumsum(sizes_C) - 1) // max_seq_length
        flat += np.full(-int(sizes_C.sum()) % max_seq_length, pad_id, np.int32).tobytes()
        input_ids_NT = np.frombuffer(flat, np.int32).reshape(-1, max_seq_length)
    else:
        row_C = best_fit(sizes, max_seq_length)
        input_ids_NT = _laid(np.frombuffer(flat, np.int32), sizes_C, row_C, max_seq_length, pad_id)
    chunk_S, lengths_S, starts_S, ends_S = np.array(segments, np.int64).reshape(-1, 4).T
    row_S = row_C[chunk_S]
    order = np.argsort(row_S, kind="stable")
    return Rows(
        input_ids_NT,
        np.searchsorted(row_S[order], np.arange(len(input_ids_NT) + 1)).astype(np.int32),
        lengths_S[order].astype(np.int32),
        [doc_ids[i] for i in order],
        starts_S[order],
        ends_S[order],
    )


def best_fit(sizes: Sequence[int], capacity: int) -> NDArray[np.int64]:
    """The row of each of C chunks: longest first, each into the row with the least room that is enough, else a new one.

    Equal chunks go in their order, equal rows by age. Rows are then numbered by their first chunk, so that they come in
    the documents' order, as far as there is one. O(C log C) but for moving pointers.
    """
    rooms: list[tuple[int, int]] = []  # of rows that are not full: (room, row), sorted
    row_C = np.empty(len(sizes), np.int64)
    count = 0
    for chunk in np.argsort(-np.array(sizes, np.int64), kind="stable").tolist():
        place = bisect.bisect_left(rooms, (sizes[chunk], 0))
        if place < len(rooms):
            room, row = rooms.pop(place)
        else:
            room, row, count = capacity, count, count + 1
        row_C[chunk] = row
        if room > sizes[chunk]:
            bisect.insort(rooms, (room - sizes[chunk], row))
    _, first_N = np.unique(row_C, return_index=True)
    return np.argsort(np.argsort(first_N))[row_C]


def _laid(ids: Ids, sizes_C: NDArray[np.int64], row_C: NDArray[np.int64], max_seq_length: int, pad_id: int) -> Ids:
    """Chunks put into their rows, in order."""
    rows = int(row_C.max(initial=-1)) + 1
    input_ids_NT = np.full((rows, max_seq_length), pad_id, np.int32)
    filled = [0] * rows
    place = 0
    for size, row in zip(sizes_C.tolist(), row_C.tolist(), strict=True):
        input_ids_NT[row, filled[row] : filled[row] + size] = ids[place : place + size]
        filled[row] += size
        place += size
    return input_ids_NT


def _chunks(part: Part, first: int, length: int, tolerance: float) -> Iterator[tuple[Ids, Offsets]]:
    """A part's tokens in chunks of at most `length`, the first of at most `first`. Offsets have one entry more than ids:
    where the next token starts, or the text ends."""
    ids, offsets = np.empty(0, np.int32), np.empty(0, np.int64)
    before = np.array(part.prefix, np.int32), np.zeros(len(part.prefix), np.int64)
    behind = np.array(part.suffix, np.int32), np.full(len(part.suffix), len(part.text), np.int64)
    limit = first
    for more_ids, more_offsets in chain([before], part.batches, [behind]):
        ids, offsets = np.concatenate([ids, more_ids]), np.concatenate([offsets, more_offsets])
        place = 0
        while len(ids) - place > limit:
            end = place + _cut(part.text, offsets[place:], limit, tolerance)
            yield ids[place:end], offsets[place : end + 1]
            place, limit = end, length
        ids, offsets = ids[place:], offsets[place:]
    if len(ids):
        yield ids, np.append(offsets, len(part.text))


def _segments(text: str, offsets: Offsets, length: int, tolerance: float) -> Iterator[tuple[int, int]]:
    """Where the segments of a chunk start and end, counted in its tokens."""
    place, last = 0, len(offsets) - 1
    while last - place > length:
        end = place + _cut(text, offsets[place:], length, tolerance)
        yield place, end
        place = end
    yield place, last


def _cut(text: str, offsets: Offsets, limit: int, tolerance: float) -> int:
    """How many tokens to take, at most `limit` and at most that share fewer: up to the last line break that ends with a
    token, else the last sentence that does, else `limit`."""
    earliest = max(1, limit - int(limit * tolerance))
    if earliest == limit:
        return limit
    window = offsets[earliest - 1 : limit + 1]
    # Not at the text's very end: its end-of-text id would be left alone.
    low, high = int(window[1]), min(int(window[-1]), len(text) - 1)
    for ends in (_paragraph_ends, _sentence_ends):
        for end in ends(text, low, high):
            at = int(np.searchsorted(window, end))
            # Not inside a token, and not between two tokens of one character.
            if at > 0 and window[at] == end:
                return earliest - 1 + at
    return limit


def _paragraph_ends(text: str, low: int, high: int) -> Iterator[int]:
    """The places from `low` to `high` behind line breaks, the last first; a run of line breaks is one."""
    end = high
    while end := text.rfind("\n", max(low - 1, 0), end) + 1:
        if not text.startswith("\n", end):
            yield end
        end -= 1


def _sentence_ends(text: str, low: int, high: int) -> list[int]:
    """The places from `low` to `high` behind sentences and what closes after them, the last first."""
    found = SENTENCE_END.finditer(text, max(low - _MARKS, 0), high + _MARKS)
    return [end for match in found if low <= (end := match.end()) <= high][::-1]
