"""Load a tokenizer; encode long text in chunks.

Tokenizers slow down on whole novels, so text is cut at places that depend on the text alone (paragraph ends, else
sentence ends) and the chunks are encoded one by one: the ids do not depend on batching or on how work is shared, and
time is linear. A tokenizer that treats the start of a text specially (it would do so at every cut) is found by a probe
and given the whole text instead: slower, same ids as ever.

Workers need none of transformers: `tokenizers.Tokenizer`, which is a fast tokenizer's core, is all that `encode` uses.
"""

import hashlib
import json
import os
import re
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from raystyle.errors import ModelError

Ids = NDArray[np.int32]
Offsets = NDArray[np.int64]

MIN_CHUNK_CHARS, MAX_CHUNK_CHARS = 500, 3000
CHUNKS_PER_BATCH = 64
_SENTENCE_END = re.compile(r"[。！？…!?]+[”’」』\"]*")


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
    """Token ids of a text, and the character offset at which each token starts. No special tokens are added.

    Text that spells a special token (`</s>`) is encoded as text: a novel cannot end its own document. Several tokens of
    one character share its offset.
    """
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    before = backend.encode_special_tokens, backend.truncation, backend.padding
    backend.encode_special_tokens = True
    backend.no_truncation()
    backend.no_padding()
    try:
        cuts = chunk_ends(text)
        if len(cuts) > 1 and not _composes(backend):
            cuts = [len(text)]
        return _encode_chunks(backend, text, cuts)
    finally:
        backend.encode_special_tokens = before[0]
        if before[1]:
            backend.enable_truncation(**before[1])
        if before[2]:
            backend.enable_padding(**before[2])


def _encode_chunks(backend: Any, text: str, cuts: list[int]) -> tuple[Ids, Offsets]:
    ids, offsets = [np.empty(0, np.int32)], [np.empty(0, np.int64)]
    starts = [0, *cuts[:-1]]
    for first in range(0, len(cuts), CHUNKS_PER_BATCH):
        bounds = list(zip(starts, cuts, strict=True))[first : first + CHUNKS_PER_BATCH]
        encodings = backend.encode_batch([text[start:end] for start, end in bounds], add_special_tokens=False)
        for (start, _), encoding in zip(bounds, encodings, strict=True):
            ids.append(np.array(encoding.ids, np.int32))
            offsets.append(np.array([span[0] for span in encoding.offsets], np.int64) + start)
    return np.concatenate(ids), np.concatenate(offsets)


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
            sentences = list(_SENTENCE_END.finditer(text, start + MIN_CHUNK_CHARS, latest))
            end = sentences[-1].end() if sentences else latest
        ends.append(end)
        start = end
    return [*ends, len(text)]


def _composes(backend: Any) -> bool:
    """Whether chunks encoded apart give the ids of the text encoded whole."""

    def ids(text: str) -> list[int]:
        return cast(list[int], backend.encode(text, add_special_tokens=False).ids)

    return all(ids(a) + ids(b) == ids(a + b) for a, b in [("天晴。\n", "他来了。"), ("天晴。", "他来了。")])
