"""Lines that read like noise: a linear model of a line's characters, and of what stands beside it.

Rules know noise by its words; authors' notes, readers' replies and advertisements have too many for that. This model
counts the pairs and triples of characters that noise has more often than prose, in labelled lines (`bench/noise.py`
trains and measures it), as fastText's quality filters do for documents. Noise comes in runs: a line beside one that was
dropped needs less to go. Nothing else about its place counts, and being beside noise never speaks for a line; so cleaning
what was cleaned changes nothing.

Grams are hashed into one table of small integers, so that a score is exact: it is the same on every machine, and however
lines are grouped.

C characters; N lines; B buckets.
"""

import functools
import hashlib
import io
from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from raystyle.corpus.lines import Counts, Flags, Pieces

HASH_BITS = 18
NUM_BUCKETS = 1 << HASH_BITS
GRAMS = (1, 2, 3)
# Lines of up to so many characters are looked at; what is longer is a paragraph of prose, or many lines in one.
MAX_CHARS = 300
# The number of a line's characters, as one of these classes, is a feature too.
LENGTHS = np.array([2, 4, 6, 9, 13, 18, 25, 35, 50, 80, 120, 180])
# What may stand beside a line: kept text or nothing, a heading, other noise.
TEXT, HEADING, NOISE = range(3)
# A text of which the model would take more than this share of the characters is of another kind than it knows.
MAX_SHARE = 0.3
# A line that scores less than minus this is a sentence for sure, unless it is as short as this.
SURE, SHORT = 0.5, 16
# What stands in a line's brackets must score as much: prose has its asides.
ASIDE_BAR = 0.0
# Characters at once: what is known of them stays in the cache.
_BLOCK = 1 << 16
_LINE_FEED = ord("\n")

Kinds = NDArray[np.int64]
Scores = NDArray[np.float64]


