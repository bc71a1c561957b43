"""Load a tokenizer; encode long text in chunks.

Tokenizers slow down on whole novels, so text is cut at places that depend on the text alone (paragraph ends, else
sentence ends) and the chunks are encoded one by one: the ids do not depend on batching or on how work is shared, and
time is linear. A tokenizer that treats the start of a text specially (it would do so at every cut) is found by a probe
and given the whole text instead: slower, same ids as ever.

Workers need none of transformers: `tokenizers.Tokenizer`, which is a fast tokenizer's core, is all that `stream` uses.

V ids of a vocabulary.
"""

import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import chain, islice
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from raystyle import bpe
from raystyle.errors import ModelError

Ids = NDArray[np.int32]
Offsets = NDArray[np.int64]

MIN_CHUNK_CHARS, MAX_CHUNK_CHARS = 500, 3000
CHUNKS_PER_BATCH = 64
# A sentence's last marks, with the quotes and brackets that close after them.
SENTENCE_END = re.compile(r"[。！？…!?]+[”’」』）)\"]*")
# How a byte-level vocabulary spells the bytes 0x80 to 0xBF, with which no character of UTF-8 begins: printable Latin-1
# bytes as themselves, the 68 others as U+0100 and on in order (GPT-2, encoder.py, `bytes_to_unicode`).
_CONTINUATIONS = frozenset([*map(chr, range(0x122, 0x143)), *map(chr, range(0xA1, 0xC0)), chr(0x143)]) - {"\u00ad"}


def load_tokenizer(name: str, trust_remote_code: bool = False) -> Any:
    """The fast tokenizer at a folder or of a hub name. A folder is never looked up on the hub.

    Raises `ModelError` where there is none, or only a slow one without character offsets.
    """
    local = os.path.isdir(os.path.expanduser(name))
    if not local and name.startswith(("/", ".", "~")):
        raise ModelError(
            f"tokenizer `{name}` does not exist\nhint: name a folder that holds a tokenizer.json, or a hub name"
        )
    from transformers import AutoTokenizer

    try:
        path = os.path.expanduser(name) if local else name
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code, local_files_only=local)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"tokenizer `{name}` cannot be loaded: {reason}\n"
            "hint: name a folder that holds a tokenizer.json, or a hub name (gated ones need `hf auth login`)"
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"tokenizer `{name}` has no fast version, which character offsets need\nhint: use a model with a tokenizer.json"
        )
    return tokenizer


def backend_json(tokenizer: Any) -> str:
    """The core tokenizer as JSON, in a fixed form; truncation and padding, which would lose text, are left out."""
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    content = json.loads(backend.to_str())
    content["truncation"] = content["padding"] = None
    return json.dumps(content, ensure_ascii=False, sort_keys=True)


def tokenizer_digest(tokenizer: Any) -> str:
    """SHA-256 of everything that decides which ids a document gets."""
    prefix, eos = prefix_and_end(tokenizer)
    return hashlib.sha256(f"{backend_json(tokenizer)}\n{prefix}\n{eos}".encode()).hexdigest()


def prefix_and_end(tokenizer: Any) -> tuple[list[int], int]:
    """The ids the tokenizer itself puts in front of a text (a beginning-of-text id, or none), and its end-of-text id."""
    if tokenizer.eos_token_id is None:
        raise ModelError("the tokenizer has no end-of-text token\nhint: set `eos_token` in its tokenizer_config.json")
    with_special = list(tokenizer("文").input_ids)
    plain = list(tokenizer("文", add_special_tokens=False).input_ids)
    starts = range(len(with_special) - len(plain) + 1)
    start = next((i for i in starts if with_special[i : i + len(plain)] == plain), 0)
    return with_special[:start], int(tokenizer.eos_token_id)


def encode(tokenizer: Any, text: str) -> tuple[Ids, Offsets]:
    """Token ids of a text, and the character offset at which each token starts; see `stream`."""
    ids, offsets = zip(*stream(tokenizer, text), strict=True)
    return np.concatenate(ids), np.concatenate(offsets)


def stream(tokenizer: Any, text: str) -> Iterator[tuple[Ids, Offsets]]:
    """What `encode` gives, some chunks at a time, so that a long text is never held as tokens. No special tokens are added.

    Text that spells a special token (`</s>`) is encoded as text: a novel cannot end its own document. Several tokens of
    one character share its offset.
    """
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    traits = _traits(backend, backend.get_vocab_size())
    ends = chunk_ends(text) if traits.composes else [len(text)]
    bounds = zip(chain([0], ends), ends, strict=False)
    while batch := list(islice(bounds, CHUNKS_PER_BATCH)):
        yield _encode_chunks(backend, traits, text, batch)


