"""The terms that give an author away: keywords, rare words and set phrases, and how often a text uses them.

A term is one to MAX_UNITS units without punctuation, digits or a line break between them; a unit is a Han character (kana,
hangul), or a word of a script with spaces, in lower case. So no segmenter is needed: a term that stands nearly only inside
another one (NESTED of its uses) is dropped for the longer, and of two terms of which one holds the other, the more
characteristic one is kept.

How characteristic: the log-odds of a term's use by the author against the reference's, with both together as an informative
Dirichlet prior, in standard deviations (Monroe, Colaresi and Quinn, "Fightin' Words", 2008, equations 16, 20 and 22):

    d = log((y + a) / (n + A - y - a)) - log((x + a) / (m + A - x - a)),    z = d / sqrt(1 / (y + a) + 1 / (x + a))

y and x are the term's uses by the author and in the reference, n and m all terms of as many units there, A = PRIOR uses of
the prior and a = A (y + x) / (n + m) the term's part of it.

What a text is about is not style, so a term must be spread. It stands in at least MIN_SPREAD of the author's chunks (of
CHUNK_CHARS characters, inside documents) and in MIN_DOCUMENTS of his documents (in all, where he has fewer); and neither
chunks nor documents that hold it are fewer than EVENNESS of what as many uses would reach if they fell anywhere. So the hero
of one story is no marker. In one novel cut into chapters the hero of them all remains: nothing in it tells him from manner.
The author's rate is at least MIN_RATIO that of the reference, or a text about anything would be full of markers. A single
Han character is most often a piece of many words: the SINGLE_ bounds are stricter. Dates, numbers and what begins with a
suffix (的, 了, 们) are pieces too.

Kinds: `phrase` for terms of PHRASE_CHARS characters or PHRASE_WORDS words and more; else `rare` where the reference uses it
at most RARE as often; else `keyword`. Of each side at most MAX_CHARS are read, evenly taken from every document.

U units of a corpus, C candidates.
"""

import functools
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from ahocorasick_rs import AhoCorasick, Implementation, MatchKind
from numpy.typing import NDArray

MAX_UNITS = 6
PRIOR = 10_000.0
CHUNK_CHARS = 2000
MIN_SPREAD, MIN_DOCUMENTS, MIN_USES = 0.04, 3, 5
EVENNESS = 0.6
# Less than 99.9 % one-sided confidence is no difference.
MIN_Z = 3.09
MIN_RATIO = 2.0
# A single Han character is most often a piece of many words.
SINGLE_RATIO, SINGLE_SPREAD, SINGLE_EVENNESS = 4.0, 0.2, 0.8
NESTED = 0.7
PHRASE_CHARS, PHRASE_WORDS = 4, 2
RARE = 0.05
MAX_CHARS = 4_000_000
# Candidates that are looked at for nesting, the most characteristic ones: many times those that are kept.
_CONSIDERED = 20_000

_WIDE = "\u3005\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
_LETTER = rf"[^\W\d_{_WIDE}]"
_UNIT = re.compile(rf"[{_WIDE}]|{_LETTER}+(?:['’]{_LETTER}+)*|\n|\S")
_WIDE_UNIT, _WORD_UNIT = re.compile(rf"[{_WIDE}]"), re.compile(_LETTER)
# Pieces and no terms: what begins with a suffix, a number, a date.
_NUMERAL = "〇零二三四五六七八九十百"
_PIECE = re.compile(rf"^[的了们]|[一千{_NUMERAL}]{{2}}|[{_NUMERAL}][年月日]|[年月日][一{_NUMERAL}]")
_ODD = np.uint64(0x9E3779B97F4A7C15)

Ints = NDArray[np.int64]
Hashes = NDArray[np.uint64]
Kind = Literal["keyword", "rare", "phrase"]


class Marker(NamedTuple):
    """A term of the author. Rates are uses per 1,000 characters without whitespace; `spread` is the share of the author's
    chunks that hold it; `z` says how surely he uses it more than the reference does, in standard deviations."""

    term: str
    kind: Kind
    z: float
    author_rate: float
    reference_rate: float
    spread: float


