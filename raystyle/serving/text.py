"""Token ids to text as they come: whole characters only, up to a stop string.

A Chinese character may be two or three tokens, and a stream that decodes each for itself shows `�` in between. So text is
held back while it ends in part of a character, or in what may be the beginning of a stop string.
"""

import codecs
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from raystyle.generation import REPLACEMENT, Scored, context, decode
from raystyle.serving.contract import Alternative, TokenLogprob

MOST_BYTES = 4  # of a character in UTF-8
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TextStream:
    """The text of one choice. What `add` and `finish` return, put together, is the text of all tokens, or of those before
    a stop string. It is what they are behind the prompt, which may be more than they are alone: a space in front."""

    def __init__(self, tokenizer: Any, stop: Sequence[str] = (), prompt_ids: Sequence[int] = ()) -> None:
        self.tokenizer = tokenizer
        self.stop = tuple(stop)
        self.stopped = False
        self.length = 0  # characters given out
        self.tokens = 0  # that were added, up to the one that ended a stop string
        self._prompt_ids: Sequence[int] | None = prompt_ids  # until they are looked at, which the engine does first
        self._ids: list[int] = []
        # Of the ids, those from `context` on are decoded each time, and their text begins with what is `given` out already;
        # those from `read` on are new. Some tokenizers treat the start of a text specially, so there is always a token that
        # is not the start before new ones.
        self._context = self._read = 0
        self._given = ""
        self._held = ""

    def add(self, ids: Sequence[int]) -> str:
        """The characters that became whole with these tokens. After a stop string there are none."""
        found = ""
        # One by one only where a stop string may end the text between two of them.
        for some in [[token] for token in ids] if self.stop else [ids]:
            if self.stopped:
                break
            self._ids += some
            self.tokens += len(some)
            found += self._release(self._decoded(), is_last=False)
        self.length += len(found)
        return found

    def finish(self) -> str:
        """What was held back. Bytes that never became a character come as `�`."""
        if self.stopped:
            return ""
        found = self._release(self._text()[len(self._given) :], is_last=True)
        self.length += len(found)
        return found

    def _decoded(self) -> str:
        if self._prompt_ids is not None:
            before = context(self.tokenizer, self._prompt_ids)
            self._given, self._read, self._prompt_ids = decode(self.tokenizer, before), len(before), None
            self._ids[:0] = before
        count = len(self._ids)
        # Where the last tokens are part of a character, which has so many bytes at most, what stands before them is whole.
        for end in range(count, max(self._read, count - MOST_BYTES), -1):
            text = self._text(end)
            if not text.endswith(REPLACEMENT):
                return self._out(text, end, held=0)
        # More of them than that never become one. The last may be the beginning of the next.
        return self._out(self._text(count), count, held=1) if count - self._read > MOST_BYTES else ""

    def _out(self, text: str, end: int, held: int) -> str:
        """What is new in the text of the ids up to `end`, but for its last `held` characters."""
        found = text[len(self._given) : len(text) - held]
        if found:
            self._context, self._read = self._read, end
            text = decode(self.tokenizer, self._ids[self._context : end])
            self._given = text[: len(text) - held]
        return found

    def _text(self, end: int | None = None) -> str:
        """Of the ids from `context` on. What is given out stays, whatever new ones make of it."""
        text = decode(self.tokenizer, self._ids[self._context : end])
        if not text.startswith(self._given):
            self._context, self._given = self._read, ""
            text = decode(self.tokenizer, self._ids[self._context : end])
        return text

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
        self._is_start = False  # of the prompt, where SentencePiece's decoders take a space away

    def add(self, scored: Sequence[Scored]) -> tuple[TokenLogprob, ...]:
        found = []
        for token in scored:
            data = token_bytes(self.tokenizer, token.token_id)
            self._is_start |= token.logprob is None
            if self._is_start and data:
                self._is_start = False
                if data.startswith(b" ") and not decode(self.tokenizer, [token.token_id]).startswith(" "):
                    data = data[1:]
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
