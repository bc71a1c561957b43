"""The one way to list, open, write and finish things at a URI: a local path, `file://`, `s3://` or `gs://`.

Everything stands on `pyarrow.fs`, which Ray uses too, so credentials, regions and endpoints come the usual way
(`AWS_PROFILE`, `AWS_ENDPOINT_URL`, `GOOGLE_APPLICATION_CREDENTIALS`, …). A write either appears whole or not at all:
local files are written beside their name and renamed, object stores publish on close.

Object storage fails for a while now and then. The client repeats a failed request at once (`REQUEST_TRIES`); here every
operation as a whole is tried again (`TRIES`, `FIRST_WAIT`) for as long as the reason may pass: no connection, a time
limit, a 5xx, an answer cut short. What will not pass, as a missing bucket or wrong credentials, is said at once.
"""

import fcntl
import fnmatch
import glob
import hashlib
import io
import json
import logging
import os
import random
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from functools import lru_cache
from pathlib import PurePosixPath
from stat import S_ISREG
from typing import Any, BinaryIO, NamedTuple, TypeVar, cast

from pyarrow import ArrowException, fs

from raystyle.errors import StorageError

TRIES = 5  # of an operation on object storage: with these waits about 40 seconds
FIRST_WAIT = 3.0  # seconds before the second try; doubled before each further one, then shortened by up to half
REQUEST_TRIES = 3  # of one request, by the client itself, within about two seconds
CONNECT_TIMEOUT, REQUEST_TIMEOUT = 5.0, 30.0  # seconds; the client's own 1 and 3 are short for a busy store
DOWNLOADS = 8  # files at once
CHUNK = 1 << 24  # bytes

_T = TypeVar("_T")
_JITTER = random.Random()  # its own, for the global one belongs to training
_LOG = logging.getLogger(__name__)
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
    """The `pyarrow` filesystem of a URI and the path inside it, as it stands there: `%` and `#` are letters of a name.

    Raises `StorageError` for an unknown scheme and for a bucket on AWS whose region cannot be found out.
    """
    if not is_remote(uri):
        return fs.LocalFileSystem(), absolute(uri)
    scheme, _, path = absolute(uri).partition("://")
    bucket = path.partition("/")[0]
    if scheme not in ("s3", "gs") or not bucket:
        raise StorageError(f"cannot open storage `{uri}`\nhint: use a path, s3://BUCKET/… or gs://BUCKET/…")
    prefixes = ("AWS_", "GOOGLE_", "CLOUD_STORAGE_", "STORAGE_EMULATOR_")
    deciding = frozenset(item for item in os.environ.items() if item[0].startswith(prefixes))
    return _persist("open", uri, lambda: _client(scheme, bucket, REQUEST_TRIES, os.getpid(), deciding)), path


@lru_cache(maxsize=64)
def _client(scheme: str, bucket: str, tries: int, *_deciding: object) -> fs.FileSystem:
    """The filesystem of a bucket, with its pool of connections; one for each process and environment."""
    if scheme == "gs":
        # Google's client has its own name for this variable but would want credentials all the same.
        endpoint = os.environ.get("STORAGE_EMULATOR_HOST") or os.environ.get("CLOUD_STORAGE_EMULATOR_ENDPOINT")
        patience = {"retry_time_limit": timedelta(seconds=2 * tries)}  # its own is 15 minutes
        if not endpoint:
            return fs.GcsFileSystem(**patience)
        protocol, _, host = endpoint.rpartition("://")
        return fs.GcsFileSystem(anonymous=True, scheme=protocol or "http", endpoint_override=host, **patience)
    # Arrow reads these variables only in `FileSystem.from_uri`, which takes no retries and no name that is not ASCII.
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return fs.S3FileSystem(
        region=None if endpoint else fs.resolve_s3_region(bucket),
        endpoint_override=endpoint or None,
        connect_timeout=CONNECT_TIMEOUT,
        request_timeout=REQUEST_TIMEOUT,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=tries),
        allow_delayed_open=True,  # a small file is one request, not three
    )


def _persist(action: str, uri: str, operation: Callable[[], _T]) -> _T:
    """The result of an operation, tried again where the storage is remote and the reason of a failure may pass.

    Raises `StorageError` with the action, the URI, the reason, and how long it was tried.
    """
    start = time.monotonic()
    for tries in range(1, TRIES + 1):
        try:
            return operation()
        except (OSError, ArrowException) as error:
            if isinstance(error, StorageError):
                raise
            may_pass = is_remote(uri) and re.search(_MAY_PASS, str(error))
            if not may_pass or tries == TRIES:
                effort = f" ({tries} tries in {time.monotonic() - start:.0f} s)" if tries > 1 else ""
                raise StorageError(_message(action, uri, error, effort)) from error
            wait = FIRST_WAIT * 2 ** (tries - 1) * _JITTER.uniform(0.5, 1)
            _LOG.warning("%s; trying again in %.0f s", _message(action, uri, error).partition("\n")[0], wait)
            time.sleep(wait)
    raise AssertionError("not reached")