@contextmanager
def _plain(backend: Any) -> Iterator[None]:
    """Special tokens as text, no truncation, no padding; afterwards the tokenizer is as it was."""
    special, truncation, padding = backend.encode_special_tokens, backend.truncation, backend.padding
    backend.encode_special_tokens = True
    backend.no_truncation()
    backend.no_padding()
    try:
        yield
    finally:
        backend.encode_special_tokens = special
        if truncation:
            backend.enable_truncation(**truncation)
        if padding:
            backend.enable_padding(**padding)


def _encode_chunks(backend: Any, traits: "_Traits", text: str, bounds: list[tuple[int, int]]) -> tuple[Ids, Offsets]:
    """Ids and offsets of neighbouring chunks. The tokenizer's own offsets cost a third more time than its ids: where
    ids tell how many characters they are, and these add up to the text, they are not asked for. Nor are ids, where
    tiktoken has the same."""
    first, last = bounds[0][0], bounds[-1][1]
    chunks = [text[start:end] for start, end in bounds]
    widths, encoder = traits.widths, traits.encoder
    with _plain(backend):
        if widths and _kept_by(backend.normalizer, text[first:last]):
            if encoder and encoder.knows(text[first:last]):
                ids = np.concatenate([encoder.ids(chunk) for chunk in chunks]).astype(np.int32)
            else:
                encodings = backend.encode_batch_fast(chunks, add_special_tokens=False)
                ids = np.fromiter(chain.from_iterable(encoding.ids for encoding in encodings), np.int32)
            begun = widths.begun_V.take(ids)
            ends = np.cumsum(begun, dtype=np.int64)
            if (int(ends[-1]) if len(ends) else 0) == last - first:
                return ids, ends - begun - widths.inside_V.take(ids) + first
        encodings = backend.encode_batch(chunks, add_special_tokens=False)
    ids = np.fromiter(chain.from_iterable(encoding.ids for encoding in encodings), np.int32)
    offsets = (
        start + span[0] for (start, _), encoding in zip(bounds, encodings, strict=True) for span in encoding.offsets
    )
    return ids, np.fromiter(offsets, np.int64, len(ids))


class _Widths(NamedTuple):
    """For each id of a byte-level vocabulary: how many characters begin in its bytes, and whether (1 or 0) it starts
    inside a character that an earlier token began."""

    begun_V: NDArray[np.int16]
    inside_V: NDArray[np.int16]


class _Traits(NamedTuple):
    composes: bool
    widths: _Widths | None
    encoder: bpe.Encoder | None


@lru_cache(maxsize=4)
def _traits(backend: Any, vocab_size: int) -> _Traits:
    """What is worth knowing of a tokenizer beforehand. The size of its vocabulary is in the key, for tokens get added."""
    with _plain(backend):
        return _Traits(_composes(backend), _widths(backend), bpe.encoder(backend))


def _widths(backend: Any) -> _Widths | None:
    """None where tokens are not bytes."""
    from tokenizers import decoders

    if not isinstance(backend.decoder, decoders.ByteLevel):
        return None
    vocabulary = backend.get_vocab()
    added = {token.content for token in backend.get_added_tokens_decoder().values()}
    begun_V = np.zeros(max(vocabulary.values()) + 1, np.int16)
    inside_V = np.zeros_like(begun_V)
    without_continuations = dict.fromkeys(map(ord, _CONTINUATIONS))
    for token, id_ in vocabulary.items():
        if token in added:
            begun_V[id_] = len(token)
        else:
            begun_V[id_] = len(token.translate(without_continuations))
            inside_V[id_] = token[:1] in _CONTINUATIONS
    return _Widths(begun_V, inside_V)


def _kept_by(normalizer: Any, text: str) -> bool:
    """Whether a tokenizer's normalizer, if any, leaves the text as it is."""
    if normalizer is None:
        return True
    if type(normalizer).__name__ == "NFC":
        # Twenty times as fast as normalizing.
        return unicodedata.is_normalized("NFC", text)
    return bool(normalizer.normalize_str(text) == text)


def chunk_ends(text: str) -> list[int]:
    """Where to cut a text: after the first line break past 500 characters, else the last sentence end before 3,000."""
    ends, start = [], 0
    while len(text) - start > MAX_CHUNK_CHARS:
        latest = start + MAX_CHUNK_CHARS
        end = text.find("\n", start + MIN_CHUNK_CHARS, latest) + 1
        # A run of line breaks may be one token: cut after the whole run.
        while 0 < end < latest and text[end] == "\n":
            end += 1
        if not end:
            sentences = list(SENTENCE_END.finditer(text, start + MIN_CHUNK_CHARS, latest))
            end = sentences[-1].end() if sentences else latest
        ends.append(end)
        start = end
    return [*ends, len(text)]


def _composes(backend: Any) -> bool:
    """Whether paragraphs encoded apart give the ids of their text encoded whole: nothing is put in front of each."""

    def ids(text: str) -> list[int]:
        return cast(list[int], backend.encode(text, add_special_tokens=False).ids)

    return ids("天晴。\n") + ids("他来了。") == ids("天晴。\n他来了。")
