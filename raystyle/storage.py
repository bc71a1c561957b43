"""The one way to list, open, write and finish things at a URI: a local path, `file://`, `s3://` or `gs://`.

Everything stands on `pyarrow.fs`, which Ray uses too, so credentials, regions and endpoints come the usual way
(`AWS_PROFILE`, `AWS_ENDPOINT_URL`, `GOOGLE_APPLICATION_CREDENTIALS`, …). A write either appears whole or not at all:
local files are written beside their name and renamed, object stores publish on close.
"""

import glob
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any, BinaryIO, NamedTuple, cast

from pyarrow import fs

from raystyle.errors import StorageError

_SCHEME = re.compile(r"^[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_GLOB = re.compile(r"[*?\[]")


class File(NamedTuple):
    """One listed file: its URI as it can be opened, its size in bytes, and when it was last written."""

    uri: str
    size: int
    mtime_ns: int = 0


def is_remote(uri: str) -> bool:
    """True for a URI with a scheme other than `file://`."""
    return bool(_SCHEME.match(uri)) and not uri.startswith("file://")


def absolute(path: str) -> str:
    """Local paths made absolute (`~` expanded), `file://` taken off; other URIs unchanged but for a trailing slash.

    Raises `StorageError` for a URI with credentials or options in it: URIs are written into manifests and configs.
    """
    if is_remote(path):
        if re.search(r"\?\w+=", path) or "@" in path.split("://", 1)[1].split("/", 1)[0]:
            place = re.sub(r"//[^/@]*@", "//…@", re.split(r"\?\w+=", path)[0])
            raise StorageError(
                f"the URI `{place}` carries credentials or options\n"
                "hint: set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL, or a profile, instead"
            )
        return path.rstrip("/")
    return os.path.abspath(os.path.expanduser(path.removeprefix("file://")))


def join(uri: str, *parts: str) -> str:
    return "/".join([uri.rstrip("/"), *parts])


def basename(uri: str) -> str:
    return uri.rstrip("/").rsplit("/", 1)[-1]


def filesystem(uri: str) -> tuple[fs.FileSystem, str]:
    """The `pyarrow` filesystem of a URI and the path inside it. Raises `StorageError` for an unknown scheme."""
    if not is_remote(uri):
        return fs.LocalFileSystem(), absolute(uri)
    try:
        filesystem_, path = fs.FileSystem.from_uri(uri)
    except (OSError, ValueError) as error:
        raise StorageError(
            f"cannot open storage `{uri}`: {_reason(error)}\nhint: use a path, s3://… or gs://…"
        ) from error
    return filesystem_, path


@contextmanager
def _explained(action: str, uri: str) -> Iterator[None]:
    """Turn a filesystem's error into one that says which action failed at which URI, and why."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"cannot {action} `{uri}`: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    for pattern, meaning in [
        (r"NoSuchBucket|bucket does not exist|Bucket .*not found", "no such bucket"),
        (r"ACCESS_DENIED|AccessDenied|Permission denied|Forbidden|HTTP 403", "access denied; check the credentials"),
        (
            r"NETWORK_CONNECTION|Couldn't connect|Could not connect|Connection refused",
            "cannot reach the storage endpoint",
        ),
        (r"No such file|NotFound|does not exist", "no such file or directory"),
        (r"No space left", "the disk is full"),
    ]:
        if re.search(pattern, text, re.IGNORECASE):
            return meaning
    return text[:300]


def exists(uri: str) -> bool:
    filesystem_, path = filesystem(uri)
    with _explained("look at", uri):
        return cast(bool, filesystem_.get_file_info(path).type != fs.FileType.NotFound)


def list_files(uri: str, suffixes: tuple[str, ...] = (), *, hidden: bool = False) -> list[File]:
    """Every file below a directory or matching a glob (or the file itself), sorted by URI.

    Names that begin with `.` or `_`, of files or folders, are left out unless `hidden`.

    `*` and `?` do not cross a `/`; `**` does. Raises `StorageError` where the place does not exist; a glob that
    matches nothing gives an empty list.
    """
    if _GLOB.search(uri) and not exists(uri):
        return _match(uri, suffixes, hidden)
    filesystem_, path = filesystem(uri)
    with _explained("list", uri):
        info = filesystem_.get_file_info(path)
        if info.type == fs.FileType.NotFound:
            raise StorageError(f"cannot list `{uri}`: no such file or directory")
        if info.type == fs.FileType.File:
            return [File(uri, info.size, info.mtime_ns or 0)]
        found = filesystem_.get_file_info(fs.FileSelector(path, recursive=True))
    start = len(path.rstrip("/")) + 1
    files = [File(join(uri, f.path[start:]), f.size, f.mtime_ns or 0) for f in found if f.type == fs.FileType.File]
    return sorted(f for f in files if _wanted(f.uri[len(uri.rstrip("/")) :], suffixes, hidden))


def _wanted(relative: str, suffixes: tuple[str, ...], hidden: bool) -> bool:
    is_hidden = any(part.startswith((".", "_")) for part in PurePosixPath(relative).parts if part != "/")
    return (hidden or not is_hidden) and (not suffixes or relative.lower().endswith(suffixes))


def glob_root(uri: str) -> str:
    """The part of a glob before its first wildcard, cut at a `/`: the root that sources are named below."""
    match = _GLOB.search(uri)
    return uri[: match.start()].rpartition("/")[0] if match else uri


def _match(pattern: str, suffixes: tuple[str, ...], hidden: bool) -> list[File]:
    if not is_remote(pattern):
        paths = [path for path in glob.glob(pattern, recursive=True, include_hidden=hidden) if os.path.isfile(path)]
        root = glob_root(pattern)
        stats = [(path, os.stat(path)) for path in paths if _wanted(path[len(root) :], suffixes, hidden)]
        return sorted(File(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats)
    expression = glob.translate(pattern, recursive=True) if hasattr(glob, "translate") else _translate(pattern)
    return [f for f in list_files(glob_root(pattern), suffixes, hidden=hidden) if re.fullmatch(expression, f.uri)]


def _translate(pattern: str) -> str:
    """A glob as a regular expression (`glob.translate` comes with Python 3.13)."""
    pieces = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", pattern)
    meaning = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(meaning.get(p) or (p if p.startswith("[") and len(p) > 2 else re.escape(p)) for p in pieces)


def read_bytes(uri: str) -> bytes:
    filesystem_, path = filesystem(uri)
    with _explained("read", uri), filesystem_.open_input_stream(path, compression=None) as stream:
        return cast(bytes, stream.read())


def read_json(uri: str) -> Any:
    """Parsed JSON at a URI. Raises `StorageError` where it cannot be read or is not JSON."""
    try:
        return json.loads(read_bytes(uri))
    except ValueError as error:
        raise StorageError(f"`{uri}` is not valid JSON: {error}") from error


def write_bytes(uri: str, data: bytes) -> None:
    """Write a whole file, making its directory; a reader sees the old content or the new, never a part."""
    with open_output(uri) as stream:
        stream.write(data)


def write_json(uri: str, value: Any) -> None:
    write_bytes(uri, (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode())


@contextmanager
def open_output(uri: str) -> Iterator[BinaryIO]:
    """A binary stream whose file appears under its name only when the block ends without an exception."""
    filesystem_, path = filesystem(uri)
    with _explained("write", uri):
        if is_remote(uri):
            # Arrow publishes an object even when an abandoned stream is merely garbage-collected, so nothing is
            # uploaded before the block has ended well.
            with tempfile.SpooledTemporaryFile(max_size=1 << 26) as spool:
                yield cast(BinaryIO, spool)
                spool.seek(0)
                with filesystem_.open_output_stream(path, compression=None) as stream:
                    shutil.copyfileobj(spool, stream, 1 << 24)
            return
        os.makedirs(os.path.dirname(path), exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=f".{os.path.basename(path)[:80]}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
        except BaseException:
            if os.path.exists(temporary):
                os.unlink(temporary)
            raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def delete(uri: str) -> None:
    """Remove a file or a directory with all below it; nothing happens where there is none."""
    filesystem_, path = filesystem(uri)
    with _explained("delete", uri):
        kind = filesystem_.get_file_info(path).type
        if kind == fs.FileType.Directory:
            filesystem_.delete_dir(path)
        elif kind == fs.FileType.File:
            filesystem_.delete_file(path)


def upload(local_dir: str, uri: str) -> None:
    """Copy every file of a local directory to a URI, sorted by name."""
    for root, _, names in sorted(os.walk(local_dir)):
        for name in sorted(names):
            path = os.path.join(root, name)
            relative = os.path.relpath(path, local_dir).replace(os.sep, "/")
            with open(path, "rb") as source, open_output(join(uri, relative)) as target:
                while chunk := source.read(1 << 24):
                    target.write(chunk)


@contextmanager
def local_copy(uri: str) -> Iterator[str]:
    """A local directory holding what is at `uri`: itself where it is local, else a temporary download."""
    if not is_remote(uri):
        yield absolute(uri)
        return
    with tempfile.TemporaryDirectory(prefix="raystyle-") as directory:
        filesystem_, path = filesystem(uri)
        with _explained("download", uri):
            fs.copy_files(path, directory, source_filesystem=filesystem_, destination_filesystem=fs.LocalFileSystem())
        yield directory


def sha256(chunks: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()
