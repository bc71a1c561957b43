"""The corpus on disk at a given size, in the forms that the tools read, and the tokenizer that all of them use.

    txt/        a UTF-8 file for each novel, as downloaded: what raystyle reads
    novels/     JSON lines, a novel in each row
    chapters/   JSON lines, a chapter in each row (headings stay in the text)

No peer reads a folder of .txt novels, so they get JSON lines; making them is not timed. The text is the same.
"""

import json
import os
import re
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import NamedTuple

import novels
from rules import NUMBER, clean

MB = 1_000_000
SHARDS, SHARD_BYTES = 8, (1 * MB, 32 * MB)
LONGEST_CHAPTER = 20_000  # characters; text without headings is cut at line ends
VOCABULARY, SAMPLE_CHARS, END = 16_384, 3_000_000, "<|endoftext|>"
# How Qwen and Llama 3 cut text before byte pairs are merged.
SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_HEADING = re.compile(rf"(?m)^(?=第{NUMBER}[章回])")


class Corpus(NamedTuple):
    """`size` is in bytes of UTF-8, `characters` are without line ends."""

    folder: Path
    size: int
    characters: int
    novels: int
    chapters: int


def build(folder: Path, size: int, real: Path | None) -> Corpus:
    """The corpus of `size` bytes, made unless it is there already; `real` is a folder of novels to use instead."""
    facts = folder / "facts.json"
    if not facts.exists():
        written = {unit: _Shards(folder / unit, size) for unit in ("novels", "chapters")}
        (folder / "txt").mkdir(parents=True, exist_ok=True)
        total = characters = number = 0
        for number, text in enumerate(texts(real)):
            data = text.encode()
            if total + len(data) > size:
                text = data[: size - total].decode("utf-8", "ignore")
                data = text.encode()
            (folder / "txt" / f"novel-{number:05d}.txt").write_bytes(data)
            written["novels"].add(text)
            for chapter in chapters(text):
                written["chapters"].add(chapter)
            total += len(data)
            characters += num_characters(text)
            if total > size - 4:
                break
        for shards in written.values():
            shards.close()
        facts.write_text(json.dumps([total, characters, number + 1, written["chapters"].rows]))
    return Corpus(folder, *json.loads(facts.read_text()))


def texts(real: Path | None) -> Iterator[str]:
    """Novels without end."""
    return novels.real(real) if real else map(novels.made_up, count())


def num_characters(text: str) -> int:
    return len(text) - text.count("\n") - text.count("\r")


def chapters(text: str) -> Iterator[str]:
    for piece in _HEADING.split(text):
        start = 0
        while len(piece) - start > LONGEST_CHAPTER:
            end = piece.rfind("\n", start, start + LONGEST_CHAPTER) + 1 or start + LONGEST_CHAPTER
            yield piece[start:end]
            start = end
        if piece[start:].strip():
            yield piece[start:]


class _Shards:
    """JSON lines in several files, for tools that share work by files."""

    def __init__(self, folder: Path, size: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._limit = folder, min(max(size // SHARDS, SHARD_BYTES[0]), SHARD_BYTES[1])
        self._file, self._written, self._number, self.rows = None, 0, 0, 0

    def add(self, text: str) -> None:
        line = json.dumps({"id": str(self.rows), "text": text}, ensure_ascii=False).encode() + b"\n"
        if self._file is None or self._written + len(line) > self._limit:
            self.close()
            self._file = (self._folder / f"part-{self._number:05d}.jsonl").open("wb")
            self._number, self._written = self._number + 1, 0
        self._file.write(line)
        self._written += len(line)
        self.rows += 1

    def close(self) -> None:
        if self._file:
            self._file.close()


def build_tokenizer(folder: Path, real: Path | None) -> Path:
    """A folder with a byte-level BPE of 16,384 tokens, trained on clean text of the first novels."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    if (folder / "tokenizer.json").exists():
        return folder
    tokenizer = Tokenizer(models.BPE())
    in_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(SPLIT), "isolated"), in_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    sample: list[str] = []
    for text in islice(texts(real), 11):
        sample += chunks(clean(text))
        if sum(map(len, sample)) > SAMPLE_CHARS:
            break
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, initial_alphabet=in_bytes.alphabet(), special_tokens=[END], show_progress=False
    )
    tokenizer.train_from_iterator(sample, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "pad_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    temporary = folder / "unfinished.json"
    tokenizer.save(str(temporary))
    os.replace(temporary, folder / "tokenizer.json")
    return folder


def chunks(text: str, at_least: int = 1500) -> list[str]:
    """A text cut at line ends: long text makes tokenizers slow."""
    pieces, start = [], 0
    while len(text) - start > at_least:
        end = text.find("\n", start + at_least) + 1 or len(text)
        pieces.append(text[start:end])
        start = end
    return [*pieces, text[start:]]
