"""Documents' token ids to rows. Pure, numpy only; nothing is dropped.

A document's ids are cut into segments of at most `segment_length`; segments are laid one after another, across documents,
into rows of `max_seq_length`. A segment that meets the end of a row is cut there and goes on in the next row. Only the
last row of a shard is filled up with padding, which no segment covers: `segment_lengths` add up to the real tokens.

N rows, T token ids in a row.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]
Offsets = NDArray[np.int64]


class Piece(NamedTuple):
    """What a segment holds: the characters `char_start` to `char_end` of a document's text.

    A character whose tokens lie on both sides of a cut belongs to both pieces' borders: one ends where the next starts.
    """

    doc_id: str
    char_start: int
    char_end: int


class Tokens(NamedTuple):
    """Ids that follow each other in one document, the character at which each starts, and where the last one ends."""

    doc_id: str
    ids: Ids
    offsets: Offsets
    char_end: int


@dataclasses.dataclass
class Rows:
    """Packed rows of one shard."""

    input_ids_NT: Ids
    segment_lengths: list[list[int]]
    pieces: list[list[Piece]]

    @property
    def tokens(self) -> int:
        """Real tokens: all but the padding."""
        return sum(map(sum, self.segment_lengths))

    def digest(self) -> str:
        """SHA-256 of the content, independent of any file format."""
        content = hashlib.sha256(np.ascontiguousarray(self.input_ids_NT, "<i4").tobytes())
        for lengths, pieces in zip(self.segment_lengths, self.pieces, strict=True):
            content.update(repr((lengths, [tuple(piece) for piece in pieces])).encode())
        return content.hexdigest()


def document(doc_id: str, ids: Ids, offsets: Offsets, chars: int, prefix: Sequence[int], eos_id: int) -> Tokens:
    """A document with what stands in front of it and its end-of-text id."""
    whole = np.concatenate([np.array(prefix, np.int32), ids, np.array([eos_id], np.int32)])
    places = np.concatenate([np.zeros(len(prefix), np.int64), offsets, np.array([chars], np.int64)])
    return Tokens(doc_id, whole, places, chars)


def pack(parts: Iterable[Tokens], max_seq_length: int, segment_length: int, pad_id: int) -> Rows:
    """Rows of the given parts, in their order.

    A part is a whole document, or one record of a source whose records make one document together; a segment never
    reaches across parts.
    """
    flat: list[Ids] = []
    segment_lengths: list[list[int]] = []
    pieces: list[list[Piece]] = []
    room = 0
    for part in parts:
        flat.append(part.ids)
        place = 0
        while place < len(part.ids):
            until = min(place + segment_length, len(part.ids))
            while place < until:
                if room == 0:
                    segment_lengths.append([])
                    pieces.append([])
                    room = max_seq_length
                end = min(until, place + room)
                char_end = int(part.offsets[end]) if end < len(part.ids) else part.char_end
                segment_lengths[-1].append(end - place)
                pieces[-1].append(Piece(part.doc_id, int(part.offsets[place]), char_end))
                room -= end - place
                place = end
    ids = np.concatenate([*flat, np.full(room, pad_id, np.int32)]) if flat else np.empty(0, np.int32)
    return Rows(ids.reshape(-1, max_seq_length), segment_lengths, pieces)
