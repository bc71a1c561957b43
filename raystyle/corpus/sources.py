"""List inputs; turn bytes into text. What cannot be read is a `Rejection` with a reason, never silently skipped.

A source's `relpath` (its path below the directory or glob it was found in) is what ids and order derive from, so that
the same files give the same result wherever they lie.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import Literal, NamedTuple

from raystyle import storage
from raystyle.corpus.encodings import Unreadable, decode
from raystyle.errors import DataError

KINDS: dict[str, Literal["text", "jsonl"]] = {".txt": "text", ".text": "text", ".jsonl": "jsonl", ".ndjson": "jsonl"}
SUPPORTED = ", ".join(KINDS)


class Source(NamedTuple):
    """One input file. `uri` is the path as the user named it, `location` the same one made absolute."""

    uri: str
    location: str
    relpath: str
    size: int
    mtime_ns: int
    kind: Literal["text", "jsonl"]


class Rejection(NamedTuple):
    """Something that was not read, and why: a line of `rejected/`."""

    source: str
    reason: str
    detail: str


class Record(NamedTuple):
    """One text of a source: the whole file, or the record at `line_no` of a JSONL file."""

    line_no: int | None
    text: str


def list_sources(paths: Iterable[str], exclude: str | None = None) -> tuple[list[Source], list[Rejection]]:
    """Every data file at files, directories and globs, in an order that does not depend on where they lie.

    What lies below `exclude` (the output directory) is no input. A file that is named twice counts once. Two files of the same relpath (from two directories) are told apart by a
    `#2`. Raises `DataError` where a path does not exist or no data file is left.
    """
    paths = list(paths)
    seen: set[str] = set()
    found: list[tuple[str, int, storage.File]] = []
    for order, path in enumerate(paths):
        for relpath, file in _list(path):
            location = storage.absolute(file.uri)
            if location not in seen and not (exclude and location.startswith(f"{exclude}/")):
                seen.add(location)
                found.append((relpath, order, file))
    sources: list[Source] = []
    rejected: list[Rejection] = []
    copies: dict[str, int] = {}
    for relpath, _, file in sorted(found):
        suffix = PurePosixPath(relpath).suffix.lower()
        named = file.uri in paths
        if not named and any(part.startswith((".", "_")) for part in PurePosixPath(relpath).parts):
            rejected.append(
                Rejection(file.uri, "hidden", "a name that begins with `.` or `_`; name the file to read it")
            )
            continue
        if suffix not in KINDS:
            rejected.append(Rejection(file.uri, "unsupported", f"`{suffix or relpath}` is none of {SUPPORTED}"))
            continue
        copies[relpath] = copies.get(relpath, 0) + 1
        name = relpath if copies[relpath] == 1 else f"{relpath}#{copies[relpath]}"
        sources.append(Source(file.uri, storage.absolute(file.uri), name, file.size, file.mtime_ns, KINDS[suffix]))
    if not sources:
        names = ", ".join(f"`{path}`" for path in paths)
        raise DataError(f"no data file at {names} ({len(rejected)} others)\nhint: name files that end in {SUPPORTED}")
    return sources, rejected


def _list(path: str) -> list[tuple[str, storage.File]]:
    root = storage.glob_root(path)
    if storage.exists(path):
        files = storage.list_files(path, hidden=True)
        if [file.uri for file in files] == [path]:
            return [(storage.basename(path), files[0])]
        root = path
    elif root == path:
        raise DataError(f"`{path}` does not exist\nhint: name a file, a directory or a glob")
    else:
        files = storage.list_files(path, hidden=True)
        if not files:
            raise DataError(f"no file matches `{path}`\nhint: quote the glob, and check it with `ls`")
    start = len(root.rstrip("/"))
    return [(file.uri[start:].lstrip("/"), file) for file in files]


def read_records(source: Source, data: bytes, text_column: str) -> tuple[str, Iterator[Record | Rejection]]:
    """The encoding of a source's bytes, and its texts with LF line ends, beside what had to be refused.

    Raises `Unreadable` where the whole file has to be refused.
    """
    text, encoding = decode(data)
    if source.kind == "text":
        return encoding, iter([Record(None, unify_line_ends(text))])
    return encoding, _jsonl(source.uri, text, text_column)


def unify_line_ends(text: str) -> str:
    """CRLF and CR as LF. Nothing else ends a line: U+2028, NEL and form feed stay what they are."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _jsonl(uri: str, content: str, text_column: str) -> Iterator[Record | Rejection]:
    for line_no, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield Record(line_no, _text_of(line, text_column))
        except Unreadable as refusal:
            yield Rejection(uri, refusal.reason, f"line {line_no}: {refusal.detail}")


def _text_of(line: str, text_column: str) -> str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise Unreadable("bad_json", str(error)) from error
    if not isinstance(record, dict):
        raise Unreadable("bad_json", f"a {type(record).__name__}, not an object")
    text = record.get(text_column)
    if not isinstance(text, str):
        have = ", ".join(f"`{name}`" for name in list(record)[:5])
        raise Unreadable("no_text", f"no string in `{text_column}`; the fields are {have or 'none'}")
    if "\0" in text:
        raise Unreadable("nul", f"a NUL character at {text.index(chr(0))}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Unreadable("undecodable", f"half of a surrogate pair at character {error.start}") from error
    return unify_line_ends(text)
