"""What a text copies from the training text: passages found by exact matching, and told from common phrases.

The training texts stand in one row, each followed by a separator, and the row's suffixes are sorted (libdivsufsort, Mori
2008, through pydivsufsort; Manber and Myers, "Suffix arrays", 1990). Every search is a binary search in that order: exact,
of any length, and nothing rests on a hash. Twenty million characters are indexed in a quarter to half a minute on
a busy two-core machine, with some 40 bytes a character while the index is made (bench/results/copying.md).

What is matched of a text is its `key`: no whitespace, letters in one width and case, and all punctuation marks alike, so
that a line break, a space or another kind of quotation mark hides no copy. `min_chars`, `n` and all lengths count characters
of the key, that is, without whitespace. Places (`Passage.start` and so on) are offsets into the strings as given.

A verbatim passage is a copy unless it is a common phrase. It is a copy if all of this holds:
- it has at least COPIED_CHARS characters, and DISTINCT_LETTERS different letters: a row of dots or of 哈哈 is no text;
- more than half of it is its own. Not its own are stretches of PHRASE_CHARS and more that `common` has as well (other
  authors, so proverbs and quotations), or that MANY_DOCUMENTS training documents share (formulas, the author's own turns).
  The latter is not asked of LONG_CHARS and more: a page printed five times is not a turn of phrase.
Where the training text is mostly in an alphabet, whose letters say less than a Han character does, these lengths are three
times as long. What stays is a true repetition: an author who quotes himself, a letter printed twice. Held-out text has these
as well, so it is the control that a share of copied characters is to be compared with (`bench/copying.py` shows both).

T characters of the training texts' row, Q characters of a key, P places in a key, N characters of an n-gram.
"""

import bisect
import functools
import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# Measured on three authors (bench/results/copying.md): passages of 30 characters must be found wherever they are cut.
COPIED_CHARS = 26
DISTINCT_LETTERS = 5
PHRASE_CHARS = 13
MANY_DOCUMENTS = 5
LONG_CHARS = 60
ALPHABET_FACTOR = 3
# Characters of n-grams compared at once, which bounds memory; and how far `longest` asks for n-grams.
_BLOCK = 1 << 21
_LONGEST_GRAM = 64
_MARK = ord(".")

Codes = NDArray[np.uint32]
Places = NDArray[np.int64]


class Passage(NamedTuple):
    """A stretch of a text, `text[start:end]`, that training text `source_no` holds from `source_start` on."""

    start: int
    end: int
    source_no: int
    source_start: int


class Copying(NamedTuple):
    """How much of some texts the training text holds.

    `longest`: characters of the longest verbatim match, phrases included. `copied_share`: share of the characters that
    stand in copied passages. `overlap`: see there. `passages`: one list for each text, in order.
    """

    longest: int
    copied_share: float
    overlap: float
    passages: list[list[Passage]]


class Key(NamedTuple):
    """What is matched of a text, as code points, and where each of them stands in it."""

    codes_Q: Codes
    places_Q: NDArray[np.int32]

    def places(self, first: int, end: int) -> tuple[int, int]:
        """The stretch of the text that some characters of the key take."""
        return int(self.places_Q[first]), int(self.places_Q[end - 1]) + 1