@contextmanager
def _explained(action: str, uri: str) -> Iterator[None]:
    """Turn a filesystem's error into one that says which action failed at which URI, and why."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(_message(action, uri, error)) from error


class _CutShort(OSError):
    """Fewer bytes came than the file has."""


def _complete(data: bytes, size: int) -> bytes:
    if len(data) != size:
        raise _CutShort(f"cut short: {len(data)} of {size} bytes came")
    return data


# As the clients of AWS and of Google, and `_CutShort`, put it.
_MAY_PASS = (
    r"NETWORK_CONNECTION(?!.*curlCode: (?:51|58|60|77)\b)|HTTP status (?:5\d\d|408|429)|INTERNAL_FAILURE|SLOW_DOWN|THROTTLING|"
    r"SERVICE_UNAVAILABLE|REQUEST_TIMEOUT|NO_SUCH_UPLOAD|Status\((?:UNAVAILABLE|INTERNAL|DEADLINE_EXCEEDED|"
    r"RESOURCE_EXHAUSTED|ABORTED|UNKNOWN)|^cut short"
)
_REASONS = [
    (r"NO_?SUCH_?BUCKET|bucket does not exist|Bucket .*not found", "no such bucket", "check the name of the bucket, and for s3:// AWS_ENDPOINT_URL"),
    (r"(?:curlCode: |CURL error \[)(?:51|58|60|77)\b", "the storage endpoint's certificate is not trusted", "check the certificates of this machine, and for s3:// AWS_ENDPOINT_URL"),
    (r"\[Errno 13\]", "permission denied", ""),
    (
        r"ACCESS_DENIED|AccessDenied|Permission denied|PERMISSION_DENIED|Forbidden|HTTP (?:status )?40[13]|UNAUTHENTICATED|OAuth2 access token|"
        r"INVALID_ACCESS_KEY_ID|SIGNATURE_DOES_NOT_MATCH|EXPIRED_?TOKEN|UNRECOGNIZED_CLIENT|INVALID_CLIENT_TOKEN",
        "access denied",
        "check the credentials (AWS_PROFILE or AWS_ACCESS_KEY_ID, GOOGLE_APPLICATION_CREDENTIALS) and what they allow",
    ),
    (r"NETWORK_CONNECTION|Could not (?:connect|resolve)|Connection refused", "cannot reach the storage endpoint", "check the network, and for s3:// AWS_ENDPOINT_URL"),
    (_MAY_PASS, "the storage fails or is overloaded", "give the same command again later"),
    (r"No such file|NotFound|NOT_FOUND|does not exist", "no such file or directory", ""),
    (r"No space left", "the disk is full", "make room there, or in TMPDIR for what is on its way to or from a bucket"),
]  # fmt: skip


def _message(action: str, uri: str, error: Exception, effort: str = "") -> str:
    text = re.sub(r"//[^/@\s]*@", "//…@", " ".join(str(error).split()))
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID"):
        if len(secret := os.environ.get(name, "")) >= 8:  # shorter ones are no keys, but parts of words
            text = text.replace(secret, "…")
    reason, hint = next(((why, way) for pattern, why, way in _REASONS if re.search(pattern, text)), (text[:300], ""))
    if reason == "no such file or directory" and _bucket_is_missing(uri):
        reason, hint = _REASONS[0][1:]
    return f"cannot {action} `{uri}`: {reason}{effort}" + (f"\nhint: {hint}" if hint else "")


def _bucket_is_missing(uri: str) -> bool:
    """Whether it is the bucket that was not found: of a missing object Arrow says the same."""
    if not is_remote(uri):
        return False
    try:
        filesystem_, path = filesystem(uri)
        return cast(bool, filesystem_.get_file_info(path.partition("/")[0]).type == fs.FileType.NotFound)
    except OSError:  # then it is not known to be
        return False


def exists(uri: str) -> bool:
    filesystem_, path = filesystem(uri)
    info = _persist("look at", uri, lambda: filesystem_.get_file_info(path))
    return cast(bool, info.type != fs.FileType.NotFound)


def list_files(uri: str, suffixes: tuple[str, ...] = (), *, hidden: bool = False) -> list[File]:
    """Every file below a directory or matching a glob (or the file itself), sorted by URI.

    Names that begin with `.` or `_`, of files or folders, are left out unless `hidden`.

    `*` and `?` do not cross a `/`; `**` does. Raises `StorageError` where the place does not exist; a glob that
    matches nothing gives an empty list.
    """
    if _GLOB.search(uri) and not exists(uri):
        return _match(uri, suffixes, hidden)
    filesystem_, path = filesystem(uri)
    info = _persist("list", uri, lambda: filesystem_.get_file_info(path))
    if info.type == fs.FileType.File:
        return [File(uri, info.size, info.mtime_ns or 0)]
    if not is_remote(uri):
        return sorted(f for f in _walk(uri) if _wanted(f.uri[len(uri.rstrip("/")) :], suffixes, hidden))
    found = _persist("list", uri, lambda: filesystem_.get_file_info(fs.FileSelector(path, recursive=True)))
    start = len(path.rstrip("/")) + 1
    files = [File(join(uri, f.path[start:]), f.size, f.mtime_ns or 0) for f in found if f.type == fs.FileType.File]
    return sorted(f for f in files if _wanted(f.uri[len(uri.rstrip("/")) :], suffixes, hidden))


def _walk(directory: str) -> Iterator[File]:
    """Files below a local directory, also those whose names are not UTF-8, on which pyarrow's listing gives up.

    Such names hold surrogates, as `os.fsdecode` makes them. Links to directories are not followed.
    """
    path = absolute(directory)
    for root, _, names in os.walk(path, onerror=_raise):
        for name in names:
            file = os.path.join(root, name)
            if stat := _stat(file):
                yield File(join(directory, os.path.relpath(file, path)), stat.st_size, stat.st_mtime_ns)


def _stat(path: str) -> os.stat_result | None:
    """Of a file; None for what is none: renamed since the directory was read, as half-written files are, or what `not_files`
    tells of."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat if S_ISREG(stat.st_mode) else None


