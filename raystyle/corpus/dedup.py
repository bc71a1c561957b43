"""Which texts are the same as, or nearly the same as, another: the editions of a novel, a chapter found in two books.

A text's key is its letters, Han characters and digits alone, in one width, one case and simplified script, so editions
that differ in punctuation, spacing or script have one key. Keys that are equal are exact duplicates. Otherwise two texts
are as similar as the sets of five-character pieces of their keys: the Jaccard similarity, estimated with MinHash
(Broder, "On the resemblance and containment of documents", 1997). The sketch is rensa's, after Dahlgaard, Knudsen and
Thorup, "Fast Similarity Sketching" (FOCS 2017): the share of equal slots is the estimate, its standard error at
similarity s at most about sqrt(s (1 - s) / 128), 0.04 at 0.7.

Nothing compares all pairs. A sketch is cut into BANDS; two texts meet if they agree in a whole band, which happens with
probability 1 - (1 - s^4)^32 (Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets", 3.4):

    similarity s  0.1    0.2    0.3    0.4    0.5    0.6    0.7     0.8
    they meet     0.003  0.05   0.23   0.56   0.87   0.988  0.9998  1 - 5e-8

The whole is four pure steps, each of which may run where its data is: `sign` texts; for every band, and for the digest,
`shared` finds who meets whom over the whole corpus; `choose` decides. First among documents, then among the chapters of
the documents that stay, which is how a novel inside an anthology is found.

Arrays: C characters of keys, U units (texts or chapters, in corpus order), P slots of a sketch, B bands, M meetings,
E edges.
"""

import functools
import hashlib
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

# Shorter keys take no part in near-duplicate search: too few pieces to tell a repetition from a common phrase.
NEAR_DOCUMENT_CHARACTERS = 50
CHAPTER_CHARACTERS = 200
THRESHOLD = 0.7
RELATED = 0.5
SLOTS, BANDS, PIECE = 128, 32, 5
_SEED = 42
# Kept units of one meeting that a newcomer is compared with: bounds the work where many unlike texts share a band.
_MOST_COMPARED = 64
# Characters signed at once, which bounds memory at some 20 bytes each; and pieces hashed at once, which fit in cache.
_BATCH, _BLOCK = 1 << 20, 1 << 14

Order = Literal["longest", "first"]
Ints = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]
Sketches = npt.NDArray[np.uint32]


class Signatures(NamedTuple):
    """digests_U16: 16 bytes of BLAKE2b of the key; characters_U: its length; sketches_UP: see above."""

    digests_U16: npt.NDArray[np.uint8]
    characters_U: Ints
    sketches_UP: Sketches


class Meetings(NamedTuple):
    """Units that agree in a value with another unit, and the value; 64 bits that no two bands share by chance."""

    units_M: Ints
    values_M: Hashes


class Choice(NamedTuple):
    """kept_U: the unit that stands for each, itself if it stays; similarity_U: to that one. related_E2: pairs that stay
    and met, at least `related` similar, with which `clusters` finds what must not be held out apart."""

    kept_U: Ints
    similarity_U: npt.NDArray[np.float64]
    related_E2: Ints


def sign(texts: Sequence[str], chapter_ends: Sequence[Sequence[int]] = ()) -> tuple[Signatures, Signatures]:
    """Signatures of texts, and of the chapters inside them, in order.

    `chapter_ends` gives for each text where its chapters end, in characters, ascending, the last its length. A signature
    depends on its own text (or chapter) alone. A key of less than five characters has a sketch of zeros.
    """
    ends = chapter_ends or [()] * len(texts)
    signed = [_sign(texts[batch], ends[batch]) for batch in _batches(texts)] or [_sign((), ())]
    wholes, parts = (Signatures(*map(np.concatenate, zip(*level, strict=True))) for level in zip(*signed, strict=True))
    return wholes, parts