class Model(NamedTuple):
    """Weights in units of `unit`, but for `bias`: of grams by bucket, of classes of length, and of what stands above and below.

    A line is noise if its score is above zero. `usual_U` is what each character counts as: a digit as 0, a letter as its
    small one, a traditional character as the simplified one.
    """

    usual_U: NDArray[np.uint16]
    gram_B: NDArray[np.int8]
    length_K: NDArray[np.int16]
    beside_2T: NDArray[np.int16]
    unit: float
    bias: float

    def scores(self, lines: Pieces) -> NDArray[np.float64]:
        """How much lines read like noise, but for what stands beside them: minus infinity where they are not judged, for want
        of a Chinese character, for their length, or because they are speech from “ to ”."""
        score_N = np.full(len(lines.start_I), -np.inf)
        judged_N = np.flatnonzero((lines.chars_I > 0) & (lines.chars_I <= MAX_CHARS))
        first = 0
        for last in [*np.flatnonzero(np.diff(np.cumsum(lines.chars_I[judged_N]) // _BLOCK)) + 1, len(judged_N)]:
            block_N = judged_N[first:last]
            if len(block_N):
                score_N[block_N] = self.by_codes(*_joined(lines, block_N))
            first = last
        return score_N

    def beside(self, above_N: Kinds, below_N: Kinds) -> NDArray[np.float64]:
        """What their surroundings add to the scores of lines."""
        added_N = self.beside_2T[0][above_N].astype(np.float64) + self.beside_2T[1][below_N]
        return np.asarray(self.unit * added_N)

    def by_codes(self, code_C: NDArray[np.uint32], start_N: NDArray[np.int64]) -> NDArray[np.float64]:
        """The scores of lines that are joined by line feeds, one before each and one behind the last; where those before stand."""
        usual_C = self.usual_U.take(code_C, mode="clip")
        weight_C = np.zeros(len(code_C), np.int16)
        for bucket_C in grams(usual_C):
            weight_C[: len(bucket_C)] += self.gram_B.take(bucket_C)
        chars_N = np.diff(np.append(start_N, len(code_C) - 1)) - 1
        sums_N = np.add.reduceat(weight_C[:-1], start_N, dtype=np.int64)
        own_N = self.unit * (sums_N / np.sqrt(num_grams(chars_N)) + self.length_K[length_class(chars_N)]) + self.bias
        chinese_N = np.logical_or.reduceat((usual_C[:-1] >= 0x3400) & (usual_C[:-1] < 0xA000), start_N)
        # Of the 2,300 labelled lines between such marks six were noise.
        spoken_N = (code_C[start_N + 1] == ord("“")) & (code_C[start_N + chars_N] == ord("”"))
        return np.where(chinese_N & ~spoken_N, own_N, -np.inf)


def _joined(lines: Pieces, index_N: NDArray[np.int64]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Some lines' characters with one line feed before each and behind the last; the places of those before."""
    size_N = lines.chars_I[index_N].astype(np.int64) + 1
    start_N = np.append(0, np.cumsum(size_N[:-1]))
    place_C = np.arange(size_N.sum()) + np.repeat(lines.start_I[index_N] - start_N - 1, size_N)
    code_C = np.append(lines.codes_C.take(place_C, mode="clip"), 0)
    code_C[start_N] = code_C[-1] = _LINE_FEED
    return code_C, start_N


def noise_lines(model: Model, own_N: Scores, chars_N: Counts, above_N: Kinds, below_N: Kinds) -> Flags:
    """Which lines of a text are noise, by their own scores and what stands above and below each; lines that are found count
    as noise beside others. Where that takes more than MAX_SHARE, only those that are noise by themselves are; none, where
    even these are more."""
    by_itself_N = own_N > 0
    if chars_N[by_itself_N].sum() > MAX_SHARE * chars_N.sum():
        return np.zeros(len(own_N), bool)
    found_N = own_N + model.beside(above_N, below_N) > 0
    waiting = np.flatnonzero(found_N).tolist()
    while waiting:
        n = waiting.pop()
        for beside in (n - 1, n + 1):
            if 0 <= beside < len(own_N) and not found_N[beside]:
                above, below = above_N[beside : beside + 1], below_N[beside : beside + 1]
                if above[0] == TEXT and beside > 0 and found_N[beside - 1]:
                    above = np.array([NOISE])
                if below[0] == TEXT and beside + 1 < len(own_N) and found_N[beside + 1]:
                    below = np.array([NOISE])
                if own_N[beside] + model.beside(above, below)[0] > 0:
                    found_N[beside] = True
                    waiting.append(beside)
    return found_N if chars_N[found_N].sum() <= MAX_SHARE * chars_N.sum() else by_itself_N


def grams(code_C: NDArray[np.uint16]) -> Iterator[NDArray[np.uint32]]:
    """The bucket of each character of lines between line feeds, of each pair and of each triple, by its first place; bucket 0
    where there is none, for what holds a line feed inside is none.

    The hash is multiplicative, by 2^32 over the golden ratio (Knuth, volume 3, section 6.4); the bucket is its first HASH_BITS.
    """
    feed_F = np.flatnonzero(code_C == _LINE_FEED)
    hash_C = np.zeros(len(code_C), np.uint32)
    for size in GRAMS:
        hash_C = (hash_C[: len(code_C) - size + 1] ^ code_C[size - 1 :]) * np.uint32(0x9E3779B1)
        bucket_C = hash_C >> np.uint32(32 - HASH_BITS)
        if size != 2:
            inside_F = feed_F - (size == 3)
            bucket_C[inside_F[(inside_F >= 0) & (inside_F < len(bucket_C))]] = 0
        yield bucket_C


def num_grams(chars_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many grams lines of so many characters have: each character, each pair and triple, also those with a border."""
    return 3 * chars_N + 1


def length_class(chars_N: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.searchsorted(LENGTHS, chars_N)


@functools.cache
def load() -> Model:
    """The model that comes with raystyle."""
    stored = np.load(io.BytesIO(_file().read_bytes()), allow_pickle=False)
    return Model(
        stored["usual_U"], stored["gram_B"], stored["length_K"], stored["beside_2T"], float(stored["unit"]), float(stored["bias"])
    )  # fmt: skip


def is_noise(aside: str) -> bool:
    """Whether a part of a line reads like noise by itself."""
    return _score(aside) > ASIDE_BAR


def is_prose(line: str) -> bool:
    """Whether a line is a sentence for sure, whatever words it has."""
    return len(line) > SHORT and -np.inf < _score(line) < -SURE


@functools.lru_cache(maxsize=1 << 14)
def _score(text: str) -> float:
    """How much a text of any length reads like noise. The same ones come again and again."""
    code_C = np.array([_LINE_FEED, *map(ord, text), _LINE_FEED], np.uint32)
    return float(load().by_codes(code_C, np.zeros(1, np.int64))[0])


def digest() -> str:
    """SHA-256 of that model's file."""
    return hashlib.sha256(_file().read_bytes()).hexdigest()


def _file() -> Traversable:
    return resources.files("raystyle.corpus") / "rules" / "noise.npz"