def key(text: str) -> Key:
    """A text's key. A character becomes one character or none, so places are kept."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    distinct, inverse = np.unique(codes, return_inverse=True)
    folded = np.array([_fold(code) for code in distinct.tolist()], np.uint32)[inverse]
    places = np.flatnonzero(folded)
    return Key(folded[places], places.astype(np.int32))


def is_extracted(continuation: str, truth: str, chars: int = 50) -> bool:
    """Whether a model that was given what stands before `truth` went on with it: the first `chars` characters agree.

    Extractable memorisation with a known prefix, 50 tokens there (Carlini et al. 2021, 2023). False where there are not
    as many.
    """
    codes_Q, truth_Q = key(continuation).codes_Q[:chars], key(truth).codes_Q[:chars]
    return len(truth_Q) == chars and np.array_equal(codes_Q, truth_Q)


class Index:
    """Training texts, ready to be searched."""

    def __init__(self, texts: Sequence[str]) -> None:
        from pydivsufsort import divsufsort

        keys = [key(text) for text in texts]
        self._places = [one.places_Q for one in keys]
        self._ends = np.cumsum([len(one.codes_Q) + 1 for one in keys], dtype=np.int64)
        row_T = np.concatenate([np.append(one.codes_Q, 0) for one in keys] or [np.zeros(1)]).astype(np.uint32)
        self._alphabet, ranks_T = np.unique(row_T, return_inverse=True)
        # Big-endian, so that bytes are in the order of the characters.
        self._type = np.dtype(">u2" if len(self._alphabet) < 0xFFFF else ">u4")
        self._row_T = ranks_T.astype(self._type)
        self._bytes = self._row_T.tobytes()
        self._suffixes_T: NDArray[np.int32] = divsufsort(ranks_T.astype(self._type.newbyteorder("=")))
        letters = row_T[:: max(1, len(row_T) // 100_000)]
        wide = sum(unicodedata.east_asian_width(chr(code)) in "WF" for code in letters.tolist())
        self.factor = 1 if 2 * wide >= np.count_nonzero((letters != 0) & (letters != _MARK)) else ALPHABET_FACTOR

    def longest(self, text: str) -> Passage | None:
        """The longest stretch of a text that a training text holds; None if they share no character."""
        one = key(text)
        ranks_Q = self._ranks(one)
        size, places = 0, np.arange(len(ranks_Q))
        for size_now in 2 ** np.arange(int(np.log2(_LONGEST_GRAM)) + 1):
            places = places[places + size_now <= len(ranks_Q)]
            places = places[self._held(ranks_Q, int(size_now), places)]
            if not len(places):
                break
            size = int(size_now)
        matches = self._matches(ranks_Q, size) if size else []
        return self._passage(one, *max(matches, key=lambda m: (m[1] - m[0], -m[0]))) if matches else None

    def passages(self, text: str, min_chars: int) -> list[Passage]:
        """All stretches of a text of at least `min_chars` characters that training texts hold, in order.

        Where two overlap the longer one is taken whole, and what it leaves of the other if that is still long enough. Phrases are included.
        """
        one = key(text)
        return [self._passage(one, *match) for match in self._apart(self._ranks(one), min_chars)]

    def _ranks(self, one: Key) -> NDArray[np.unsignedinteger]:
        """A key in the row's alphabet; a character that is not in it gets a rank of its own, and never a separator's."""
        rank_Q = np.searchsorted(self._alphabet, one.codes_Q)
        known_Q = self._alphabet[np.minimum(rank_Q, len(self._alphabet) - 1)] == one.codes_Q
        return np.where(known_Q, rank_Q, len(self._alphabet)).astype(self._type)

    def _passage(self, one: Key, first: int, end: int, found: int) -> Passage:
        number = int(np.searchsorted(self._ends, found, side="right"))
        begin = int(self._ends[number - 1]) if number else 0
        return Passage(*one.places(first, end), number, int(self._places[number][found - begin]))

    def _bounds(self, ranks_Q: NDArray[np.unsignedinteger], n: int, places_P: Places) -> tuple[Places, Places]:
        """For n-grams of a key, the first suffix that begins with each and the first behind them: as many, as they are held."""
        step_N, last = np.arange(n), len(self._row_T) - 1

        def grams(row: NDArray[np.unsignedinteger], starts: Places) -> NDArray[np.bytes_]:
            # Past the end stand separators, as at the end. Rows of bytes compare as texts do.
            rows = np.ascontiguousarray(row[np.minimum(starts[:, None] + step_N, len(row) - 1)])
            return rows.view(f"S{n * self._type.itemsize}")[:, 0]

        def search(wanted: NDArray[np.bytes_], right: bool) -> Places:
            low = np.zeros(len(wanted), np.int64)
            high = np.full(len(wanted), last + 1)
            while (low < high).any():
                middle = np.minimum((low + high) // 2, last)
                held = grams(self._row_T, self._suffixes_T[middle].astype(np.int64))
                below = ((held <= wanted) if right else (held < wanted)) & (low < high)
                low, high = np.where(below, middle + 1, low), np.where(below, high, np.minimum(high, middle))
            return low

        blocks = np.array_split(places_P, len(places_P) * n // _BLOCK + 1)
        found = [
            (search(wanted, False), search(wanted, True)) for wanted in (grams(ranks_Q, block) for block in blocks)
        ]
        return np.concatenate([low for low, _ in found]), np.concatenate([high for _, high in found])

    def _held(self, ranks_Q: NDArray[np.unsignedinteger], n: int, places_P: Places) -> NDArray[np.bool_]:
        """Which n-grams of a key the training texts hold."""
        if not len(places_P):
            return np.zeros(0, np.bool_)
        low_P, high_P = self._bounds(ranks_Q, n, places_P)
        return high_P > low_P

    def _longest_at(self, ranks: bytes, first: int) -> tuple[int, int]:
        """How many characters of a key from `first` on are held, and where in the row."""
        width = self._type.itemsize
        size, rest = 2 * _LONGEST_GRAM, len(ranks) // width - first
        while True:
            size = min(size, rest)
            wanted = ranks[first * width : (first + size) * width]

            def begins(suffix: int, size: int = size) -> bytes:
                return self._bytes[int(suffix) * width : (int(suffix) + size) * width]

            # What agrees longest with a text stands beside it in the order.
            place = bisect.bisect_left(self._suffixes_T, wanted, key=begins)
            beside = self._suffixes_T[max(0, place - 1) : place + 1].tolist()
            length, nearest = max((_agree(wanted, begins(suffix)) // width, -suffix) for suffix in beside)
            if length < size or size == rest:
                return length, -nearest
            size *= 4

    def _matches(self, ranks_Q: NDArray[np.unsignedinteger], n: int) -> Iterator[tuple[int, int, int]]:
        """Maximal matches of at least n characters: first and end in the key, and place in the row.

        A match that ends at `end` ends all that begin in it, unless the n-gram across that end is held: then some match
        runs further, and the first of them is found by bisection, for later matches never end earlier.
        """
        places_P = np.arange(max(0, len(ranks_Q) - n + 1))
        held_P = self._held(ranks_Q, n, places_P)
        starts_P = places_P[held_P]
        ranks = ranks_Q.tobytes()
        at = 0
        while at < len(starts_P):
            first = int(starts_P[at])
            length, found = self._longest_at(ranks, first)
            end = first + length
            yield first, end, found
            following = end - n + 1
            if following < len(held_P) and held_P[following]:
                beyond = range(first + 1, following + 1)
                following = beyond[bisect.bisect_right(beyond, end, key=lambda p: p + self._longest_at(ranks, p)[0])]
            at = int(np.searchsorted(starts_P, following))

    def _apart(self, ranks_Q: NDArray[np.unsignedinteger], n: int) -> list[tuple[int, int, int]]:
        """Maximal matches that do not overlap, the longest whole, and what they leave of others where it is long enough."""
        taken_Q = np.zeros(len(ranks_Q), np.bool_)
        chosen = []
        for first, end, found in sorted(self._matches(ranks_Q, n), key=lambda m: (m[0] - m[1], m[0])):
            # Those taken are no shorter, so they cover this one's head or its tail, and never only its middle.
            free = np.flatnonzero(~taken_Q[first:end])
            if len(free) >= n:
                begin, stop = first + int(free[0]), first + int(free[-1]) + 1
                taken_Q[begin:stop] = True
                chosen.append((begin, stop, found + begin - first))
        return sorted(chosen)

    def _shared(self, ranks_Q: NDArray[np.unsignedinteger], n: int, documents: int) -> NDArray[np.bool_]:
        """Which characters of a key stand in an n-gram that at least so many training texts hold."""
        shared_Q = np.zeros(len(ranks_Q), np.bool_)
        places_P = np.arange(max(0, len(ranks_Q) - n + 1))
        if not len(places_P):
            return shared_Q
        low_P, high_P = self._bounds(ranks_Q, n, places_P)
        for p in np.flatnonzero(high_P - low_P >= documents).tolist():
            holders = np.searchsorted(self._ends, self._suffixes_T[low_P[p] : high_P[p]], side="right")
            if documents == 1 or len(np.unique(holders)) >= documents:
                shared_Q[p : p + n] = True
        return shared_Q

    def _is_copy(self, codes_Q: Codes, common: "Index | None") -> bool:
        """Whether a verbatim passage is more than a common phrase."""
        one = Key(codes_Q, np.zeros(0, np.int32))
        if len(np.unique(codes_Q[codes_Q != _MARK])) < DISTINCT_LETTERS:
            return False
        known_Q = np.zeros(len(codes_Q), np.bool_)
        if common:
            known_Q |= common._shared(common._ranks(one), PHRASE_CHARS * self.factor, 1)
        if len(codes_Q) < LONG_CHARS * self.factor:
            known_Q |= self._shared(self._ranks(one), PHRASE_CHARS * self.factor, MANY_DOCUMENTS)
        return 2 * int(np.count_nonzero(known_Q)) < len(codes_Q)


def overlap(index: Index, texts: Sequence[str], n: int = 13) -> float:
    """The share of the texts' n-grams of characters that a training text holds; 0 if no text has n characters.

    Thirteen is the length that GPT-3's authors chose, in words, for contamination (Brown et al. 2020).
    """
    held = [
        index._held(ranks_Q, n, np.arange(max(0, len(ranks_Q) - n + 1)))
        for ranks_Q in map(index._ranks, map(key, texts))
    ]
    total = sum(map(len, held))
    return sum(int(np.count_nonzero(held_P)) for held_P in held) / total if total else 0.0


def copied(index: Index, texts: Sequence[str], common: Index | None = None) -> Copying:
    """What some texts copy; the rule stands above. `common` is an index of texts of others."""
    passages = []
    longest = num_copied = num_characters = 0
    for text in texts:
        one = key(text)
        matches = index._apart(index._ranks(one), COPIED_CHARS * index.factor)
        copies = [match for match in matches if index._is_copy(one.codes_Q[match[0] : match[1]], common)]
        passages.append([index._passage(one, *match) for match in copies])
        num_copied += sum(end - first for first, end, _ in copies)
        num_characters += len(one.codes_Q)
        best = max((end - first for first, end, _ in matches), default=0) or _length(index.longest(text), text)
        longest = max(longest, best)
    share = num_copied / num_characters if num_characters else 0.0
    return Copying(longest, share, overlap(index, texts), passages)


def _length(passage: Passage | None, text: str) -> int:
    return len(key(text[passage.start : passage.end]).codes_Q) if passage else 0


def _agree(a: bytes, b: bytes) -> int:
    """How many bytes two texts agree in, from their beginnings."""
    size = min(len(a), len(b))
    differs = np.frombuffer(a, np.uint8, size) != np.frombuffer(b, np.uint8, size) if size else np.zeros(0, np.bool_)
    return int(differs.argmax()) if differs.any() else size


@functools.cache
def _fold(code: int) -> int:
    """What a code point is in a key: 0 if nothing. Compatibility forms are folded where they stay one character (NFKC)."""
    character = chr(code)
    category = unicodedata.category(character)
    if character.isspace() or category in ("Cc", "Cf"):
        return 0
    if category[0] in "PS":
        return _MARK
    form = unicodedata.normalize("NFKC", character).lower()
    return ord(form) if len(form) == 1 else code
