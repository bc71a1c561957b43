"""Who wrote it: distances between texts and authors by how often each uses small, common pieces of language.

Chinese is counted in characters and their pairs and triples, without a segmenter; languages with spaces in words. Each
rate is a z-score over the reference's chunks, in which every author weighs the same. Three measures:

    burrows     Burrows (2002): mean absolute difference of the z-scores of the 600 most frequent characters (or words)
    cosine      cosine Delta (Smith & Aldridge 2011; Evert et al. 2017): 1 - cosine, over all pieces
    distances   the one that attributes best: z-scores rotated to their principal components and divided by the spread
                *within* authors (Argamon 2008's rotated Delta with the covariance of Fisher's discriminant (1936), shrunk
                as Friedman (1989) does): what varies between one author's own chunks, topic above all, counts little

Those three say which author is nearest. How near a text is to one author is another question, for they know the author's
chunks: scales and rotation stretch what only a known chunk has, and text that repeats one lands where no new text of his
would, the more so the less there is of him. `author_distances`, `own_distances`, `others_distances`, `placed` and all
percentiles therefore measure on scales and rotations made of the other authors alone, with fifths of everybody left out
in turn (cross-fitting): a chunk of the reference in the turn without it, any other text as the mean over turns. These
compare with each other, at one size of chunk, and with nothing else.

`bench/attribution.py` compares them on held-out text. Nothing depends on whitespace or on the order of documents.
A authors; C chunks; F pieces (features); K components; S sentence ends; U units (characters or words) of a text.
"""

import functools
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from raystyle.errors import DataError

Array = NDArray[np.float64]
# The most frequent single units, pairs and triples; chosen on five of the benchmark's ten authors.
TOP = (1000, 2000, 1000)
BURROWS_TOP = 600
COMPONENTS = 100
# Share of the within-author covariance that is replaced by its mean variance, the same in all directions.
SHRINKAGE = 0.3
# Components and covariance are estimated on at most so many chunks of an author, evenly taken.
MAX_CHUNKS = 150
# Parts in which authors' chunks are left out in turn.
FOLDS = 5
# Other sizes of chunk than a reference's own: from this one up, each larger by this factor. An author is then known by at
# most so many chunks, evenly taken: short chunks are many.
MIN_CHUNK_CHARS, CHUNK_STEP = 200, 1.25
MAX_RESIZED_CHUNKS = 400
# Fewer chunks of an author have no spread to place anything in.
MIN_CHUNKS = 3
# A chunk may be this share of its length shorter or longer, to end with a sentence.
TOLERANCE = 0.1

_SENTENCE_END = re.compile(r"[。！？!?…]+[”’」』）)\"']*|[.](?=\s|$)")
_SPACE = re.compile(r"\s")
_WORD = re.compile(r"\w+|[^\w\s]")
_LETTER, _WIDE = re.compile(r"[^\W\d_]"), re.compile(r"[\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff]")


class Scales:
    """What authors' chunks are measured on: pieces, their mean and spread, and the rotation."""

    def __init__(self, pieces: Mapping[str, Sequence[str]], spaced: bool) -> None:
        self.counter = _Counter(pieces, spaced)
        self.rates_CF = {author: self.counter.rates(found) for author, found in pieces.items()}
        # Each author weighs the same, however much there is of him.
        weight_C = np.concatenate([np.full(len(r), 1 / (len(pieces) * len(r))) for r in self.rates_CF.values()])
        rates_CF = np.concatenate(list(self.rates_CF.values()))
        self.mean_F = weight_C @ rates_CF
        self.scale_F = _inverse(np.sqrt(weight_C @ (rates_CF - self.mean_F) ** 2))
        self.basis_FK, self.rotation_FK = _rotation({author: self.z(found) for author, found in self.rates_CF.items()})

    def z(self, rates_CF: Array) -> Array:
        """Rates as z-scores (C, F)."""
        z_CF: Array = (rates_CF - self.mean_F) * self.scale_F
        return z_CF

    def points(self, texts: Sequence[str]) -> Array:
        """Texts in the rotated space (C, K)."""
        points_CK: Array = self.z(self.counter.rates(texts)) @ self.rotation_FK
        return points_CK


