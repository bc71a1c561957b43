"""How well a model predicts texts, in bits per character, with intervals; and by how much a text became more predictable.

Bits per character compare models of any vocabulary: the surprise of all tokens, shared among the characters that they
spell. The statement that it serves is "the target became more predictable than the contrast did".

B windows of a batch, T tokens, C a chunk of them, V vocabulary; U units that are resampled, K columns, R resamples.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from raystyle import tokens
from raystyle.errors import DataError

if TYPE_CHECKING:
    import torch

# Logits of a batch in the model's own dtype, and how much of them is taken to fp32 or fp64 at once.
LOGIT_BYTES, CHUNK_BYTES = 2**30, 256 * 2**20
# Fewer documents than this say too little about how documents differ; their windows are resampled instead.
MIN_DOCUMENTS = 5
RESAMPLES, COVERAGE = 2000, 0.95
SEED = 20_230_817


class Window(NamedTuple):
    """Neighbouring tokens of one document, behind the ids that the tokenizer puts in front of a text.

    `ids[first:]` are predicted; they spell `characters`.
    """

    ids: list[int]
    first: int
    characters: int
    document: int


class Scored(NamedTuple):
    """A window's surprise: `nats` over `tokens` predicted tokens that spell `characters`; `document` is its number."""

    nats: float
    characters: int
    tokens: int
    document: int


class Estimate(NamedTuple):
    """A value and its 95 % interval; an interval of nan where there is nothing to resample."""

    value: float
    low: float
    high: float


def score(
    model: Any, tokenizer: Any, texts: Sequence[str], *, max_tokens: int = 1024, batch_size: int = 8
) -> list[Scored]:
    """Every window's surprise under the model (in eval mode), in the order of the texts; see `windows`."""
    import torch
    from torch.nn.functional import cross_entropy

    found = windows(tokenizer, texts, max_tokens)
    nats = [0.0] * len(found)
    for numbers, ids_BT in batches(model, found, batch_size):
        with torch.inference_mode():
            logits_BTV = predict(model, ids_BT)
            for row, number in enumerate(numbers):
                window = found[number]
                for place in places(window, bytes_each=4 * logits_BTV.shape[-1]):
                    # The logits at one place predict the token at the next.
                    labels_C = ids_BT[row, place.start + 1 : place.stop + 1]
                    nats_C = cross_entropy(logits_BTV[row, place].float(), labels_C, reduction="none")
                    nats[number] += float(nats_C.double().sum())
    return [
        Scored(surprise, window.characters, len(window.ids) - window.first, window.document)
        for surprise, window in zip(nats, found, strict=True)
    ]


