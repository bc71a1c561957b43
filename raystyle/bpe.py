"""Byte pairs merged by tiktoken, several times as fast as by the tokenizer itself, where it is sure to give the same ids.

A byte-level tokenizer of Hugging Face's splits text into pieces and merges the bytes of each, the pair that stands first in
its list of merges first. tiktoken does the same with the pair whose whole has the lowest id, listed or not. Which of the two
is asked makes no difference under these conditions:

- Pieces are cut by one of `PATTERNS`, on all characters (tests/test_bpe.py).
- Ids go up along the list of merges.
- What tiktoken merges the list has too. Two tokens that make up a third can only meet if they meet where the third's bytes are
  encoded alone, for no merge that they come from reaches beyond them. Alone a text passes one state of two tokens at the
  most. So a token whose bytes encode alone to itself has one pair that makes it, the listed one; and one whose bytes encode
  to others is never made of pairs, and is left out. (Llama 3 takes a piece that is a token for that token whatever its pairs,
  `ignore_merges`. tiktoken does so always: there such a token stays, if its bytes pass no state of two tokens.)
"""

import json
import re
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

# How byte-level vocabularies spell bytes (GPT-2, encoder.py, `bytes_to_unicode`): printable Latin-1 as itself, the others as
# U+0100 and on, in order.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
BYTE_OF = {chr(byte): byte for byte in _PRINTABLE} | {chr(0x100 + i): byte for i, byte in enumerate(_OTHERS)}

GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LATER = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3, QWEN2 = _LATER % r"\p{N}{1,3}", _LATER % r"\p{N}"
PATTERNS = {GPT2, LLAMA3, QWEN2}


class Encoder(NamedTuple):
    """`ids` of a text as the tokenizer gives them, unless `others` finds something in it: tokens that are no byte pairs."""

    encoding: Any
    others: "re.Pattern[str] | None"

    def knows(self, text: str) -> bool:
        return self.others is None or not self.others.search(text)

    def ids(self, text: str) -> NDArray[np.uint32]:
        found: NDArray[np.uint32] = self.encoding.encode_to_numpy(text)
        return found


def encoder(backend: Any) -> Encoder | None:
    """An encoder with the ids of a `tokenizers.Tokenizer` that takes special tokens as text, on text that its normalizer leaves
    as it is; None where it is not sure to have them, or tokens are no byte pairs."""
    content = json.loads(backend.to_str())
    model, pattern = content["model"], _pattern(content["pre_tokenizer"])
    if pattern not in PATTERNS or not _is_plain(model) or not BYTE_OF.keys() <= model["vocab"].keys():
        return None
    ids = _ids(model)
    # Special tokens are text. Others are looked for as the normalizer spells them.
    others = [token["content"] for token in content["added_tokens"] if not token["special"]]
    normalizer = backend.normalizer
    if ids is None or (normalizer and any(normalizer.normalize_str(token) != token for token in others)):
        return None
    import tiktoken

    spelled = {bytes(BYTE_OF[letter] for letter in token): id_ for token, id_ in ids.items()}
    encoding = tiktoken.Encoding("", pat_str=pattern, mergeable_ranks=spelled, special_tokens={})
    return Encoder(encoding, re.compile("|".join(map(re.escape, others))) if others else None)


def _pattern(pre_tokenizer: Any) -> str | None:
    """The expression whose matches are a text's pieces."""
    match pre_tokenizer:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}:
            return GPT2
        case {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        }:
            return pattern
    return None


def _is_plain(model: dict[str, Any]) -> bool:
    options = ("dropout", "byte_fallback", "continuing_subword_prefix", "end_of_word_suffix")
    return model["type"] == "BPE" and not any(model.get(option) for option in options)


def _ids(model: dict[str, Any]) -> dict[str, int] | None:
    """The tokens that pieces of text become, or None where tiktoken would make others of them."""
    from tokenizers import models

    vocabulary = model["vocab"]
    pairs = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in model["merges"]]
    made = ["".join(pair) for pair in pairs]
    order = [vocabulary[token] for token in made]
    if order != sorted(order):
        return None
    whole_pieces = bool(model.get("ignore_merges"))
    merging = models.BPE(vocabulary, pairs)
    found = {letter: vocabulary[letter] for letter in BYTE_OF}
    candidates = {token for token in (vocabulary if whole_pieces else made) if BYTE_OF.keys() >= set(token)}
    for token in candidates - found.keys():
        parts = len(merging.tokenize(token))
        if parts == 1 or (parts > 2 and whole_pieces):
            found[token] = vocabulary[token]
        elif whole_pieces:
            return None
    return found