class Turn(NamedTuple):
    """An author's center without a fifth of his chunks, on scales made of four fifths of everybody else's."""

    scales: Scales
    center_K: Array

    def distances(self, texts: Sequence[str]) -> Array:
        """Distances (C,) of texts to the author."""
        found_C: Array = np.linalg.norm(self.scales.points(texts) - self.center_K, axis=1)
        return found_C


class Reference(Scales):
    """Authors to compare with, and the scales to compare on, at one size of chunk. `fit` makes it.

    `authors` in alphabetical order; `texts` are their documents and `pieces` their chunks; `profiles_AF` are the means of
    their z-scores; `centers_AK` the same in the rotated space.
    """

    def __init__(self, texts: Mapping[str, Sequence[str]], chunk_chars: int, max_chunks: int | None = None) -> None:
        self.chunk_chars = chunk_chars
        self.authors = sorted(texts)
        self.texts = {author: tuple(sorted(texts[author])) for author in self.authors}
        cut = {author: chunks("\n".join(self.texts[author]), chunk_chars) for author in self.authors}
        _check(cut, chunk_chars)
        self.pieces = {author: _evenly(found, max_chunks or len(found)) for author, found in cut.items()}
        self.spaced = is_spaced(text for author in self.authors for text in self.texts[author])
        super().__init__(self.pieces, self.spaced)
        # Burrows' own z-scores are over texts, not over authors.
        top_C6 = np.concatenate([found[:, : self.counter.burrows] for found in self.rates_CF.values()])
        self.burrows_mean_F, self.burrows_scale_F = top_C6.mean(0), _inverse(top_C6.std(0))
        self.profiles_AF = np.stack([self.z(found).mean(0) for found in self.rates_CF.values()])
        self.burrows_AF = np.stack([self._burrows_z(found).mean(0) for found in self.rates_CF.values()])
        self.centers_AK = self.profiles_AF @ self.rotation_FK
        # The largest thing here, and of no more use.
        del self.rates_CF
        self._turns: dict[str, list[Turn]] = {}
        self._own: dict[str, Array] = {}

    def turns(self, author: str) -> list[Turn]:
        """How far texts are from an author, without that author's knowledge: see the module's beginning."""
        if author not in self._turns:
            self._turns[author] = [self._turn(author, fold) for fold in range(FOLDS)]
        return self._turns[author]

    def fold(self, author: str, fold: int) -> tuple[list[str], list[str]]:
        """A fifth of an author's chunks, which stand together, and the other four."""
        found = self.pieces[author]
        start, end = (len(found) * number // FOLDS for number in (fold, fold + 1))
        return found[start:end], found[:start] + found[end:]

    def own(self, author: str) -> Array:
        """Distances (C,) to an author of his own chunks in the turns without them."""
        if author not in self._own:
            self._own[author] = self.left_out(author, author, len(self.pieces[author]))
        return self._own[author]

    def left_out(self, author: str, name: str, most: int) -> Array:
        """Distances (C,) to an author of somebody's chunks in the turns without them, at most so many of each fifth."""
        parts = [_evenly(self.fold(name, fold)[0], most) for fold in range(FOLDS)]
        turns = self.turns(author)
        return np.concatenate([turn.distances(part) for turn, part in zip(turns, parts, strict=True) if part])

    def _turn(self, author: str, fold: int) -> Turn:
        rest = {name: _evenly(self.fold(name, fold)[1], MAX_CHUNKS) for name in self.authors if name != author}
        scales = Scales(rest, self.spaced)
        del scales.rates_CF
        return Turn(scales, scales.points(self.fold(author, fold)[1]).mean(0))

    def _burrows_z(self, rates_CF: Array) -> Array:
        top: Array = rates_CF[:, : self.counter.burrows]
        z_CF: Array = (top - self.burrows_mean_F) * self.burrows_scale_F
        return z_CF

    def burrows(self, rates_CF: Array) -> Array:
        """Distances (C, A) of chunks to authors."""
        return np.stack([np.abs(self._burrows_z(rates_CF) - profile).mean(1) for profile in self.burrows_AF], 1)

    def cosine(self, rates_CF: Array) -> Array:
        """Distances (C, A) of chunks to authors, from 0 to 2."""
        found_CA: Array = 1 - _unit(self.z(rates_CF)) @ _unit(self.profiles_AF).T
        return found_CA

    def rotated(self, rates_CF: Array) -> Array:
        """Distances (C, A) of chunks to authors, 0 at an author's mean."""
        points_CK = self.z(rates_CF) @ self.rotation_FK
        return np.stack([np.linalg.norm(points_CK - center, axis=1) for center in self.centers_AK], 1)


class Attribution(NamedTuple):
    """The nearest author of a text, the distances to all, and the text's percentile within the nearest one's own chunks.

    The percentile is by `author_distances`, which the distances here do not compare with.
    """

    author: str
    distances: dict[str, float]
    percentile: float


class Placement(NamedTuple):
    """Where texts stand with respect to an author: means over their chunks of `chunk_chars` characters.

    `distance` compares with `own_distances` and `others_distances`. `percentile` is the mean over chunks of the share of
    his own chunks that are nearer to him: 50 is like himself, 100 farther off than he ever is. `burrows` and `cosine` know
    the author's text. `nearest` is the author whom most chunks are nearest to by `distances`.
    """

    distance: float
    burrows: float
    cosine: float
    percentile: float
    nearest: str
    chunks: int
    chunk_chars: int


def chunks(text: str, chunk_chars: int) -> list[str]:
    """Cut a text into chunks of about `chunk_chars` characters, whitespace not counted, at sentence ends where one is near.

    A rest of under half a chunk joins the last one. A text without characters has no chunks.
    """
    solid_U = np.ones(len(text), np.int64)
    solid_U[[match.start() for match in _SPACE.finditer(text)]] = 0
    solid_U = np.cumsum(solid_U)
    total = int(solid_U[-1]) if len(text) else 0
    if not total:
        return []
    ends_S = np.array([match.end() for match in _SENTENCE_END.finditer(text)], np.int64)
    sizes_S = solid_U[ends_S - 1] if len(ends_S) else ends_S
    cuts, done = [0], 0
    while total - done >= 1.5 * chunk_chars:
        wanted = done + chunk_chars
        after = int(np.searchsorted(sizes_S, wanted))
        around = [n for n in (after - 1, after) if 0 <= n < len(sizes_S)]
        best = min(around, key=lambda n: abs(int(sizes_S[n]) - wanted), default=-1)
        near = best >= 0 and abs(int(sizes_S[best]) - wanted) <= TOLERANCE * chunk_chars
        end = int(ends_S[best]) if near else int(np.searchsorted(solid_U, wanted)) + 1
        cuts.append(end)
        done = int(solid_U[end - 1])
    return [text[start:end] for start, end in zip(cuts, [*cuts[1:], len(text)], strict=True)]


def size(text: str) -> int:
    """Characters of a text, without whitespace."""
    return len("".join(text.split()))


def fit(texts: Mapping[str, Sequence[str]], *, chunk_chars: int = 2000) -> Reference:
    """Learn scales and profiles from authors' documents. Raises `DataError` for fewer than two authors, and where one has
    fewer than three chunks."""
    return Reference(texts, chunk_chars)


def distances(reference: Reference, text: str) -> dict[str, float]:
    """To each author, by the measure that attributes best (rotated, see above).

    They say who is nearest, and do not compare with `own_distances`. The text should be about as long as the reference's
    chunks: shorter ones are farther from everybody.
    """
    return _named(reference, reference.rotated(reference.counter.rates([text])))


def burrows(reference: Reference, text: str) -> dict[str, float]:
    """Burrows' Delta to each author (Burrows 2002)."""
    return _named(reference, reference.burrows(reference.counter.rates([text])))


def cosine(reference: Reference, text: str) -> dict[str, float]:
    """Cosine Delta to each author (Smith & Aldridge 2011; Evert et al. 2017), from 0 to 2."""
    return _named(reference, reference.cosine(reference.counter.rates([text])))


def author_distances(reference: Reference, author: str, pieces: Sequence[str]) -> Array:
    """Distance (C,) of chunks to an author, the mean over turns: what `own_distances` and `others_distances` compare with.

    The chunks should be of the reference's size: shorter ones are farther off.
    """
    found_C: Array = np.mean([turn.distances(pieces) for turn in reference.turns(author)], axis=0)
    return found_C


def own_distances(reference: Reference, author: str, chunk_chars: int | None = None) -> Array:
    """Distance of each of an author's chunks to the profile of his other chunks, as new text of his would have it.

    Each is measured in the turn that leaves it out. Of another `chunk_chars` than the reference's, see `resized`.
    """
    reference = resized(reference, chunk_chars or reference.chunk_chars)
    return reference.own(author)


def others_distances(reference: Reference, author: str) -> dict[str, Array]:
    """Distance to an author of every other author's chunks, each measured in the turn that leaves it out, as new text of
    theirs would have it. At most `MAX_RESIZED_CHUNKS` of each, evenly taken."""
    most = MAX_RESIZED_CHUNKS // FOLDS
    return {name: reference.left_out(author, name, most) for name in reference.authors if name != author}


def resized(reference: Reference, chunk_chars: int) -> Reference:
    """A reference to compare pieces of about `chunk_chars` characters with, never of larger chunks than the given one.

    Its `chunk_chars` is the next of few sizes (200 and up, in steps of a quarter) that the pieces are at least nine tenths
    of; under 180 characters everything is compared with chunks of 200. At most `MAX_RESIZED_CHUNKS` chunks of an author are
    read, evenly taken, and the last two references made are kept.
    """
    if chunk_chars >= reference.chunk_chars:
        return reference
    steps = math.floor(math.log(max(1.0, chunk_chars / (1 - TOLERANCE) / MIN_CHUNK_CHARS), CHUNK_STEP) + 1e-9)
    wanted = round(MIN_CHUNK_CHARS * CHUNK_STEP**steps, -1)
    return reference if wanted >= reference.chunk_chars else _at(reference, int(wanted))


def percentile(distance: float, own_distances: Iterable[float]) -> float:
    """0 to 100: the share of an author's own chunks that are nearer to him than this."""
    own_C = np.asarray(list(own_distances), np.float64)
    return float(100 * np.mean(own_C < distance))


def placed(reference: Reference, author: str, texts: Sequence[str]) -> Placement:
    """Where texts (such as samples) stand with respect to an author, joined and cut into chunks of the reference's size.

    Where there is less text than nine tenths of a chunk, it is one shorter chunk, and the author's own chunks are then of
    about that size too (see `resized`). Distances of different `chunk_chars` do not compare: texts that are to be compared
    are placed in one reference, `resized` to the shortest. Raises `DataError` where there is no text.
    """
    joined = "\n".join(sorted(texts))
    if not (length := size(joined)):
        raise DataError("there is no text to place\nhint: draw longer samples")
    pieces = chunks(joined, reference.chunk_chars)
    if length < (1 - TOLERANCE) * reference.chunk_chars:
        reference = resized(reference, length)
    rates_CF = reference.counter.rates(pieces)
    number = reference.authors.index(author)
    rotated_CA = reference.rotated(rates_CF)
    distances_C, own_C = author_distances(reference, author, pieces), own_distances(reference, author)
    nearest_A = np.bincount(rotated_CA.argmin(1), minlength=len(reference.authors))
    return Placement(
        distance=float(distances_C.mean()),
        burrows=float(reference.burrows(rates_CF)[:, number].mean()),
        cosine=float(reference.cosine(rates_CF)[:, number].mean()),
        percentile=float(np.mean([percentile(float(found), own_C) for found in distances_C])),
        nearest=reference.authors[int(nearest_A.argmax())],
        chunks=len(pieces),
        chunk_chars=reference.chunk_chars,
    )


def attribute(reference: Reference, text: str) -> Attribution:
    """The nearest author of one chunk. One of less than nine tenths of the reference's size is compared at its own size."""
    length = size(text)
    if not length:
        raise DataError("there is no text to attribute")
    if length < (1 - TOLERANCE) * reference.chunk_chars:
        reference = resized(reference, length)
    found = distances(reference, text)
    author = min(found, key=lambda name: found[name])
    near = float(author_distances(reference, author, [text])[0])
    return Attribution(author, found, percentile(near, own_distances(reference, author)))


def plane(reference: Reference, groups: Mapping[str, Sequence[str]]) -> dict[str, list[tuple[float, float]]]:
    """The first two principal components of the authors' chunks, and where each group's chunks fall on them.

    The authors themselves are there under their names.
    """
    cut = reference.pieces | {
        name: chunks("\n".join(sorted(texts)), reference.chunk_chars) for name, texts in groups.items()
    }
    axes_F2 = np.zeros((len(reference.mean_F), 2))
    axes_F2[:, : reference.basis_FK.shape[1]] = reference.basis_FK[:, :2]
    found = {}
    for name, pieces in cut.items():
        points_C2 = reference.z(reference.counter.rates(pieces)) @ axes_F2
        found[name] = [(float(x), float(y)) for x, y in points_C2]
    return found


class _Counter:
    """Rates of the most frequent units, pairs and triples of a reference, per thousand units. Columns: singles first."""

    def __init__(self, pieces: Mapping[str, Sequence[str]], spaced: bool) -> None:
        self.spaced = spaced
        words = sorted({word for found in pieces.values() for text in found for word in _words(text)}) if spaced else []
        self.ids = {word: number for number, word in enumerate(words, 1)}
        units = {author: self._numbers("\n".join(found)) for author, found in pieces.items()}
        self.keys: list[NDArray[np.int64]] = []  # of each order, ascending
        self.columns: list[NDArray[np.int64]] = []
        first = 0
        for order, top in enumerate(TOP, 1):
            rate: dict[str, tuple[NDArray[np.int64], Array]] = {}
            for author, found in units.items():
                keys, counts = np.unique(_keys(found, order), return_counts=True)
                rate[author] = keys, counts / max(1, len(found))
            every, where = np.unique(np.concatenate([keys for keys, _ in rate.values()]), return_inverse=True)
            total = np.bincount(where, np.concatenate([r for _, r in rate.values()]), len(every))
            # Ties by the units themselves, so that nothing depends on the order of texts.
            best = np.argsort(-total.round(12), kind="stable")[:top]
            ascending = np.argsort(every[best])
            self.keys.append(every[best][ascending])
            self.columns.append(first + ascending)
            first += len(best)
        self.features = first
        self.burrows = min(BURROWS_TOP, len(self.keys[0]))

    def rates(self, texts: Sequence[str]) -> Array:
        """Rates (C, F) of texts."""
        rates_CF = np.zeros((len(texts), self.features))
        for row, text in enumerate(texts):
            numbers_U = self._numbers(text)
            for order, (keys, columns) in enumerate(zip(self.keys, self.columns, strict=True), 1):
                wanted = _keys(numbers_U, order)
                if not len(keys) or not len(wanted):
                    continue
                place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
                hits = columns[place[keys[place] == wanted]]
                rates_CF[row] += np.bincount(hits, minlength=self.features)
            rates_CF[row] *= 1000 / max(1, len(numbers_U))
        return rates_CF

    def _numbers(self, text: str) -> NDArray[np.int64]:
        """Units as numbers: code points, or words by their place in the vocabulary, 0 where it has them not."""
        if self.spaced:
            return np.array([self.ids.get(word, 0) for word in _words(text)], np.int64)
        solid = "".join(text.lower().split())
        return np.frombuffer(solid.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.int64)


def _keys(numbers_U: NDArray[np.int64], order: int) -> NDArray[np.int64]:
    """One number for each run of `order` units; runs with a word that the reference has not are left out."""
    count = max(0, len(numbers_U) - order + 1)
    runs = [numbers_U[start : start + count] for start in range(order)]
    # Three code points fit into 63 bits.
    key: Any = functools.reduce(lambda left, right: left * (sys.maxunicode + 1) + right, runs)
    known: NDArray[np.int64] = key[np.all([run > 0 for run in runs], axis=0)]
    return known


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def is_spaced(texts: Iterable[str]) -> bool:
    """Whether less than half of the letters are Chinese or Japanese, by the beginnings of all texts."""
    sample = "".join(text[:2000] for text in texts)
    return 2 * len(_WIDE.findall(sample)) < len(_LETTER.findall(sample))


def _check(pieces: Mapping[str, Sequence[str]], chunk_chars: int) -> None:
    if len(pieces) < 2:
        raise DataError(f"{len(pieces)} author to compare with\nhint: give at least two")
    for author, found in pieces.items():
        if len(found) < MIN_CHUNKS:
            length = sum(map(size, found))
            raise DataError(
                f"{length:,} characters by {author} are too few: {MIN_CHUNKS} chunks of {chunk_chars:,} are the least\n"
                f"hint: give {MIN_CHUNKS * chunk_chars:,} characters or more, or smaller chunks"
            )


def _rotation(z: Mapping[str, Array]) -> tuple[Array, Array]:
    """The principal components (F, K) of authors' z-scores, and the same turned and scaled so that what varies within
    authors has a mean square of 1 over all K."""
    taken = [found[_places(len(found), MAX_CHUNKS)] for found in z.values()]
    rows_CF = np.concatenate([found / np.sqrt(len(found)) for found in taken])
    basis_FK = _principal(rows_CF, min(COMPONENTS, len(rows_CF) - 1))
    count = basis_FK.shape[1]
    spread_KK = np.zeros((count, count))
    for found in taken:
        points_CK = found @ basis_FK
        spread_KK += np.cov(points_CK, rowvar=False, bias=True).reshape(count, count) / len(taken)
    variance = max(float(np.trace(spread_KK)) / count, 1e-12)
    values_K, vectors_KK = np.linalg.eigh((1 - SHRINKAGE) * spread_KK + SHRINKAGE * variance * np.eye(count))
    return basis_FK, basis_FK @ (vectors_KK / np.sqrt(values_K * count))


def _principal(rows_CF: Array, components: int) -> Array:
    """The first principal directions (F, K), by subspace iteration from a fixed start (Halko et al. 2011)."""
    start = np.random.default_rng(0).standard_normal((rows_CF.shape[1], min(components + 20, *rows_CF.shape)))
    for _ in range(3):
        start = np.linalg.qr(rows_CF.T @ (rows_CF @ start))[0]
    _, _, directions = np.linalg.svd(rows_CF @ start, full_matrices=False)
    basis_FK: Array = start @ directions[:components].T
    # Signs are free: the largest entry of each is positive.
    return basis_FK * np.sign(basis_FK[np.abs(basis_FK).argmax(0), range(basis_FK.shape[1])])


def _inverse(scale_F: Array) -> Array:
    """1 / scale, 0 where nothing varies."""
    return np.divide(1, scale_F, out=np.zeros_like(scale_F), where=scale_F > 1e-9)


def _unit(rows: Array) -> Array:
    unit: Array = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return unit


def _named(reference: Reference, found_1A: Array) -> dict[str, float]:
    return {author: float(value) for author, value in zip(reference.authors, found_1A[0], strict=True)}


def _places(count: int, most: int) -> NDArray[np.int64]:
    """At most so many of `count` places, evenly taken."""
    return np.linspace(0, count - 1, min(count, most)).astype(np.int64)


def _evenly(pieces: Sequence[str], most: int) -> list[str]:
    return [pieces[place] for place in _places(len(pieces), most)]


@functools.lru_cache(maxsize=2)
def _at(reference: Reference, chunk_chars: int) -> Reference:
    """A reference at another size of chunk."""
    return Reference(reference.texts, chunk_chars, MAX_RESIZED_CHUNKS)
