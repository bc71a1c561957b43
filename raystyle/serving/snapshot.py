"""Copy an adapter's config and weights to a place of their own, checked by `inspection` before, meanwhile and after.

What is hashed is what is loaded: the copy belongs to this process, so that a run may prune its checkpoints, or a folder
change, while the adapter is served. Nothing large is read before the header says that it may be.
"""

import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Mapping
from typing import Any, BinaryIO, NamedTuple

from raystyle import adapters, lora_config, storage
from raystyle.errors import ModelError, StorageError
from raystyle.serving import inspection
from raystyle.serving.finding import MARKER, Found, is_inside


class Snapshot(NamedTuple):
    """An adapter as it was copied, and fit to load as far as its files tell."""

    digest: str  # `adapters.fingerprint`
    directory: str
    base_verified: bool
    step: int | None


def snapshot(found: Found, scratch_dir: str, base: inspection.Base, allow_unverified_base: bool) -> Snapshot:
    """Copy an adapter to `scratch_dir`, into a folder named by its digest.

    Raises `ModelError` with the reason, which names files and tensors but no folder, and `StorageError` where a file
    cannot be read or written just now.
    """
    inspection.check_folder(found.files)
    config_bytes = read(found.uri, adapters.CONFIG, found.root, inspection.MAX_JSON_BYTES)
    config = inspection.parse(adapters.CONFIG, config_bytes)
    lora_config.check_config(config)
    about, marker = _told(found, adapters.ABOUT), _told(found, MARKER)
    step = _step(found, marker) if MARKER in found.files else found.step
    copy = None
    try:
        with open_input(found.uri, adapters.WEIGHTS, found.root) as stream:
            inspection.check_weights(stream, config, base)
            base_verified = inspection.check_base(about, base, allow_unverified_base)
            stream.seek(0)
            os.makedirs(scratch_dir, exist_ok=True)
            copy = tempfile.mkdtemp(dir=scratch_dir, prefix=".copy-")
            with open(os.path.join(copy, adapters.CONFIG), "wb") as file:
                file.write(config_bytes)
            with open(os.path.join(copy, adapters.WEIGHTS), "wb") as file:
                _pour(stream, file)
        digest = _check_copy(copy, config, base, about, marker if MARKER in found.files else None)
        directory = os.path.join(scratch_dir, digest)
        if not os.path.exists(directory):
            os.rename(copy, directory)
        return Snapshot(digest, directory, base_verified, step)
    except StorageError:
        raise
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise StorageError(
            f"cannot copy the adapter: {reason}\nhint: make room in TMPDIR if the disk is full"
        ) from error
    finally:
        if copy is not None and os.path.exists(copy):
            shutil.rmtree(copy)


def open_input(folder: str, name: str, root: str) -> BinaryIO:
    """A file of a folder to read: a regular one, and locally one that lies in `root`, all links followed.

    Raises `ModelError` for another, `StorageError` where it cannot be read.
    """
    uri = storage.join(folder, name)
    if storage.is_remote(uri):
        return storage.open_input(uri)
    real = os.path.realpath(uri)
    if not is_inside(real, os.path.realpath(root)):
        raise ModelError(
            f"{name} is a link that leads outside of the path it was found in\nhint: put the file itself there"
        )
    try:
        # A pipe would keep us waiting for whoever writes to it.
        descriptor = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise StorageError(f"cannot read `{uri}`: {(error.strerror or str(error)).lower()}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ModelError(f"{name} is no regular file\nhint: put the file itself there")
    return os.fdopen(descriptor, "rb")


def read(folder: str, name: str, root: str, limit: int) -> bytes:
    """A file of a folder, as `open_input`, which may have `limit` bytes. Raises `ModelError` for more, `StorageError`."""
    with open_input(folder, name, root) as stream:
        data = stream.read(limit + 1)
    if len(data) > limit:
        raise ModelError(f"{name} has more than the {limit} bytes that are read\nhint: copy it again")
    return data


def _told(found: Found, name: str) -> dict[str, Any]:
    """What a JSON file of the folder says; nothing where there is none."""
    if name not in found.files:
        return {}
    return inspection.parse(name, read(found.uri, name, found.root, inspection.MAX_JSON_BYTES))


def _pour(source: BinaryIO, target: BinaryIO) -> None:
    """All of a file, or as much as an adapter may have: that it has grown is seen by its header afterwards."""
    left = inspection.MAX_ADAPTER_BYTES
    while left > 0 and (chunk := source.read(min(left, storage.CHUNK))):
        target.write(chunk)
        left -= len(chunk)


def _step(found: Found, marker: Mapping[str, Any]) -> int:
    """A checkpoint's step, on which its name and its marker agree."""
    step = marker.get("step")
    if type(step) is not int or step < 0 or found.step not in (None, step):
        raise ModelError(f"{MARKER} says step {step!r:.40}, which this is not\nhint: copy the checkpoint again")
    return step


def _check_copy(
    copy: str,
    config: Mapping[str, Any],
    base: inspection.Base,
    about: Mapping[str, Any],
    marker: Mapping[str, Any] | None,
) -> str:
    """The copy's digest. Raises `ModelError` where it is not what its makers hashed, or its values are of no use."""
    if marker is not None:
        digests = marker.get("sha256")
        for name in (adapters.CONFIG, adapters.WEIGHTS):
            with open(os.path.join(copy, name), "rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if not isinstance(digests, dict) or digests.get(name) != found:
                raise ModelError(
                    f"{name} is not what {MARKER} says: half-written or damaged\nhint: copy the checkpoint again"
                )
    digest = adapters.fingerprint(copy)
    if about.get("fingerprint", digest) != digest:
        raise ModelError(
            f"{adapters.CONFIG} and {adapters.WEIGHTS} are not the ones {adapters.ABOUT} speaks of: half-written, or changed "
            "since\nhint: copy the adapter again"
        )
    with open(os.path.join(copy, adapters.WEIGHTS), "rb") as file:  # again, for it may have changed meanwhile
        inspection.check_weights(file, config, base)
    try:
        adapters.verify(copy)
    except ModelError as error:
        what = str(error).replace(f"the adapter `{copy}`", adapters.WEIGHTS).replace(f"{copy}/", "")
        raise ModelError(f"{what}\nhint: train again, or take an earlier checkpoint") from error
    return digest