def bands(sketches_UP: Sketches) -> Hashes:
    """values_UB: units with equal slots in a band, and they alone, have its value."""
    slots_UBR = sketches_UP.reshape(len(sketches_UP), BANDS, SLOTS // BANDS)
    values_UB = np.arange(BANDS, dtype=np.uint64) * _weights()[-1] + np.zeros((len(sketches_UP), 1), np.uint64)
    for row in range(SLOTS // BANDS):
        values_UB += slots_UBR[:, :, row] * _weights()[row]
    return _mix(values_UB)


def shared(units_U: Ints, values_U: Hashes) -> Meetings:
    """Of units and their values in one band, those whose value some other unit has too; in the order given."""
    _, inverse_U, counts = np.unique(values_U, return_inverse=True, return_counts=True)
    meets_U = counts[inverse_U] > 1
    return Meetings(units_U[meets_U], values_U[meets_U])


def choose(
    signatures: Signatures,
    meetings: Iterable[Meetings],
    order: Order = "longest",
    threshold: float = THRESHOLD,
    related: float = RELATED,
) -> Choice:
    """Decide who stays, from the best on: the one with the longest key, or the first in the corpus; the first of equals.

    A unit with the same digest as a better one shares its lot. Any other is dropped if a unit that already stays, and
    that it meets, is at least `threshold` similar; it goes to the most similar one. So every dropped unit names a better
    one that stays, and none is dropped for being like something dropped; and of two that meet and both stay, the
    estimate is below the threshold, unless more than 64 units that stay share that one band, where only the best 64
    are compared. A unit with an empty key always stays. Without meetings only exact duplicates go.

    `meetings` and the choice number units as `signatures` does. A caller may give it only those that meet at all (in
    the band of digests too), renumbered in corpus order, and must not give chapters too short to take part.
    """
    count = len(signatures.characters_U)
    kept_U, similarity_U = np.arange(count), np.ones(count)
    first_U = _first_of_equals(signatures)
    met = [Meetings(np.empty(0, np.int64), np.empty(0, np.uint64)), *meetings]
    units_M, values_M = (np.concatenate(column) for column in zip(*met, strict=True))
    mine_M = np.flatnonzero(first_U[units_M] == units_M)
    mine_M = mine_M[np.argsort(units_M[mine_M], kind="stable")]
    starts = np.searchsorted(units_M[mine_M], np.arange(count + 1)).tolist()
    ranking = np.argsort(-signatures.characters_U, kind="stable") if order == "longest" else np.arange(count)
    place = {unit: place for place, unit in enumerate(ranking.tolist()) if starts[unit] < starts[unit + 1]}
    staying: dict[int, list[int]] = {}
    edges: list[tuple[int, int]] = []
    for unit in place:
        values = values_M[mine_M[starts[unit] : starts[unit + 1]]].tolist()
        found = {rival for value in values for rival in staying.get(value, ())}
        if found:
            rivals = np.array(sorted(found, key=place.__getitem__))  # of equally similar ones the better is met first
            estimates = estimate(signatures.sketches_UP[rivals], signatures.sketches_UP[unit])
            if estimates.max() >= threshold:
                kept_U[unit], similarity_U[unit] = rivals[estimates.argmax()], estimates.max()
                continue
            edges += [(rival, unit) for rival in rivals[estimates >= related].tolist()]
        for value in values:
            if len(there := staying.setdefault(value, [])) < _MOST_COMPARED:
                there.append(unit)
    return Choice(kept_U[first_U], similarity_U[first_U], np.array(edges, np.int64).reshape(-1, 2))


def estimate(one_UP: Sketches, other_UP: Sketches) -> npt.NDArray[np.float64]:
    """Jaccard similarity of the pieces of two keys, by their sketches."""
    return np.asarray((one_UP == other_UP).mean(axis=-1))


def clusters(count: int, edges_E2: Ints) -> Ints:
    """For each of `count` units the first unit of its connected component."""
    parent = list(range(count))

    def root(unit: int) -> int:
        while parent[unit] != unit:
            parent[unit] = unit = parent[parent[unit]]
        return unit

    for one, other in edges_E2.tolist():
        low, high = sorted((root(one), root(other)))
        parent[high] = low
    return np.array([root(unit) for unit in range(count)], np.int64)


def _batches(texts: Sequence[str]) -> Iterator[slice]:
    """Stretches of texts with at most _BATCH characters, or of one longer text."""
    start = size = 0
    for index, text in enumerate(texts):
        if size and size + len(text) > _BATCH:
            yield slice(start, index)
            start, size = index, 0
        size += len(text)
    if start < len(texts):
        yield slice(start, len(texts))


def _sign(texts: Sequence[str], chapter_ends: Sequence[Sequence[int]]) -> tuple[Signatures, Signatures]:
    raw_C = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32)
    folded_C = _key_table().take(raw_C, mode="clip")
    in_key_C = folded_C != 0
    codes_C = folded_C[in_key_C]
    del raw_C, folded_C
    starts = np.cumsum([0, *map(len, texts)]).tolist()
    cuts = [start + end for start, ends in zip(starts[:-1], chapter_ends, strict=True) for end in ends]
    hashes_C = _piece_hashes(codes_C)

    def signatures(raw_ends: list[int]) -> Signatures:
        counts = (np.count_nonzero(in_key_C[a:b]) for a, b in pairwise([0, *raw_ends]))
        return _sign_units(codes_C, hashes_C, np.fromiter(counts, np.int64, len(raw_ends)))

    # Texts first, for signing chapters changes the hashes at their ends.
    return signatures(starts[1:]), signatures(cuts)


def _sign_units(codes_C: npt.NDArray[np.uint32], hashes_C: Hashes, characters_U: Ints) -> Signatures:
    """Signatures of consecutive stretches of keys; changes `hashes_C` at the end of each."""
    from rensa import RMinHash

    bounds = np.cumsum([0, *characters_U])
    # A piece that would reach into the next unit becomes the last whole one once more: a set does not mind.
    ends_W = bounds[1:][characters_U >= PIECE]
    for back in range(1, PIECE):
        hashes_C[ends_W - back] = hashes_C[ends_W - PIECE]
    rows = RMinHash.digest_matrix_from_flat_token_hashes(hashes_C[: bounds[-1]], bounds.astype(np.uint64), SLOTS, _SEED)
    sketches_UP = np.array(rows.to_rows(), np.uint32).reshape(-1, SLOTS)
    sketches_UP[characters_U < PIECE] = 0
    digests = [hashlib.blake2b(codes_C[a:b].tobytes(), digest_size=16).digest() for a, b in pairwise(bounds)]
    return Signatures(np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 16), characters_U, sketches_UP)


