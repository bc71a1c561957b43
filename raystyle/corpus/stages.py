"""The first stage's task: read, decode, clean and judge a group of inputs. And what tasks of all stages share.

A task writes its parts under names that follow from the plan, then a marker with the key of all that decides them. A
task whose marker is already there with the same key has nothing to do: that is how a run continues after a crash.
Imports no ray: each task runs anywhere. Texts go through in batches, so a group of any size needs little memory.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from importlib import metadata
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raystyle import storage
from raystyle.corpus import dedup, parts
from raystyle.corpus.clean import Cleaned, chapters, clean_all
from raystyle.corpus.encodings import Unreadable
from raystyle.corpus.quality import Limits, objection
from raystyle.corpus.records import Reading, read_unit
from raystyle.corpus.rules import Rules
from raystyle.corpus.shards import piece_name
from raystyle.corpus.sources import Rejection, Source, Text, Unit
from raystyle.corpus.steps import LAYOUT, UNDECODABLE
from raystyle.errors import StorageError

# Characters cleaned at once: enough that a call's fixed costs do not matter, little enough to hold several times.
BATCH_CHARS = 4_000_000
SAMPLES_PER_RULE, CONTEXT_CHARS = 4, 24
FREQUENT_LINES = 50
# What is counted of each input: texts in it and what became of them; characters that came in, that the rules left, and
# that were rejected.
COUNTED = (
    "texts", "documents", "rejected", "removed", "lines", "characters_in", "characters_kept", "characters_rejected",
)  # fmt: skip


class Settings(NamedTuple):
    """The config fields that decide what documents and rows are."""

    records: str
    document_unit: str
    text_column: str
    title_column: str | None
    encoding: str | None
    max_source_bytes: int
    limit: int | None
    to_simplified: str
    limits: Limits
    dedup: str
    dedup_threshold: float
    dedup_keep: str
    heldout_fraction: float
    max_seq_length: int
    segment_length: int
    packing: str
    boundary_tolerance: float

    @property
    def signed(self) -> str:
        """Which signatures the later stages need: `near`, `exact` or `none`. Held-out text must be unlike all other."""
        return "near" if self.heldout_fraction else self.dedup

    @property
    def cleaning(self) -> tuple[Any, ...]:
        """What decides the first stage's parts; sketches are equal only where their maker is."""
        return (*self[:9], self.signed, metadata.version("rensa"))


def key_of(*values: Any) -> str:
    """SHA-256 of values that are JSON."""
    return hashlib.sha256(json.dumps(values, ensure_ascii=False, sort_keys=True).encode()).hexdigest()


def finished(marker: str, key: str) -> dict[str, Any] | None:
    """What a task left at its marker, if it did this very work."""
    if storage.exists(marker) and (found := storage.read_json(marker)).get("key") == key:
        return dict(found)
    return None


def clean_shard(index: int, units: list[Unit], work: str, rules: Rules, settings: Settings) -> dict[str, Any]:
    """Read, decode, clean and judge a group of inputs; the marker that says what came of it."""
    stem = storage.join(work, f"clean-{index:05d}")
    key = key_of(
        [[u.source.location, u.source.relpath, u.source.size, u.source.mtime_ns, u.start, u.end] for u in units]
    )
    if marker := finished(f"{stem}.json", key):
        return marker
    with ExitStack() as stack:
        shard = _Shard(stem, rules, settings, stack)
        for unit in units:
            shard.read(unit)
        shard.flush()
    marker = {"key": key, "shard": index, **shard.outcome()}
    storage.write_json(f"{stem}.json", marker)
    return marker


