"""What is measured: a base, and adapters by the names that a reader knows them by."""

import functools
import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from raystyle import adapters, storage
from raystyle.errors import ModelError

BASE = "base"
CHUNK_BYTES = 1 << 20


class Subject(NamedTuple):
    """A base (`path` is None) or an adapter: its name, what it is, where it lies, its step and its fingerprint."""

    name: str
    kind: str
    path: str | None
    step: int | None
    fingerprint: str | None


def find_subjects(paths: Sequence[str]) -> list[Subject]:
    """The base, then every adapter that the paths mean: all checkpoints of a run, or an adapter alone.

    Where the paths mean several runs, a checkpoint's name starts with its run's. Raises `ModelError` where there is none.
    """
    found = [(path, subject) for path in paths for subject in _of_path(path)]
    times = Counter([BASE, *(subject.name for _, subject in found)])
    named = [
        subject._replace(name=f"{storage.basename(path)}/{subject.name}") if times[subject.name] > 1 else subject
        for path, subject in found
    ]
    if len({subject.name for subject in named}) < len(named):
        named = [subject._replace(name=f"{number} {subject.name}") for number, subject in enumerate(named, 1)]
    return [Subject(BASE, "base", None, 0, None), *named]


def is_run(path: str) -> bool:
    return storage.exists(storage.join(path, "plan.json"))


def _of_path(path: str) -> list[Subject]:
    if not is_run(path):
        place = adapters.find(path)
        about = _about(place)
        kind = "checkpoint" if storage.exists(storage.join(place, "checkpoint.json")) else "adapter"
        name = storage.basename(path)
        return [Subject(name, kind, place, about.get("step"), _fingerprint(place, about))]
    checkpoints = storage.join(path, "checkpoints")
    places = {
        file.uri.rsplit("/", 1)[0]
        for file in (storage.list_files(checkpoints) if storage.exists(checkpoints) else [])
        if storage.basename(file.uri) == "checkpoint.json"
    }
    subjects = [of_checkpoint(place) for place in sorted(places)]
    # A run's result may be of a step whose checkpoint was pruned, or was never written.
    result = storage.join(path, "adapter")
    if storage.exists(storage.join(result, adapters.ABOUT)):
        about = _about(result)
        fingerprint = _fingerprint(result, about)
        if fingerprint not in {subject.fingerprint for subject in subjects}:
            subjects.append(Subject("adapter", "adapter", result, about.get("step"), fingerprint))
    if not subjects:
        raise ModelError(f"the run `{path}` has no checkpoint and no adapter yet\nhint: has training finished?")
    return subjects


def of_checkpoint(place: str) -> Subject:
    about = _about(place)
    return Subject(storage.basename(place), "checkpoint", place, about.get("step"), _fingerprint(place, about))


def _about(place: str) -> dict[str, Any]:
    about = storage.join(place, adapters.ABOUT)
    return storage.read_json(about) if storage.exists(about) else {}


def _fingerprint(place: str, about: dict[str, Any]) -> str:
    """As `adapters.fingerprint`, of an adapter anywhere; one of ours says it itself, and what measures it looks again."""
    if isinstance(about.get("fingerprint"), str):
        return about["fingerprint"]  # type: ignore[no-any-return]
    digest = hashlib.sha256()
    for name in (adapters.CONFIG, adapters.WEIGHTS):
        with storage.open_input(storage.join(place, name)) as stream:
            digest.update(bytes.fromhex(storage.sha256(iter(functools.partial(stream.read, CHUNK_BYTES), b""))))
    return digest.hexdigest()