def _piece_hashes(codes_C: npt.NDArray[np.uint32]) -> Hashes:
    """For each character the hash of the five from there on (multilinear in their codes, then mixed)."""
    hashes_C = np.empty(len(codes_C), np.uint64)
    padded = np.concatenate([codes_C, np.zeros(PIECE - 1, np.uint32)])
    for start in range(0, len(codes_C), _BLOCK):
        block = padded[start : start + _BLOCK + PIECE - 1].astype(np.uint64)
        length = len(block) - PIECE + 1
        hashes = block[:length] * _weights()[0]
        for offset in range(1, PIECE):
            hashes += block[offset : offset + length] * _weights()[offset]
        hashes_C[start : start + length] = _mix(hashes)
    return hashes_C


def _mix(values: Hashes) -> Hashes:
    """The finaliser of MurmurHash3 (Appleby, 2011), in place: every bit of a value comes to bear on every other."""
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        values ^= values >> np.uint64(33)
        values *= np.uint64(factor)
    values ^= values >> np.uint64(33)
    return values


@functools.lru_cache(maxsize=1)
def _weights() -> Hashes:
    """Odd factors without pattern, one more than a band or a piece has members."""
    return _mix(np.arange(1, PIECE + 2, dtype=np.uint64)) | np.uint64(1)


@functools.lru_cache(maxsize=1)
def _key_table() -> npt.NDArray[np.uint32]:
    """What each code point is in a key: 0 if nothing, else its simplified, half-width, lower-case form.

    Compatibility forms (full-width letters, doubled Han code points) are folded by NFKC, which is safe on a key as it
    would not be on prose; scripts by OpenCC's table of single characters, the same for both sides of a comparison.
    """
    from opencc import OpenCC

    codes = [code for code in range(0x34000) if chr(code).isalnum()]  # the planes beyond hold no letters
    forms = [unicodedata.normalize("NFKC", chr(code)).lower() for code in codes]
    lines = "\n".join(form if len(form) == 1 else chr(code) for code, form in zip(codes, forms, strict=True))
    simplified = OpenCC("t2s").convert(lines).split("\n")
    table = np.zeros(0x110000, np.uint32)
    table[codes] = [ord(form[0]) for form in simplified]
    return table


def _first_of_equals(signatures: Signatures) -> Ints:
    """For each unit the first with its digest."""
    digests_U2: Any = np.ascontiguousarray(signatures.digests_U16).view(np.uint64)
    _, first, inverse_U = np.unique(digests_U2, axis=0, return_index=True, return_inverse=True)
    units_U = np.arange(len(digests_U2))
    return np.where(signatures.characters_U > 0, first[inverse_U.reshape(-1)], units_U).astype(np.int64)
