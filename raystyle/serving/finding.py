"""Which adapters lie at a path, by name: an adapter, a run, a checkpoint, or a directory of these.

    style/adapter/                      style             the run's own
    style/checkpoints/step-00000153/    style@step-153
    some-adapter/                       some-adapter      the folder's name

Only listings are read here. A name is never made into a path: clients name what was found, and nothing else. What has
no name that can be served, or is not whole yet, is found too, with the reason.
"""

import dataclasses
import errno
import os
import re
import stat
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

from raystyle import adapters, storage
from raystyle.errors import StorageError
from raystyle.serving.contract import BASE

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,127}")
MARKER = "checkpoint.json"  # training writes it last, with the other files' digests
_STEP = re.compile(r"step-(\d{8,})")
_OUTSIDE = "a link that leads outside of the path it was found in\nhint: put the files themselves there"


class Entry(NamedTuple):
    """What lies in a folder under a name. `stamp` changes with the content: size, times, and locally the inode."""

    what: Literal["file", "folder", "link outside", "unreadable folder", "pipe, socket or device"]
    size: int = 0  # bytes
    mtime_ns: int = 0
    stamp: tuple[int, ...] = ()


Files = Mapping[str, Entry]


@dataclasses.dataclass(frozen=True)
class Found:
    """An adapter's folder, what lies in it, and what lies in the folder of its run."""

    name: str
    kind: Literal["adapter", "checkpoint"]
    root: str  # the path that the user gave; nothing outside it is read
    uri: str
    files: Files
    step: int | None = None
    run: str | None = None
    run_files: Files = dataclasses.field(default_factory=dict)
    refused: str | None = None


def listing(root: str) -> Files | None:
    """What lies at a path and in the folders below it that may hold adapters, by relative path; None: nothing is there.

    Raises `StorageError` where that cannot be told.
    """
    if not storage.is_remote(root):
        return dict(_local(root, os.path.realpath(root), ())) if _is_folder(root) else None
    if not storage.exists(root):
        return None
    found = {}
    for file in storage.list_files(root):
        *folders, name = file.uri[len(root) + 1 :].split("/")
        for depth in range(1, len(folders) + 1):
            found["/".join(folders[:depth])] = Entry("folder")
        if _may_hold_adapters(tuple(folders)):
            found["/".join([*folders, name])] = Entry("file", file.size, file.mtime_ns, (file.size, file.mtime_ns))
    return found


def _is_folder(path: str) -> bool:
    """Not so where nothing is there. A mount that does not answer just now says nothing of that (`os.path.isdir` says no)."""
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise _unlisted(path, error) from error


def _may_hold_adapters(folders: tuple[str, ...]) -> bool:
    """Whether a folder is looked into: the path itself, its children, and what a run has adapters in."""
    inside = folders if folders[:1] in (("adapter",), ("checkpoints",)) else folders[1:]
    return not inside or inside == ("adapter",) or (inside[0] == "checkpoints" and len(inside) <= 2)


def _local(path: str, real_root: str, folders: tuple[str, ...]) -> Iterator[tuple[str, Entry]]:
    try:
        with os.scandir(path) as scan:
            entries = [entry for entry in scan if not entry.name.startswith((".", "_"))]
    except (FileNotFoundError, NotADirectoryError):
        return  # gone since it was seen
    except OSError as error:
        raise _unlisted(path, error) from error
    for entry in entries:
        inner = (*folders, entry.name)
        found = _entry(entry.path, real_root)
        if found is None:
            continue
        below: list[tuple[str, Entry]] = []
        if found.what == "folder" and _may_hold_adapters(inner):
            if os.access(entry.path, os.R_OK | os.X_OK):
                below = list(_local(entry.path, real_root, inner))
            else:
                found = Entry("unreadable folder")
        yield "/".join(inner), found
        yield from below