class _Corpus(NamedTuple):
    """Documents as units: their numbers in a shared vocabulary (0 breaks terms), and the chunk and document of each."""

    units_U: Ints
    chunk_U: Ints
    document_U: Ints
    characters: int


def find_markers(author: Sequence[str], reference: Sequence[str], *, limit: int = 60) -> list[Marker]:
    """The author's markers against other texts, the most characteristic first; none where there is nothing to compare.

    At most `limit`, of which a quarter each is kept for rare words and phrases, if there are so many.
    """
    vocabulary: dict[str, int] = {}
    own, other = (_corpus(texts, vocabulary) for texts in (author, reference))
    if not own.characters or not other.characters:
        return []
    words = ["", *vocabulary]
    found: list[tuple[Marker, int]] = []
    for n in range(1, MAX_UNITS + 1):
        found += _candidates(own, other, n, words)
    found.sort(key=lambda one: (-one[0].z, one[0].term))
    kept = _maximal(found[:_CONSIDERED])
    quota: dict[Kind, int] = {"rare": limit // 4, "phrase": limit // 4, "keyword": limit - 2 * (limit // 4)}
    first = [one for kind, number in quota.items() for one in [m for m in kept if m.kind == kind][:number]]
    rest = [one for one in kept if one not in first][: limit - len(first)]
    return sorted([*first, *rest], key=lambda one: (-one.z, one.term))


def log_odds(y: NDArray[np.float64], n: float, x: NDArray[np.float64], m: float) -> NDArray[np.float64]:
    """z-scores of terms used y times of n by one side and x times of m by the other; see above."""
    prior = PRIOR * (y + x) / (n + m)
    ours, theirs = y + prior, x + prior
    difference = np.log(ours / (n + PRIOR - ours)) - np.log(theirs / (m + PRIOR - theirs))
    return np.asarray(difference / np.sqrt(1 / ours + 1 / theirs))


def marker_rate(texts: Iterable[str], markers: Sequence[Marker]) -> float:
    """Markers per 1,000 characters of the texts together, whitespace not counted; 0 for no text."""
    texts = list(texts)
    characters = sum(_solid(text) for text in texts)
    return 1000 * sum(len(_hits(text, markers)) for text in texts) / characters if characters else 0.0


def marker_counts(texts: Iterable[str], markers: Sequence[Marker]) -> dict[str, int]:
    """How often each marker stands in the texts, the most frequent first; those that do not are left out."""
    counts = Counter(markers[number].term for text in texts for number, _, _ in _hits(text, markers))
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def marker_spans(text: str, markers: Sequence[Marker]) -> list[tuple[int, int]]:
    """Where markers stand in a text: start and end, in order, not overlapping. At one place the longest is taken."""
    return [(start, end) for _, start, end in _hits(text, markers)]


def _hits(text: str, markers: Sequence[Marker]) -> list[tuple[int, int, int]]:
    if not markers:
        return []
    lowered = _lower(text)
    hits = _automaton(tuple(marker.term for marker in markers)).find_matches_as_indexes(lowered)
    return [hit for hit in hits if _is_whole(lowered, hit[1], hit[2])]


@functools.lru_cache(maxsize=8)
def _automaton(terms: tuple[str, ...]) -> AhoCorasick:
    return AhoCorasick(terms, implementation=Implementation.ContiguousNFA, matchkind=MatchKind.LeftmostLongest)


def _is_whole(text: str, start: int, end: int) -> bool:
    """Whether a match does not begin or end inside a word."""
    begins = start == 0 or not (_is_word(text[start - 1]) and _is_word(text[start]))
    return begins and (end == len(text) or not (_is_word(text[end]) and _is_word(text[end - 1])))


def _is_word(character: str) -> bool:
    return _WORD_UNIT.match(character) is not None


def _lower(text: str) -> str:
    """Lower case, of the same length: a few letters have none of one character."""
    lowered = text.lower()
    if len(lowered) == len(text):
        return lowered
    return "".join(low if len(low := character.lower()) == 1 else character for character in text)


def _solid(text: str) -> int:
    return len("".join(text.split()))


def _corpus(texts: Sequence[str], vocabulary: dict[str, int]) -> _Corpus:
    """Texts as units; each text, and each stretch that is taken of it, ends in a break."""
    total = max(1, sum(map(len, texts)))
    units: list[int] = []
    lengths: list[int] = []
    documents: list[int] = []
    characters = 0
    for number, text in enumerate(sorted(texts)):
        for piece in _pieces(text, min(1.0, MAX_CHARS / total)):
            characters += _solid(piece)
            for start in range(0, len(piece), CHUNK_CHARS):
                # A term across a chunk's end is lost, one in a thousand.
                found = _UNIT.findall(_lower(piece[start : start + CHUNK_CHARS]))
                units += [_number(unit, vocabulary) for unit in found]
                units.append(0)
                lengths.append(len(found) + 1)
                documents.append(number)
    chunk_U = np.repeat(np.arange(len(lengths)), lengths)
    return _Corpus(np.array(units, np.int64), chunk_U, np.repeat(np.array(documents, np.int64), lengths), characters)


def _number(unit: str, vocabulary: dict[str, int]) -> int:
    known = vocabulary.get(unit)
    if known is None:
        if not (_WIDE_UNIT.match(unit) or _is_word(unit[0])):
            return 0
        known = vocabulary[unit] = len(vocabulary) + 1
    return known


def _pieces(text: str, share: float) -> Iterator[str]:
    """The text, or its share in even stretches of ten chunks."""
    size = 10 * CHUNK_CHARS
    for start in range(0, len(text), size):
        yield text[start : start + (size if share == 1.0 else max(1, int(min(size, len(text) - start) * share)))]


def _grams(units_U: Ints, n: int) -> tuple[Hashes, Ints]:
    """Hashes of the n-grams without a break, and where they begin. That two of a few million agree by chance in 64 bits has
    a probability of a millionth."""
    size = max(0, len(units_U) - n + 1)
    hashes_U = np.zeros(size, np.uint64)
    whole_U = np.ones(size, np.bool_)
    for k in range(n):
        part = units_U[k : k + size]
        hashes_U = (hashes_U ^ part.astype(np.uint64)) * _ODD
        hashes_U ^= hashes_U >> np.uint64(29)
        whole_U &= part > 0
    places = np.flatnonzero(whole_U)
    return hashes_U[places], places


def _candidates(own: _Corpus, other: _Corpus, n: int, words: Sequence[str]) -> list[tuple[Marker, int]]:
    """The terms of n units that the author uses more, and evenly; with the number of their uses."""
    hashes, places = _grams(own.units_U, n)
    theirs, _ = _grams(other.units_U, n)
    if not len(hashes) or not len(theirs):
        return []
    distinct, first, inverse, uses = np.unique(hashes, return_index=True, return_inverse=True, return_counts=True)
    often = np.flatnonzero(uses >= MIN_USES)
    if not len(often):
        return []
    candidate = np.full(len(distinct), -1)
    candidate[often] = np.arange(len(often))
    at = candidate[inverse]
    used, where = at[at >= 0], places[at >= 0]
    y = uses[often].astype(np.float64)
    wanted = distinct[often]
    nearest = np.minimum(np.searchsorted(wanted, theirs), len(wanted) - 1)
    x = np.bincount(nearest[wanted[nearest] == theirs], minlength=len(wanted)).astype(np.float64)
    z = log_odds(y, len(hashes), x, len(theirs))
    chunks, even_chunks = _spread(used, own.chunk_U, where, y)
    documents, even_documents = _spread(used, own.document_U, where, y)
    num_chunks, num_documents = int(own.chunk_U[-1]) + 1, int(own.document_U[-1]) + 1
    good = (z >= MIN_Z) & (chunks >= MIN_SPREAD * num_chunks) & (documents >= min(MIN_DOCUMENTS, num_documents))
    good &= (chunks >= EVENNESS * even_chunks) & (documents >= EVENNESS * even_documents)
    ours, others = y / own.characters, x / other.characters
    good &= ours >= MIN_RATIO * others
    if n == 1:
        single = np.array([bool(_WIDE_UNIT.match(words[int(own.units_U[places[first[k]]])])) for k in often])
        good &= ~single | (
            (ours >= SINGLE_RATIO * others)
            & (chunks >= SINGLE_SPREAD * num_chunks)
            & (chunks >= SINGLE_EVENNESS * even_chunks)
        )
    found = []
    best = np.flatnonzero(good)
    for c in best[np.argsort(-z[best], kind="stable")][:_CONSIDERED].tolist():
        start = int(places[first[often[c]]])
        units = [words[unit] for unit in own.units_U[start : start + n].tolist()]
        term = _join(units)
        if _PIECE.search(term):
            continue
        rate, others_rate = 1000 * float(ours[c]), 1000 * float(others[c])
        kind = _kind(units, rate, others_rate)
        spread = float(chunks[c] / num_chunks)
        marker = Marker(term, kind, float(z[c]), rate, others_rate, spread)
        found.append((marker, int(y[c])))
    return found


def _spread(used: Ints, part_U: Ints, where: Ints, y: NDArray[np.float64]) -> tuple[Ints, NDArray[np.float64]]:
    """How many parts (chunks or documents) hold each candidate, and how many would if its uses fell anywhere.

    The latter is the sum over parts of 1 - (1 - w)^y, w a part's share of the whole.
    """
    num_parts = int(part_U[-1]) + 1
    pairs = np.unique(used * num_parts + part_U[where])
    held = np.bincount(pairs // num_parts, minlength=len(y))
    sizes, inverse = np.unique(y, return_inverse=True)
    # Parts of one size weigh the same, and there are few sizes when they are rounded to a percent.
    logs, counts = np.unique(np.round(np.log(np.bincount(part_U) / len(part_U)), 2), return_counts=True)
    weights = np.minimum(np.exp(logs), 1.0)
    expected = np.array([float(np.sum(counts * (1 - (1 - weights) ** size))) for size in sizes])
    return held, expected[inverse]


def _maximal(found: Sequence[tuple[Marker, int]]) -> list[Marker]:
    """Without terms that stand nearly only inside another, and of the rest none that holds, or shares more than half of itself with, a better one."""
    uses = {marker.term: number for marker, number in found}
    nested = {
        inner
        for term, number in uses.items()
        for inner in _inside(term)
        if inner in uses and number >= NESTED * uses[inner]
    }
    kept: list[Marker] = []
    inside: set[str] = set()
    terms: set[str] = set()
    for marker, _ in found:
        parts = set(_inside(marker.term))
        # Shifted by a unit or two, a long phrase would come again and again.
        half = {part for part in parts if 2 * len(_UNIT.findall(part)) > len(_UNIT.findall(marker.term))}
        if marker.term not in nested and marker.term not in inside and not parts & terms and not half & inside:
            kept.append(marker)
            inside |= parts
            terms.add(marker.term)
    return kept


def _inside(term: str) -> Iterator[str]:
    """The terms of fewer units inside a term."""
    units = _UNIT.findall(term)
    for n in range(1, len(units)):
        for start in range(len(units) - n + 1):
            yield _join(units[start : start + n])


def _join(units: Sequence[str]) -> str:
    """Units as they stand in a text: a space between two words."""
    parts = list(units[:1])
    for before, unit in itertools.pairwise(units):
        parts.append(f" {unit}" if _is_word(before[-1]) and _is_word(unit[0]) else unit)
    return "".join(parts)


def _kind(units: Sequence[str], author_rate: float, reference_rate: float) -> Kind:
    words = sum(_is_word(unit[0]) for unit in units)
    if words >= PHRASE_WORDS or len(units) - words >= PHRASE_CHARS:
        return "phrase"
    return "rare" if reference_rate <= RARE * author_rate else "keyword"
