"""List inputs and plan how they are read, by their names alone; `records` reads them. What is not read is a `Rejection`.

A source's `relpath` (its path below the directory or glob it was found in) is what ids and order derive from, so that
the same files give the same result wherever they lie.
"""

from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Literal, NamedTuple

from raystyle import storage
from raystyle.corpus import containers
from raystyle.corpus.encodings import Unreadable
from raystyle.errors import DataError

Kind = Literal["text", "jsonl", "json", "parquet", "epub"]
KINDS: dict[str, Kind] = {
    ".txt": "text", ".text": "text", ".jsonl": "jsonl", ".ndjson": "jsonl",
    ".json": "json", ".parquet": "parquet", ".epub": "epub",
}  # fmt: skip
SUPPORTED = ", ".join([*KINDS, *containers.COMPRESSIONS, ".zip"])
# JSONL and Parquet above this are read in parts of about this size.
UNIT_BYTES = 64 << 20


class Source(NamedTuple):
    """One input: a file, or a member of a .zip.

    `uri` is what the user named; a member's is the archive's and its own name. `location` is the absolute path of the file
    that holds it. `size` is in bytes as stored, a member's as unpacked. `kind` is what the name says, None where that is
    to be found out from the content. `member` is how `zipfile` names it.
    """

    uri: str
    location: str
    relpath: str
    size: int
    mtime_ns: int
    kind: Kind | None
    member: str | None = None


class Unit(NamedTuple):
    """What is read in one go: a whole source, or a range of a big one (bytes of a JSONL, row groups of a Parquet)."""

    source: Source
    start: int = 0
    end: int | None = None


class Rejection(NamedTuple):
    """Something that was not read, and why: a line of `rejected/`. A record's source is `uri#record`."""

    source: str
    reason: str
    detail: str


class Text(NamedTuple):
    """One text of a source, with LF line ends and no BOM.

    `record` is None where the source is one text, else which one it is: `byte 12345` (where it begins in the unpacked
    JSONL), `row 17` (of the Parquet file), `item 3` (of the JSON array; all from 0), or the name of a file in an archive.
    `title` comes from the title column or the EPUB. `bad_lines` are lines that could not be decoded and are empty here.
    """

    record: str | None
    title: str | None
    text: str
    bad_lines: tuple[tuple[int, str], ...] = ()