def _entry(path: str, real_root: str) -> Entry | None:
    """None for what is gone again, or leads nowhere: training deletes checkpoints while we look."""
    if os.path.islink(path) and not is_inside(path, real_root):
        return Entry("link outside")
    try:
        status = os.stat(path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise _unlisted(path, error) from error
    if stat.S_ISDIR(status.st_mode):
        return Entry("folder")
    if not stat.S_ISREG(status.st_mode):
        return Entry("pipe, socket or device")
    stamp = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    return Entry("file", status.st_size, status.st_mtime_ns, stamp)


def _unlisted(path: str, error: OSError) -> StorageError:
    return StorageError(f"cannot list `{path}`: {(error.strerror or str(error)).lower()}")


def is_inside(path: str, real_root: str) -> bool:
    """Whether a local path, all links followed, lies in a folder given by its real path."""
    return os.path.realpath(path).startswith(os.path.join(real_root, ""))


def find(listings: Mapping[str, Files]) -> list[Found]:
    """The adapters of all paths (path -> its listing), each name once, in the order in which they are kept where there
    are too many: runs' own and other adapters, then checkpoints from the newest to the oldest."""
    by_name: dict[str, dict[str, Found]] = {}
    for root, listed in listings.items():
        for found in _in_path(root, _tree(listed)):
            place = found.uri if storage.is_remote(found.uri) else os.path.realpath(found.uri)
            by_name.setdefault(found.name, {}).setdefault(place, found)
    unique = [
        dataclasses.replace(next(iter(places.values())), refused=_ambiguous(len(places)))
        if len(places) > 1
        else next(iter(places.values()))
        for places in by_name.values()
    ]
    return sorted(unique, key=lambda found: (found.step is not None, -(found.step or 0), found.name))


def _ambiguous(count: int) -> str:
    return f"{count} folders have this name, so that it could mean any of them\nhint: rename all but one"


def _tree(listed: Files) -> dict[str, dict[str, Entry]]:
    """Folder -> what lies in it; the path itself is the empty one."""
    tree: dict[str, dict[str, Entry]] = {}
    for path, entry in listed.items():
        folder, _, name = path.rpartition("/")
        tree.setdefault(folder, {})[name] = entry
    return tree


def _in_path(root: str, tree: Mapping[str, Files]) -> Iterator[Found]:
    top = tree.get("", {})
    if _is_adapter(top):
        yield _found(root, "", storage.basename(root), Entry("folder"), top)
    elif _is_run(top):
        yield from _in_run(root, "", tree)
    else:
        for name, entry in top.items():
            files = tree.get(name, {})
            if _is_run(files) and not _is_adapter(files):
                yield from _in_run(root, name, tree)
            elif _is_adapter(files) or entry.what == "unreadable folder" or _is_linked_folder(root, name, entry):
                yield _found(root, name, name, entry, files)


def _is_linked_folder(root: str, name: str, entry: Entry) -> bool:
    return entry.what == "link outside" and os.path.isdir(storage.join(root, name))


def _is_adapter(files: Files) -> bool:
    return not files.keys().isdisjoint((adapters.CONFIG, adapters.WEIGHTS, "adapter_model.bin", MARKER))


def _is_run(files: Files) -> bool:
    return "plan.json" in files or any(
        name in files and files[name].what != "file" for name in ("adapter", "checkpoints")
    )


def _in_run(root: str, folder: str, tree: Mapping[str, Files]) -> Iterator[Found]:
    name, files = storage.basename(storage.join(root, folder)), tree.get(folder, {})
    inside = {"adapter": files.get("adapter"), "checkpoints": files.get("checkpoints")}
    steps = tree.get(_below(folder, "checkpoints"), {})
    inside |= {f"checkpoints/{step}": entry for step, entry in steps.items() if _STEP.fullmatch(step)}
    for place, entry in inside.items():
        if entry is None or (place == "checkpoints" and entry.what == "folder"):
            continue
        path = _below(folder, place)
        found = _found(root, path, f"{name}@checkpoints" if place == "checkpoints" else name, entry, tree.get(path, {}))
        if place == "adapter" and not found.refused and adapters.ABOUT not in found.files:
            reason = f"{adapters.ABOUT} is missing: the adapter is being written, or its writing was cut off"
            found = dataclasses.replace(found, refused=f"{reason}\nhint: give training's command again")
        yield dataclasses.replace(found, run=storage.join(root, folder), run_files=files)


def _below(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _found(root: str, folder: str, name: str, entry: Entry, files: Files) -> Found:
    """A folder as an adapter or a checkpoint; `name` is that of its run where it has one."""
    uri = storage.join(root, folder) if folder else root
    *_, place, last = uri.split("/")
    step = _STEP.fullmatch(last)
    if step and place == "checkpoints":
        run = name if name != last else uri.split("/")[-3]
        name = f"{run}@step-{int(step[1])}"
    kind: Literal["adapter", "checkpoint"] = "checkpoint" if step or MARKER in files else "adapter"
    reason = None
    if not NAME.fullmatch(name) or name == BASE:
        reason = (
            f"`{name}` cannot be an adapter's name\nhint: rename the folder: up to 128 of A-Z, a-z, 0-9, `.`, `_`, `@` and "
            f"`-`, the first a letter or a digit, and not `{BASE}`"
        )
    elif entry.what == "link outside":
        reason = f"it is {_OUTSIDE}"
    elif entry.what != "folder":
        reason = (
            f"it is {'an' if entry.what[0] == 'u' else 'a'} {entry.what}\nhint: let the server read it, or remove it"
        )
    elif links := [file for file, inner in files.items() if inner.what == "link outside"]:
        reason = f"{links[0]} is {_OUTSIDE}"
    elif step and MARKER not in files:
        reason = f"{MARKER} is missing: the checkpoint is being written, or its writing was cut off\nhint: delete it if no training is going on"
    return Found(name, kind, root, uri, files, int(step[1]) if step else None, refused=reason)
