"""Noise glued into the middle of a sentence, by a model of where it begins and where it ends.

Rules know a mark of a site or a page by its words and signs, and the next copy has others. But an inset reads unlike the
sentence around it. Each character weighs for or against being part of one, by the characters beside it, and each place for
being where one begins or ends; the inset of a line is the run of characters with the highest sum (Bentley's maximum
subarray, CACM 1984), if that is above zero. `bench/insets.py` trains the weights, as a structured perceptron does
(Collins, EMNLP 2002), and measures them. Only lines with a character that prose hardly has are asked.

Features are hashed into one table of small integers, so that a sum is exact: it is the same on every machine, and however
lines are grouped.

C characters; N lines; B buckets.
"""

import functools
import hashlib
import io
import re
from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from raystyle.corpus import noise
from raystyle.corpus.lines import Flags, Pieces, Places, pieces_of

HASH_BITS = 18
NUM_BUCKETS = 1 << HASH_BITS
# What a character is like, where it is not asked which it is.
_HAN, _DIGIT, _LETTER, _MARK, _OPENS, _CLOSES, _SIGN, _BORDER = range(8)
KIND_U = np.full(0x10000, _SIGN, np.uint16)
KIND_U[0x3400:0xA000], KIND_U[ord("0") : ord("9") + 1], KIND_U[ord("a") : ord("z") + 1] = _HAN, _DIGIT, _LETTER
for _characters, _kind in (
    ("，。！？；：、…", _MARK),
    ("“‘「『（(【[《〈〔{", _OPENS),
    ("”’」』）)】]》〉〕}", _CLOSES),
    ("\n", _BORDER),
):
    KIND_U[[ord(character) for character in _characters]] = _kind
# What stands in prose; a line without any other character is not asked.
PROSE_MARKS = "，。！？；：、…“”‘’「」『』《》—·．－～〇々\"',?!:;"
PROSE_U = np.zeros(0x10000, bool)
PROSE_U[0x3400:0xA000] = PROSE_U[0x3040:0x3100] = True  # kana, too
PROSE_U[[ord(character) for character in "\n" + PROSE_MARKS]] = True
# Which characters beside a place a feature is made of, and whether it asks for their kinds alone.
Template = tuple[tuple[int, ...], bool]
INSIDE: tuple[Template, ...] = (
    ((0,), False),
    ((-1, 0), False),
    ((0, 1), False),
    ((-1, 0, 1), False),
    ((-1, 0, 1), True),
)
BEGINS: tuple[Template, ...] = (((-1, 0), True), ((-1,), False), ((0,), False), ((-1, 0), False), ((0, 1), False))
ENDED: tuple[Template, ...] = (((-1, 0), True), ((-1,), False), ((0,), False), ((-1, 0), False), ((-2, -1), False))
REACH = 2
# Characters at once: what is known of them stays in the cache.
_BLOCK = 1 << 14
MIN_CHARS, MAX_CHARS = 2, 120
# A longer line is no paragraph of prose, and would take the more memory and time the longer it is.
MAX_LINE = 2_000
# What is left is a sentence: so many Chinese characters, more than there are words in what goes, and a mark.
MIN_LEFT = 8
_MARKED = re.compile(r"[，。！？；…”]")
_ASKED = re.compile(rf"[^\u3400-\u9fff\u3040-\u30ff{PROSE_MARKS}]")
_ODD = re.compile(rf"[^\u3400-\u9fff\u3040-\u30ff\s\-.~{PROSE_MARKS}]|\s.+\s")
# An author's own remark, which `noise_aside` asks what it is; and what stands for a character that no font had.
_ASIDE = re.compile(r"[（(][^（()）]*[）)]|(?:[【\[〔［<][\u3400-\u9fff]{1,4}[】\]〕］>]){1,3}")
_HAN_LEFT = re.compile(r"[\u3400-\u9fff]")
_WORDS = re.compile(r"[\u3400-\u9fff]|[A-Za-z0-9]+|([^\sA-Za-z0-9])\1*")
_BRACKETS = dict(zip("（(【[〔{『〖｛［〈<《「“", "）)】]〕}』〗｝］〉>》」”", strict=True))
_ARROWS = ("←→", "→←", "↗↙", "↙↗", "↘↖", "↖↘", "↘↙", "↙↘", "↖↗", "↗↖", "▶◀", "►◄", "☞☜")
# Units, formulas, places of a disk: a story's.
_MEASURED = re.compile(r"[℃℉°′″²³⁰-⁹₀-₉±×÷√]|[A-Za-z]:[\\/]|\bsudo\b|[A-Za-z]\([a-z]\)\s?=")
_WORD = re.compile(r"[A-Za-z0-9０-９Ａ-Ｚａ-ｚ]")
_SIGN_ALONE = re.compile(rf"[^\w\s{PROSE_MARKS}{re.escape(''.join(_BRACKETS) + ''.join(_BRACKETS.values()))}]")
# An inset between signs or brackets, which a few characters of the sentence stand beside.
_EDGE = rf"[^\w\s{PROSE_MARKS}]"
_FRAMED = re.compile(
    rf"[\u3400-\u9fff]{{0,4}}(?P<inset>(?P<opens>{_EDGE})[^\n]*(?P<closes>{_EDGE}))[\u3400-\u9fff]{{0,4}}"
)
_LINE_FEED = ord("\n")