def unify_line_ends(text: str) -> str:
    """CRLF and CR as LF. Nothing else ends a line: U+2028, NEL and form feed stay what they are."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def kind_of(name: str) -> Kind | None:
    """What a name says a file is, below a suffix of compression; None where it says nothing."""
    path = PurePosixPath(name.lower())
    return KINDS.get(PurePosixPath(path.stem).suffix if path.suffix in containers.COMPRESSIONS else path.suffix)


def list_sources(paths: Iterable[str], exclude: str | None = None) -> tuple[list[Source], list[Rejection]]:
    """Every file at files, directories and globs, and in zips, in an order that does not depend on where they lie.

    What lies below `exclude` (the output directory) is no input. A file that is named twice counts once. Two files of the
    same relpath (from two directories) are told apart by a `#2`. Only the directories of zips are read. Raises `DataError`
    where a path does not exist or nothing is left.
    """
    paths = list(paths)
    named = set(paths)
    seen: set[str] = set()
    found: list[tuple[str, int, Source]] = []
    rejected: list[tuple[str, int, Rejection]] = []
    for order, path in enumerate(paths):
        for relpath, file in _list(path):
            location = storage.absolute(file.uri)
            if location in seen or (exclude and location.startswith(f"{exclude}/")):
                continue
            seen.add(location)
            if not _is_text(location):
                shown = _shown(file.uri)
                why = "the file's name is not UTF-8; rename it (`convmv -f gbk -t utf8` does so)"
                rejected.append((shown, order, Rejection(shown, "unnamed", why)))
                continue
            if file.uri not in named and any(part.startswith((".", "_")) for part in relpath.split("/")):
                why = "a name that begins with `.` or `_`; name the file to read it"
                rejected.append((relpath, order, Rejection(file.uri, "hidden", why)))
                continue
            source = Source(file.uri, location, relpath, file.size, file.mtime_ns, kind_of(relpath))
            for item in _members(source) if relpath.lower().endswith(".zip") else [source]:
                if isinstance(item, Source):
                    found.append((item.relpath, order, item))
                else:
                    rejected.append((relpath, order, item))
        for uri, what in storage.not_files(path) if storage.exists(path) else ():
            if not (exclude and storage.absolute(uri).startswith(f"{exclude}/")):
                rejected.append(
                    (uri, order, Rejection(_shown(uri), "no_file", f"a {what}; name the place it stands for"))
                )
    sources: list[Source] = []
    relpaths, taken = {relpath for relpath, *_ in found}, set[str]()
    for relpath, _, source in sorted(found, key=lambda entry: (*entry[:2], entry[2].location)):
        name, copy = relpath, 1
        while name in taken or (copy > 1 and name in relpaths):  # a file may be called `a.txt#2`
            copy += 1
            name = f"{relpath}#{copy}"
        taken.add(name)
        sources.append(source._replace(relpath=name))
    if not sources:
        names = ", ".join(f"`{path}`" for path in paths)
        raise DataError(f"no data file at {names} ({len(rejected)} others)\nhint: name files that end in {SUPPORTED}")
    return sources, [rejection for *_, rejection in sorted(rejected)]


def _shown(name: str) -> str:
    """A name with the bytes that are no UTF-8 written out."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _is_text(name: str) -> bool:
    """Whether a name can be written as UTF-8: one from an old archive may hold other bytes."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


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


def _members(source: Source) -> Iterator[Source | Rejection]:
    """The files in a .zip; the .zip itself where it holds none, or is none, or an EPUB: its reader will say."""
    try:
        archive = containers.open_zip(source.location, source.mtime_ns)
    except Unreadable:
        yield source
        return
    if containers.is_epub(archive) or not archive.infolist():
        yield source
        return
    for member in containers.members(archive):
        uri, relpath = f"{source.uri}/{member.name}", f"{source.relpath}/{member.name}"
        if member.refusal:
            yield Rejection(uri, *member.refusal)
        else:
            yield source._replace(
                uri=uri, relpath=relpath, size=member.size, kind=kind_of(member.name), member=member.key
            )


def plan_units(sources: Iterable[Source]) -> list[Unit]:
    """Sources in their order; plain JSONL and Parquet above 64 MB in parts of about that size. Depends on the files alone."""
    units: list[Unit] = []
    for source in sources:
        plain = source.member is None and source.size > UNIT_BYTES
        name = source.uri.lower()
        if plain and source.kind == "jsonl" and name.endswith((".jsonl", ".ndjson")):
            parts = -(-source.size // UNIT_BYTES)
            bounds = [i * source.size // parts for i in range(parts + 1)]
        elif plain and source.kind == "parquet" and name.endswith(".parquet"):
            bounds = _row_group_bounds(source.location)
        else:
            bounds = []
        units += [Unit(source, *bound) for bound in pairwise(bounds)] or [Unit(source)]
    return units


def _row_group_bounds(location: str) -> list[int]:
    """Where the parts of a Parquet file begin and end, in row groups; none where its footer cannot be read."""
    import pyarrow.parquet as pq

    try:
        with containers.StorageFile(location) as file, containers.damage("Parquet"):
            metadata = pq.read_metadata(file)
            sizes = [metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)]
    except Unreadable:
        return []
    bounds, size = [0], 0
    for index, group_size in enumerate(sizes):
        if size and size + group_size > UNIT_BYTES:
            bounds.append(index)
            size = 0
        size += group_size
    return [*bounds, len(sizes)] if sizes else []