class _Shard:
    """The parts of one group while they are being written."""

    def __init__(self, stem: str, rules: Rules, settings: Settings, stack: ExitStack) -> None:
        self.rules, self.settings = rules, settings
        schemas = {
            "documents": parts.LEDGER,
            "removed": parts.REMOVED,
            "rejected": parts.REJECTED,
            "lines": parts.LINES,
        }
        if settings.signed != "none":
            schemas |= {"whole": parts.SIGNATURES, "chapters": parts.SIGNATURES}
        self.out = {name: stack.enter_context(parts.writer(f"{stem}.{name}.parquet", s)) for name, s in schemas.items()}
        self.inputs: list[dict[str, Any]] = []
        self.hits: Counter[str] = Counter()
        self.samples: dict[str, list[list[str]]] = {}
        self.recurring: Counter[str] = Counter()
        self.documents = self.units = 0
        self.waiting: list[tuple[dict[str, Any], Source, Text]] = []
        self.waiting_chars = 0

    def read(self, unit: Unit) -> None:
        """Take in the texts of a unit; batches are cleaned as they fill."""
        source, settings = unit.source, self.settings
        entry: dict[str, Any] = {"source": source.uri, "relpath": source.relpath, "size": source.size}
        entry |= {"mtime_ns": source.mtime_ns, "sha256": None, "encoding": None, "confidence": None}
        entry |= dict.fromkeys(COUNTED, 0)
        self.inputs.append(entry)
        reading = read_unit(
            unit, text_column=settings.text_column, title_column=settings.title_column,
            encoding=settings.encoding, max_bytes=settings.max_source_bytes,
        )  # fmt: skip
        try:
            for found in reading.texts:
                if isinstance(found, Rejection):
                    self._reject(entry, found)
                else:
                    self._take(entry, source, found)
                if settings.limit and entry["texts"] >= settings.limit:
                    break
        except Unreadable as refusal:
            self._reject(entry, Rejection(source.uri, refusal.reason, refusal.detail))
        except StorageError as error:
            # A local file that cannot be read is that file's trouble; storage that fails is everyone's, and a later run's.
            if storage.is_remote(source.location):
                raise
            self._reject(entry, Rejection(source.uri, "unreadable", str(error)))
            return
        self._tell(entry, reading)

    def _tell(self, entry: dict[str, Any], reading: Reading) -> None:
        entry["encoding"], entry["confidence"] = reading.encoding, reading.confidence
        entry["sha256"] = None if self.settings.limit else reading.sha256 or None

    def _take(self, entry: dict[str, Any], source: Source, text: Text) -> None:
        entry["texts"] += 1
        self.waiting.append((entry, source, text))
        self.waiting_chars += len(text.text)
        # Records that are pieces of one text stay together, whatever their size.
        if self.waiting_chars >= BATCH_CHARS and self.settings.records == "documents":
            self.flush()

    def _reject(self, entry: dict[str, Any], rejection: Rejection) -> None:
        entry["texts"] += 1
        entry["rejected"] += 1
        self.out["rejected"](parts.table([tuple(rejection)], parts.REJECTED))

    def flush(self) -> None:
        """Clean the waiting texts and write what comes of them."""
        waiting, self.waiting, self.waiting_chars = self.waiting, [], 0
        if not waiting:
            return
        pieces = self.settings.records == "segments"
        cleaned, removed = clean_all(
            [text.text for *_, text in waiting], self.rules, whole=not pieces, to_simplified=self.settings.to_simplified
        )
        self._write_removed(waiting, removed)
        documents: list[tuple[Any, ...]] = []
        joined: dict[str, tuple[Source, _Joined]] = {}  # by source
        for (entry, source, text), result in zip(waiting, cleaned, strict=True):
            entry["lines"] += result.lines_in
            entry["characters_in"] += result.chars_in
            if problem := self._objection(text, result):
                self._reject(entry, Rejection(place(source, text), *problem))
                entry["texts"] -= 1  # it was counted when it was read
                entry["characters_rejected"] += result.chars_in
                if source.uri in joined:
                    joined[source.uri][1].torn = True
                continue
            entry["characters_kept"] += len(result.text) - result.text.count("\n")
            if pieces:
                entry["documents"] += source.uri not in joined
                joined.setdefault(source.uri, (source, _Joined()))[1].add(result)
                continue
            found = list(_documents(source, text, result, self.settings.document_unit))
            entry["documents"] += len(found)
            self._write_lines(result, len(documents))
            documents += found
        documents += [_document(source, None, 0, None, one.text, one.ends, []) for source, one in joined.values()]
        self._write_signatures(documents)
        self.out["documents"](parts.table(documents, parts.LEDGER))
        self.documents += len(documents)

    def _objection(self, text: Text, result: Cleaned) -> tuple[str, str] | None:
        if not result.text:
            return "no_text_left", f"the rules removed all {result.lines_in} lines"
        return (
            None
            if self.settings.records == "segments"
            else objection(result.text, text.text, result.solid_in, self.settings.limits)
        )

    def _write_removed(self, waiting: list[tuple[dict[str, Any], Source, Text]], removed: pa.Table) -> None:
        for number, count in zip(*np.unique(removed["text_no"].to_numpy(), return_counts=True), strict=True):
            waiting[number][0]["removed"] += int(count)
        places = pa.array([place(source, text) for _, source, text in waiting], pa.string())
        content = removed.append_column("source", places.take(removed["text_no"])).select(parts.REMOVED.names)
        bad = [
            (place(source, text), line_no, "drop_line", UNDECODABLE, shown, "", 0, 0)
            for _, source, text in waiting
            for line_no, shown in text.bad_lines
        ]
        for table in [content, *([parts.table(bad, parts.REMOVED)] if bad else [])]:
            self.out["removed"](table)
            counts = pc.value_counts(table["rule"])
            self.hits.update({row["values"]: row["counts"] for row in counts.to_pylist()})
        for row in bad[:SAMPLES_PER_RULE]:
            self.samples.setdefault(UNDECODABLE, []).append(["", row[4][:200], "", ""])
        self._sample(waiting, removed)

    def _sample(self, waiting: list[tuple[dict[str, Any], Source, Text]], removed: pa.Table) -> None:
        """Keep a few hits of each rule, with what stands around them in their line."""
        lines: dict[int, list[str]] = {}
        for name in sorted({*removed["rule"].unique().to_pylist()}.difference(LAYOUT)):
            wanted = SAMPLES_PER_RULE - len(self.samples.setdefault(name, []))
            if wanted <= 0:
                continue
            hits = np.flatnonzero(pc.equal(removed["rule"], name))
            for chosen in hits[:: max(1, len(hits) // wanted)][:wanted].tolist():
                (hit,) = removed.slice(chosen, 1).to_pylist()
                number = hit["text_no"]
                if number not in lines:
                    lines = {number: waiting[number][2].text.split("\n")}  # those of one text at a time
                line, start, end = lines[number][hit["line_no"] - 1], hit["char_start"], hit["char_end"]
                if hit["text"] == "\n":  # what follows stands in the next line
                    line += "\n" + lines[number][hit["line_no"]].lstrip()
                around = line[max(0, start - CONTEXT_CHARS) : start].lstrip(), line[end : end + CONTEXT_CHARS].rstrip()
                self.samples[name].append(
                    [around[0], hit["text"].strip(" \t\u3000")[:200], hit["replacement"], around[1]]
                )

    def _write_lines(self, result: Cleaned, row: int) -> None:
        """Lines that look like no story, once each: those that many works share are boilerplate."""
        self.recurring.update(dict(result.recurring))
        if result.unmarked:
            rows = [(self.documents + row, line) for line in result.unmarked]
            self.out["lines"](parts.table(rows, parts.LINES))

    def _write_signatures(self, documents: list[tuple[Any, ...]]) -> None:
        if self.settings.signed == "none" or not documents:
            return
        ledger = [dict(zip(parts.LEDGER.names, document, strict=True)) for document in documents]
        # A work without headings is its own one chapter: it may be a chapter of another.
        ends = [document["chapter_ends"] for document in ledger]
        whole, pieces = dedup.sign([document["text"] for document in ledger], ends)
        rows = np.arange(self.documents, self.documents + len(documents))
        near = self.settings.signed == "near"
        self.out["whole"](parts.signatures(whole, rows, np.full(len(rows), -1), near))
        counts = [len(found) for found in ends]
        numbers = np.concatenate([np.arange(count) for count in counts]) if sum(counts) else np.empty(0, np.int64)
        self.out["chapters"](parts.signatures(pieces, np.repeat(rows, counts), numbers, near))
        self.units += len(numbers)

    def outcome(self) -> dict[str, Any]:
        """What the marker says of the group."""
        often = [[line, count] for line, count in self.recurring.most_common(FREQUENT_LINES)]
        return {
            "inputs": self.inputs, "documents": self.documents, "chapters": self.units, "hits": dict(self.hits),
            "samples": self.samples, "frequent": often,
        }  # fmt: skip


class _Joined:
    """The records of a source put together again as the one text they were cut from."""

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.ends: list[int] = []
        # Whether the record before was removed whole: then the next one goes on after a line break.
        self.torn = False
        self._length = 0

    def add(self, cleaned: Cleaned) -> None:
        """Append a record; a line break beside its text, which cleaning took as a blank line, is put back once."""
        broken = bool(self.pieces) and self.pieces[-1].endswith("\n")
        before = "\n" if self.pieces and not broken and (cleaned.line_nos_K[0] > 1 or self.torn) else ""
        self.torn = False
        after = "\n" if cleaned.line_nos_K[-1] < cleaned.lines_in else ""
        self.pieces.append(before + cleaned.text + after)
        self._length += len(self.pieces[-1])
        self.ends.append(self._length)

    @property
    def text(self) -> str:
        return "".join(self.pieces)


def place(source: Source, text: Text) -> str:
    """How a text is named in removed/ and rejected/."""
    return source.uri if text.record is None else f"{source.uri}#{text.record}"


def _documents(source: Source, text: Text, cleaned: Cleaned, unit: str) -> Iterator[tuple[Any, ...]]:
    found = chapters(cleaned)
    if unit == "work":
        ends = [(title, end) for title, _, end in found]
        yield _document(source, text, 0, None, cleaned.text, None, ends, cleaned.line_nos_K)
        return
    for ordinal, (title, start, end) in enumerate(found):
        content = cleaned.text[start:end].rstrip("\n")
        first = cleaned.text.count("\n", 0, start)
        line_nos_K = cleaned.line_nos_K[first : first + content.count("\n") + 1]
        yield _document(source, text, ordinal, title, content, None, [], line_nos_K)


def _document(
    source: Source, text: Text | None, ordinal: int, title: str | None, content: str, record_ends: list[int] | None,
    chapter_ends: list[tuple[str | None, int]], line_nos_K: Iterable[int] = (),
) -> tuple[Any, ...]:  # fmt: skip
    """A row of `parts.LEDGER`. Parts of one piece get one group: they are held out together or not at all."""
    record = text.record if text else None
    name = [source.relpath, record, f"#{ordinal}" if title is None else piece_name(title)]
    group = json.dumps(name, ensure_ascii=False)
    doc_id = key_of(source.relpath, record, ordinal, content)[:20]
    if title is None and ordinal == 0:
        own = text.title if text else None
        title = own or (PurePosixPath(_plain(source.relpath)).stem if record is None else None)
    return (
        doc_id, source.uri, title, content, place(source, text) if text else source.uri, group, len(content.encode()), record_ends,
        [end for _, end in chapter_ends], [title for title, _ in chapter_ends], np.asarray(line_nos_K, np.int64),
    )  # fmt: skip


def _plain(relpath: str) -> str:
    """A relpath without the number of its copy and without a suffix of compression."""
    return re.sub(r"\.(?:gz|zst|bz2|xz)$", "", re.sub(r"#[0-9]+$", "", relpath))