Sums = NDArray[np.int64]


class Model(NamedTuple):
    """Weights of features, and what an inset must weigh."""

    weight_B: NDArray[np.int16]
    bar: int

    def best(self, code_C: NDArray[np.uint16], start_N: Places, chars_N: Places) -> tuple[Sums, Places, Places]:
        """For each line, which line feeds surround, the highest sum of a run less the bar, and where the run begins and ends;
        `code_C` are usual characters (`usual`)."""
        inside_C, begins_C, ended_C = (self._sums(code_C, role) for role in (INSIDE, BEGINS, ENDED))
        before_C = np.append(0, np.cumsum(inside_C))[:-1]  # all characters before this one
        line_C = np.repeat(np.arange(len(start_N)), np.diff(np.append(start_N, len(code_C))))
        # Sums begin anew in each line, whose places are far above those of the line before.
        begin_C = begins_C - before_C
        step = int(begin_C.max() - begin_C.min()) + 1
        highest_C = np.maximum.accumulate(begin_C + line_C * step)
        sum_C = np.full(len(code_C), np.iinfo(np.int64).min // 2)
        sum_C[MIN_CHARS:] = (ended_C + before_C)[MIN_CHARS:] + (highest_C - line_C * step)[:-MIN_CHARS]
        place_C = np.arange(len(code_C)) - start_N[line_C]
        sum_C[(place_C < MIN_CHARS) | (place_C > chars_N[line_C])] = np.iinfo(np.int64).min // 2
        best_N = np.maximum.reduceat(sum_C, start_N) - self.bar
        first_N, last_N = np.zeros((2, len(start_N)), np.int64)
        for n in np.flatnonzero(best_N > 0).tolist():
            start = int(start_N[n])
            last_N[n] = np.argmax(sum_C[start : start + int(chars_N[n]) + 1])
            first_N[n] = np.argmax(begin_C[start : start + int(last_N[n]) - MIN_CHARS + 1])
        return best_N, first_N, last_N

    def _sums(self, code_C: NDArray[np.uint16], role: tuple[Template, ...]) -> Sums:
        sum_C = np.zeros(len(code_C), np.int64)
        for bucket_C in buckets(code_C, role):
            sum_C += self.weight_B.take(bucket_C)
        return sum_C


def buckets(code_C: NDArray[np.uint16], role: tuple[Template, ...]) -> Iterator[NDArray[np.uint32]]:
    """The bucket of each feature at each place. The hash is multiplicative, by 2^32 over the golden ratio (Knuth, volume 3,
    section 6.4); the bucket is its first HASH_BITS."""
    around = np.pad(code_C, REACH, constant_values=_LINE_FEED).astype(np.uint32)
    for number, (offsets, kinds) in enumerate(role):
        source = KIND_U.take(around).astype(np.uint32) if kinds else around
        hash_C = np.full(len(code_C), (INSIDE, BEGINS, ENDED).index(role) * 8 + number + 1, np.uint32)
        for offset in offsets:
            hash_C = (hash_C ^ source[REACH + offset : REACH + offset + len(code_C)]) * np.uint32(0x9E3779B1)
        yield hash_C >> np.uint32(32 - HASH_BITS)


def usual(lines: Pieces, index_N: Places) -> tuple[NDArray[np.uint16], Places]:
    """Some lines' usual characters with two line feeds behind each, and where each begins."""
    size_N = lines.chars_I[index_N].astype(np.int64) + REACH
    start_N = np.append(0, np.cumsum(size_N[:-1]))
    place_C = np.arange(size_N.sum()) - np.repeat(start_N, size_N) + np.repeat(lines.start_I[index_N], size_N)
    code_C = noise.load().usual_U.take(lines.codes_C.take(place_C, mode="clip"), mode="clip")
    ends_N = start_N + size_N
    code_C[ends_N - 1] = code_C[ends_N - 2] = _LINE_FEED
    return code_C, start_N


def odd(lines: Pieces) -> Flags:
    """Which lines have a character that prose hardly has."""
    odd_I = np.zeros(len(lines.start_I), bool)
    odd_C = np.flatnonzero(~PROSE_U.take(lines.codes_C, mode="clip"))
    line_C = np.searchsorted(lines.start_I, odd_C, "right") - 1
    inside_C = (line_C >= 0) & (odd_C < lines.start_I[line_C] + lines.chars_I[line_C])
    odd_I[line_C[inside_C]] = True
    return odd_I


def find(model: Model, lines: Pieces, index_N: Places) -> dict[int, tuple[int, int]]:
    """The insets of some lines: from which character to which."""
    found = {}
    index_N = index_N[lines.chars_I[index_N] <= MAX_LINE]
    for block_N in np.split(index_N, np.flatnonzero(np.diff(np.cumsum(lines.chars_I[index_N]) // _BLOCK)) + 1):
        if not len(block_N):
            continue
        code_C, start_N = usual(lines, block_N)
        best_N, first_N, last_N = model.best(code_C, start_N, lines.chars_I[block_N].astype(np.int64))
        for n in np.flatnonzero(best_N > 0).tolist():
            line = lines.text(int(block_N[n]))
            if span := whole(line, int(first_N[n]), int(last_N[n])):
                found[int(block_N[n])] = span
    return found


def inset(line: str) -> tuple[int, int] | None:
    """The inset of one line."""
    return find(load(), pieces_of([line]), np.zeros(1, np.int64)).get(0) if _ASKED.search(line) else None


def whole(line: str, first: int, last: int) -> tuple[int, int] | None:
    """The characters from `first` to `last`, and what belongs to them (`_completed`), without words of the sentence outside
    the signs that frame an inset. None where that is prose alone or an aside, of no inset's length, or no sentence would be
    left."""
    first, last = _completed(line, first, last)
    framed = _FRAMED.fullmatch(line, first, last)
    if framed and _pairs(framed["opens"], framed["closes"]):
        first, last = framed.span("inset")
    cut, left = line[first:last], line[:first] + line[last:]
    if (
        not _ODD.search(cut)
        or _MEASURED.search(cut)
        or _ASIDE.fullmatch(cut)
        or last - first > MAX_CHARS
        or not _MARKED.search(left)
    ):
        return None
    return (first, last) if len(_HAN_LEFT.findall(left)) >= max(MIN_LEFT, len(_WORDS.findall(cut))) else None


def _completed(line: str, first: int, last: int) -> tuple[int, int]:
    """A run with the other one of two brackets, the rest of a word in letters, and the signs beside it."""
    for opens, closes in _BRACKETS.items():
        part = line[first:last]
        more = part.count(opens) - part.count(closes)
        if more > 0 and (at := line.find(closes, last)) >= 0 and at - last <= MAX_CHARS:
            last = at + 1
        elif more < 0 and (at := line.rfind(opens, 0, first)) >= 0 and first - at <= MAX_CHARS:
            first = at
    for kind in (_WORD, _SIGN_ALONE):
        while first and kind.match(line[first]) and kind.match(line[first - 1]):
            first -= 1
        while last < len(line) and kind.match(line[last - 1]) and kind.match(line[last]):
            last += 1
    while first and _SIGN_ALONE.match(line[first - 1]) and _pairs(line[first - 1], line[last - 1]):
        first -= 1
    while last < len(line) and _SIGN_ALONE.match(line[last]) and _pairs(line[first], line[last]):
        last += 1
    return first, last


def _pairs(opens: str, closes: str) -> bool:
    """Whether two signs stand on either side of something."""
    return opens == closes or _BRACKETS.get(opens) == closes or opens + closes in _ARROWS


@functools.cache
def load() -> Model:
    """The model that comes with raystyle."""
    stored = np.load(io.BytesIO(_file().read_bytes()), allow_pickle=False)
    return Model(stored["weight_B"], int(stored["bar"]))


def digest() -> str:
    """SHA-256 of that model's file."""
    return hashlib.sha256(_file().read_bytes()).hexdigest()


def _file() -> Traversable:
    return resources.files("raystyle.corpus") / "rules" / "insets.npz"
