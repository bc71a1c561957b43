"""Token ids to text as they come: whole characters only, up to a stop string.

A Chinese character may be two or three tokens, and a stream that decodes each for itself shows `�` in between. So text is
held back while it ends in part of a character, or in what may be the beginning of a stop string.
"""

import codecs
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from raystyle.generation import Scored
from raystyle.serving.contract import Alternative, TokenLogprob

REPLACEMENT = "\ufffd"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TextStream:
    """The text of one choice. What `add` and `finish` return, put together, is the text of all tokens, or of those before
    a stop string."""

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self.tokenizer = tokenizer
        self.stop = tuple(stop)
        self.stopped = False
        self.length = 0  # characters given out
        self.tokens = 0  # that were added, up to the one that ended a stop string
        self._ids: list[int] = []
        # Of the ids, those from `context` on are decoded each time; those before `read` are part of the text already. Some
        # tokenizers treat the start of a text specially, so there is always a token that is not the start before new ones.
        self._context = self._read = 0
        self._held = ""

    def add(self, ids: Sequence[int]) -> str:
        """The characters that became whole with these tokens. After a stop string there are none."""
        found = ""
        # One by one only where a stop string may end the text between two of them.
        for some in [[token] for token in ids] if self.stop else [ids]:
            if self.stopped:
                break
            self._ids += some
            self.tokens = len(self._ids)
            found += self._release(self._decoded(), is_last=False)
        self.length += len(found)
        return found

    def finish(self) -> str:
        """What was held back. Bytes that never became a character come as `�`."""
        if self.stopped:
            return ""
        before, after = self._windows()
        found = self._release(after[len(before) :], is_last=True)
        self.length += len(found)
        return found

    def _windows(self) -> tuple[str, str]:
        def decode(ids: list[int]) -> str:
            return str(self.tokenizer.decode(ids, skip_special_tokens=True))

        return decode(self._ids[self._context : self._read]), decode(self._ids[self._context :])

    def _decoded(self) -> str:
        before, after = self._windows()
        if after.endswith(REPLACEMENT) or len(after) <= len(before):
            return ""
        self._context, self._read = self._read, len(self._ids)
        return after[len(before) :]

    def _release(self, text: str, is_last: bool) -> str:
        text = self._held + text
        places = [place for place in (text.find(word) for word in self.stop) if place >= 0]
        if places:
            self.stopped, self._held = True, ""
            return text[: min(places)]
        held = 0 if is_last else max((_overlap(text, word) for word in self.stop), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, word: str) -> int:
    """How many characters at the end of a text are the beginning of a word, all of it left out."""
    return next((n for n in range(min(len(word) - 1, len(text)), 0, -1) if text.endswith(word[:n])), 0)


class LogprobStream:
    """A choice's scored tokens as text and bytes, each with the place where it starts in the choice's text."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.offset = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, scored: Sequence[Scored]) -> tuple[TokenLogprob, ...]:
        found = []
        for token in scored:
            data = token_bytes(self.tokenizer, token.token_id)
            top = tuple(Alternative(*self._shown(other), logprob) for other, logprob in token.top)
            found.append(TokenLogprob(*self._shown(token.token_id), token.logprob, top, self.offset))
            self.offset += len(self._decoder.decode(data))
        return tuple(found)

    def _shown(self, token: int) -> tuple[str, bytes]:
        data = token_bytes(self.tokenizer, token)
        if not data:
            return str(self.tokenizer.convert_ids_to_tokens(token)), data
        return data.decode("utf-8", "replace"), data


def token_bytes(tokenizer: Any, token: int) -> bytes:
    """The bytes that a token stands for; none for a special token."""
    if token in _special_ids(tokenizer):
        return b""
    spelled = str(tokenizer.convert_ids_to_tokens(token))
    if byte := _BYTE_TOKEN.fullmatch(spelled):
        return bytes([int(byte[1], 16)])
    table = _byte_level()
    if _is_byte_level(tokenizer) and all(char in table for char in spelled):
        return bytes(table[char] for char in spelled)
    return spelled.replace("▁", " ").encode()


@lru_cache(maxsize=2)
def _special_ids(tokenizer: Any) -> frozenset[int]:
    """What decoding leaves out: also special tokens that have no role of their own."""
    added = {token for token, about in tokenizer.added_tokens_decoder.items() if about.special}
    return frozenset(added | set(tokenizer.all_special_ids))


@lru_cache(maxsize=2)
def _is_byte_level(tokenizer: Any) -> bool:
    return "ByteLevel" in str(getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", ""))


@lru_cache(maxsize=1)
def _byte_level() -> dict[str, int]:
    """How a byte-level vocabulary spells bytes: printable Latin-1 as itself, the others from U+0100 on (GPT-2, encoder.py)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + n): byte for n, byte in enumerate(others)}