def not_files(uri: str) -> list[tuple[str, str]]:
    """What lies below a local directory and is no file to read, with what it is: links that lead nowhere or to a
    directory, which are not followed, pipes and sockets."""
    found = []
    for root, folders, names in os.walk(absolute(uri)) if not is_remote(uri) else ():
        links = [name for name in folders if os.path.islink(os.path.join(root, name))]
        for name in [*links, *(name for name in names if not os.path.isfile(os.path.join(root, name)))]:
            path = os.path.join(root, name)
            what = "pipe, socket or device"
            if os.path.islink(path):
                what = "link to a directory" if os.path.isdir(path) else "link that leads nowhere"
            found.append((join(uri, os.path.relpath(path, absolute(uri))), what))
    return sorted(found)


@contextmanager
def locked(uri: str) -> Iterator[None]:
    """Hold a local file for as long as the block lasts; `StorageError` where another process does.

    The lock goes with the process, however it ends. Object storage has none.
    """
    if is_remote(uri):
        yield
        return
    with _explained("write", uri):
        os.makedirs(os.path.dirname(uri), exist_ok=True)
        file = open(uri, "wb")  # noqa: SIM115 (what the block raises is not this file's trouble)
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            place = os.path.dirname(uri)
            raise StorageError(f"another process is writing below `{place}`\nhint: wait for it, or choose another place") from None  # fmt: skip
        yield


def _raise(error: OSError) -> None:
    raise StorageError(f"cannot list `{error.filename}`: {str(error.strerror).lower()}") from error


def _wanted(relative: str, suffixes: tuple[str, ...], hidden: bool) -> bool:
    is_hidden = any(part.startswith((".", "_")) for part in PurePosixPath(relative).parts if part != "/")
    return (hidden or not is_hidden) and (not suffixes or relative.lower().endswith(suffixes))


def glob_root(uri: str) -> str:
    """The part of a glob before its first wildcard, cut at a `/`: the root that sources are named below."""
    match = _GLOB.search(uri)
    return uri[: match.start()].rpartition("/")[0] if match else uri