def windows(tokenizer: Any, texts: Sequence[str], max_tokens: int) -> list[Window]:
    """Each text's tokens in windows of at most `max_tokens` and of about equal length.

    A cut stands where a token begins with another character than the one before it, so that a character's tokens stay
    together, but for rare tokens that end inside a character; that one counts in the window of its last token.

    A window begins with what the tokenizer puts in front of a text (a beginning-of-text id), and its first token is
    predicted from that. Where the tokenizer puts nothing, a window's first token (all tokens, where its first character
    takes several) is neither predicted nor are its characters counted. A text without anything to predict, such as an empty one, has no window.
    """
    prefix, _ = tokens.prefix_and_end(tokenizer)
    found = []
    for document, text in enumerate(texts):
        if not text:
            continue
        ids_T, offsets_T = tokens.encode(tokenizer, text)
        # Several tokens may spell one character. Three are kept free for moving a cut back to where one begins.
        starts = np.flatnonzero(np.diff(offsets_T, prepend=-1))
        offsets = [*offsets_T.tolist(), len(text)]
        count = -(-len(ids_T) // max(1, max_tokens - len(prefix) - 3))
        inner = np.linspace(0, len(ids_T), count + 1)[1:-1]
        cuts = np.unique([0, *starts[np.searchsorted(starts, inner, side="right") - 1], len(ids_T)]).tolist()
        for start, end in pairwise(cuts):
            after = starts[np.searchsorted(starts, start, side="right") :]
            predicted = start if prefix else int(after[0]) if len(after) else end
            if predicted < end:
                ids = [*prefix, *ids_T[start:end].tolist()]
                first = len(prefix) + predicted - start
                found.append(Window(ids, first, offsets[end] - offsets[predicted], document))
    return found


def batches(model: Any, found: Sequence[Window], batch_size: int) -> Iterator[tuple[list[int], "torch.Tensor"]]:
    """The windows' numbers and ids (B, T) on the model's device, longest first, padded on the right.

    A batch holds fewer than `batch_size` where its logits would take more than 1 GiB.
    """
    import torch

    parameter = next(model.parameters())
    order = sorted(range(len(found)), key=lambda i: -len(found[i].ids))
    vocab_size = model.get_output_embeddings().weight.shape[0]
    while order:
        longest = len(found[order[0]].ids)
        fitting = max(1, LOGIT_BYTES // (longest * vocab_size * parameter.element_size()))
        numbers, order = order[: min(batch_size, fitting)], order[min(batch_size, fitting) :]
        rows = [found[i].ids for i in numbers]
        yield numbers, torch.tensor([ids + [0] * (longest - len(ids)) for ids in rows], device=parameter.device)


def predict(model: Any, ids_BT: "torch.Tensor") -> "torch.Tensor":
    """Logits (B, T, V). No mask: a token never sees what follows it, and padding only follows."""
    return model(input_ids=ids_BT, use_cache=False).logits  # type: ignore[no-any-return]


def places(window: Window, bytes_each: int) -> Iterator[slice]:
    """The places of a window whose logits predict a token, in slices of at most 256 MiB at `bytes_each` bytes a place."""
    step = max(1, CHUNK_BYTES // bytes_each)
    for start in range(window.first - 1, len(window.ids) - 1, step):
        yield slice(start, min(start + step, len(window.ids) - 1))


def bits_per_character(scored: Sequence[Scored]) -> float:
    """Nats / ln 2 / characters over all windows. Raises `DataError` where there is no character."""
    return _bits(math.fsum(window.nats for window in scored), sum(window.characters for window in scored))


def estimate(scored: Sequence[Scored]) -> Estimate:
    """Bits per character with a 95 % percentile bootstrap interval (Efron & Tibshirani 1993, chapter 13).

    Whole documents are resampled; with fewer than 5 documents their windows are, which says how the parts of these few
    documents differ and not how documents do, so that the interval is too narrow for the author as a whole.
    """
    value = bits_per_character(scored)
    return _interval(value, _resampled(_units(scored, [window.nats for window in scored]), stream=0))


def gain(before: Sequence[Scored], after: Sequence[Scored]) -> Estimate:
    """How many bits per character fewer the same windows take, resampled in pairs as in `estimate`.

    Raises `DataError` where the two are not of the same windows.
    """
    value, resampled_R = _gains(before, after, stream=0)
    return _interval(value, resampled_R)


def gain_difference(
    target_before: Sequence[Scored],
    target_after: Sequence[Scored],
    contrast_before: Sequence[Scored],
    contrast_after: Sequence[Scored],
) -> Estimate:
    """The target's gain less the contrast's: above 0, the target became more predictable than the contrast did.

    Target and contrast are resampled independently of each other.
    """
    target, target_R = _gains(target_before, target_after, stream=0)
    contrast, contrast_R = _gains(contrast_before, contrast_after, stream=1)
    return _interval(target - contrast, target_R - contrast_R)


def _bits(nats: float, characters: int) -> float:
    if not characters:
        raise DataError("there is no text to predict\nhint: give documents of more than one character")
    return nats / math.log(2) / characters


def _gains(before: Sequence[Scored], after: Sequence[Scored], stream: int) -> tuple[float, NDArray[np.float64]]:
    if [window[1:] for window in before] != [window[1:] for window in after]:
        raise DataError("a gain compares the same windows of the same texts\nhint: score both with the same settings")
    fewer = [earlier.nats - later.nats for earlier, later in zip(before, after, strict=True)]
    value = _bits(math.fsum(fewer), sum(window.characters for window in before))
    return value, _resampled(_units(before, fewer), stream)


def _units(scored: Sequence[Scored], nats: Sequence[float]) -> NDArray[np.float64]:
    """What is resampled, (U, 2): nats and characters of each document, or of each window where documents are few.

    Sorted, so that neither sums nor draws depend on the order of documents.
    """
    by_document: dict[int, list[tuple[float, int]]] = defaultdict(list)
    for window, surprise in zip(scored, nats, strict=True):
        by_document[window.document].append((surprise, window.characters))
    if len(by_document) >= MIN_DOCUMENTS:
        units = [(math.fsum(n for n, _ in parts), sum(c for _, c in parts)) for parts in by_document.values()]
    else:
        units = [part for parts in by_document.values() for part in parts]
    return np.array(sorted(units), dtype=np.float64)


def _resampled(units_U2: NDArray[np.float64], stream: int) -> NDArray[np.float64]:
    """Bits per character of 2,000 draws of U units with replacement; none where there is one unit only."""
    if len(units_U2) < 2:
        return np.full(RESAMPLES, np.nan)
    random = np.random.default_rng([SEED, stream])
    count = len(units_U2)
    block = max(1, 2**20 // count)
    sums_R2 = np.concatenate(
        [
            units_U2[random.integers(count, size=(min(block, RESAMPLES - start), count))].sum(1)
            for start in range(0, RESAMPLES, block)
        ]
    )
    return np.asarray(sums_R2[:, 0] / math.log(2) / sums_R2[:, 1], dtype=np.float64)


def _interval(value: float, resampled_R: NDArray[np.float64]) -> Estimate:
    low, high = np.quantile(resampled_R, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2]).tolist()
    return Estimate(value, low, high)