def _match(pattern: str, suffixes: tuple[str, ...], hidden: bool) -> list[File]:
    if not is_remote(pattern):
        paths, root = glob.glob(pattern, recursive=True, include_hidden=hidden), glob_root(pattern)
        stats = {path: _stat(path) for path in paths if _wanted(path[len(root) :], suffixes, hidden)}
        return sorted(File(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats.items() if stat)
    expression = glob.translate(pattern, recursive=True) if hasattr(glob, "translate") else _translate(pattern)
    return [f for f in list_files(glob_root(pattern), suffixes, hidden=hidden) if re.fullmatch(expression, f.uri)]


def _translate(pattern: str) -> str:
    """A glob as a regular expression (`glob.translate` comes with Python 3.13)."""
    pieces = re.split(r"(\*\*/|\*\*|\*|\?|\[(?:!.|[^!/])[^\]/]*\])", pattern)
    meaning = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(meaning.get(p) or (_class(p) if p.startswith("[") and len(p) > 2 else re.escape(p)) for p in pieces)


def _class(written: str) -> str:
    """A `[…]` of a glob. In a regular expression `^` negates it, not `!`; and nothing but a `/` matches a `/`."""
    return "(?!/)" + fnmatch.translate(written).removeprefix("(?s:").removesuffix(r")\Z")


def read_bytes(uri: str) -> bytes:
    """A whole file. Raises `StorageError`, also where fewer bytes come than the file has."""
    filesystem_, path = filesystem(uri)

    def read() -> bytes:
        if not is_remote(uri):
            with open(path, "rb") as file:  # a pipe too, which has no size
                return file.read()
        with filesystem_.open_input_file(path) as remote:
            return _complete(remote.read(), remote.size())

    return _persist("read", uri, read)


def open_input(uri: str) -> BinaryIO:
    """A file to read from and to seek in. Reads of a remote one are tried again, and never short without an error."""
    filesystem_, path = filesystem(uri)
    if not is_remote(uri):
        with _explained("read", uri):
            return open(path, "rb")
    file = _persist("read", uri, lambda: filesystem_.open_input_file(path))
    return cast(BinaryIO, io.BufferedReader(_RemoteFile(uri, file), 1 << 20))


class _RemoteFile(io.RawIOBase):
    """A remote file of which every read is one request for just these bytes."""

    def __init__(self, uri: str, file: Any) -> None:
        self._uri, self._file = uri, file
        self._offset, self._size = 0, int(file.size())

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._offset = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._offset, os.SEEK_END: self._size}[whence])
        return self._offset

    def readinto(self, buffer: Any) -> int:
        size = max(0, min(len(buffer), self._size - self._offset))
        buffer[:size] = self._read(size)
        return size

    def readall(self) -> bytes:
        return self._read(max(0, self._size - self._offset))

    def _read(self, size: int) -> bytes:
        data = _persist("read", self._uri, lambda: _complete(self._file.read_at(size, self._offset), size))
        self._offset += size
        return data


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

                def send() -> None:
                    spool.seek(0)
                    with filesystem_.open_output_stream(path, compression=None) as stream:
                        shutil.copyfileobj(spool, stream, CHUNK)

                _persist("write", uri, send)
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

    def remove() -> None:
        kind = filesystem_.get_file_info(path).type
        try:
            if kind == fs.FileType.Directory:
                filesystem_.delete_dir(path)
            elif kind == fs.FileType.File:
                filesystem_.delete_file(path)
        except FileNotFoundError:  # a request that succeeded though its answer was lost
            return

    _persist("delete", uri, remove)


def upload(local_dir: str, uri: str) -> None:
    """Copy every file of a local directory to a URI, sorted by name."""
    for root, _, names in sorted(os.walk(local_dir)):
        for name in sorted(names):
            path = os.path.join(root, name)
            relative = os.path.relpath(path, local_dir).replace(os.sep, "/")
            with open(path, "rb") as source, open_output(join(uri, relative)) as target:
                shutil.copyfileobj(source, target, CHUNK)


@contextmanager
def local_copy(uri: str, names: Collection[str] = ()) -> Iterator[str]:
    """A local directory holding what is at `uri`: itself where it is local, else a temporary download, of the files called
    `names` where some are given.

    Raises `StorageError` where an object's name has a part that is empty, `.` or `..`: as a path it could lead anywhere.
    """
    if not is_remote(uri):
        yield absolute(uri)
        return
    found = {file.uri[len(uri.rstrip("/")) + 1 :]: file.uri for file in list_files(uri, hidden=True)}
    wanted = {name: source for name, source in found.items() if not names or name in names}
    for name, source in wanted.items():
        if {"", ".", ".."} & set(name.split("/")):
            raise StorageError(
                f"cannot download `{source}`: its name could lead out of the folder that it is copied to\n"
                "hint: remove that object, or give it another name"
            )
    with tempfile.TemporaryDirectory(prefix="raystyle-") as directory:
        with ThreadPoolExecutor(DOWNLOADS) as pool:
            list(pool.map(_download, wanted.values(), (os.path.join(directory, name) for name in wanted)))
        yield directory


def _download(uri: str, target: str) -> None:
    """Copy a remote file to a local path, a chunk at a time."""
    os.makedirs(os.path.dirname(target), exist_ok=True)
    with open_input(uri) as source, _explained("download", uri), open(target, "wb") as file:
        shutil.copyfileobj(source, file, CHUNK)


def sha256(chunks: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()
