"""Which adapters are served: names that point to digests, from what lies at `adapters_path`.

One loop per replica calls `look`, loads and proves what it returns, calls `admit` or `refuse`, unloads what is `drained`
and calls `forget`: one after another, `look` in a thread, for it reads files. Requests `hold` and `release` digests
meanwhile, and anyone asks for `cards`: what these share is guarded by a lock that is never held while files are read.

A name that is served goes on meaning what it means until a new version is admitted, or its folder is gone. Its old digest
is unloaded when its last request has ended. What was refused is looked at again when its files change.
"""

import dataclasses
import logging
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

from raystyle import adapters, storage
from raystyle.errors import ConfigError, ModelError, RaystyleError, StorageError
from raystyle.serving.contract import Card
from raystyle.serving.errors import RequestError
from raystyle.serving.finding import Files, Found, find, listing
from raystyle.serving.inspection import Base
from raystyle.serving.snapshot import Snapshot, snapshot
from raystyle.serving.words import EVALUATION, author_words

RETRY_AFTER_S = 2.0
# What could not be tried, for a reason that is none of its own, is tried again this much later, then twice as late each time.
RETRY_S, LONGEST_RETRY_S = 2.0, 600.0
# Object storage tells when a file was written in whole seconds. What is read this long after it was listed is what that
# time stands for: a later file of the same size has a later one.
REMOTE_TICK_S = 1.0
_LATER = "it could not be tried yet, for a reason that the server's log tells; it is tried again"
_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Candidate:
    """An adapter whose files are good. It is served when it has been loaded and proven, and admitted."""

    name: str
    kind: Literal["adapter", "checkpoint"]
    step: int | None
    created: int  # seconds since 1970
    digest: str
    directory: str  # its config and weights, this process's own
    base_verified: bool
    markers: tuple[str, ...]


class Registry:
    """The names and digests of one replica. `base_identity` and `linears` are `models`', `tokenizer_digest` is `tokens`'."""

    def __init__(
        self,
        paths: Sequence[str],
        scratch_dir: str,
        *,
        base_identity: str,
        tokenizer_digest: str,
        linears: Mapping[str, tuple[int, int]],
        allow_unverified_base: bool,
        max_adapters: int,
    ) -> None:
        self.paths = tuple(dict.fromkeys(map(storage.absolute, paths)))
        self.scratch_dir = scratch_dir
        self.base = Base(base_identity, tokenizer_digest, linears)
        self.allow_unverified_base, self.max_adapters = allow_unverified_base, max_adapters
        # The loop's own.
        self._listings: dict[str, Files] = {}
        self._examined: dict[str, tuple[Files, Snapshot | str]] = {}  # by URI: what lay there, and what came of it
        self._evaluations: dict[str, tuple[object, tuple[str, ...]]] = {}
        self._said: dict[str, str] = {}
        # Shared.
        self._lock = threading.Lock()
        self._served: dict[str, Candidate] = {}
        self._waiting: dict[str, Candidate] = {}  # to be admitted or refused
        self._refused: dict[str, Card] = {}
        self._put_off: dict[str, tuple[int, float]] = {}  # by digest: how often, and when (`time.monotonic`) it ends
        self._effects: dict[str, float] = {}  # of the digests that may be held
        self._snapshots: set[str] = set()
        self._nameless_since_s: dict[str, float] = {}  # of those of them that no name means
        self._users: Counter[str] = Counter()

    # ── the loop's ──

    def look(self) -> list[Candidate]:
        """See what has come, changed and gone; what is to be loaded and proven, each digest once.

        What could not be read is logged, and looked at again by the next call, and what is served of it stays. Raises
        `ConfigError` for a path that has never existed, `StorageError` for one that has never been listed.
        """
        found = find(self._list())
        names = {each.name for each in found}
        with self._lock:
            self._served = {name: candidate for name, candidate in self._served.items() if name in names}
        if any(storage.is_remote(each.uri) and each.refused is None and not self._is_examined(each) for each in found):
            time.sleep(REMOTE_TICK_S)
        good: dict[str, Candidate] = {}
        refused: dict[str, Card] = {}
        dropped, room = set(), self.max_adapters
        for each in found:
            if each.refused:
                outcome: Snapshot | str = each.refused
            elif room > 0:
                outcome = self._examine(each)
            else:
                outcome = f"there are more adapters than `--max_adapters` {self.max_adapters}; raise it, or remove some"
                dropped.add(each.name)
            if isinstance(outcome, Snapshot):
                good[each.name] = self._candidate(each, outcome)
            else:
                refused[each.name] = self._refusal(each, outcome)
            room -= each.name in good or (each.name in self._served and each.name not in dropped)
        self._forget_gone({each.uri for each in found})
        with self._lock:
            for name in dropped:
                self._served.pop(name, None)
            self._refused, self._waiting = refused, {}
            for name, candidate in good.items():
                known = candidate.digest in self._effects
                (self._served if known else self._waiting)[name] = candidate
            to_load: dict[str, Candidate] = {}
            for candidate in self._waiting.values():
                if self._put_off.get(candidate.digest, (0, 0.0))[1] <= time.monotonic():
                    to_load.setdefault(candidate.digest, candidate)
            return list(to_load.values())

    def admit(self, candidate: Candidate, effect: float) -> None:
        """Make every name that waits for this digest mean it. `effect`: the canary's, in nats."""
        with self._lock:
            for name in [name for name, waiting in self._waiting.items() if waiting.digest == candidate.digest]:
                self._served[name] = self._waiting.pop(name)
                self._effects[candidate.digest] = effect
            self._put_off.pop(candidate.digest, None)

    def put_off(self, candidate: Candidate) -> None:
        """Try this digest again later, and later each time. Until then it is listed as refused."""
        with self._lock:
            count, _ = self._put_off.get(candidate.digest, (0, 0.0))
            wait_s = min(RETRY_S * 2 ** min(count, 20), LONGEST_RETRY_S)
            self._put_off[candidate.digest] = count + 1, time.monotonic() + wait_s

    def refuse(self, candidate: Candidate, reason: str) -> None:
        """Serve this digest under no name. The reason is listed until the files change."""
        text = _sentence(reason, candidate.directory)
        for uri, (files, outcome) in self._examined.items():
            if isinstance(outcome, Snapshot) and outcome.digest == candidate.digest:
                self._examined[uri] = (files, text)
        with self._lock:
            self._put_off.pop(candidate.digest, None)
            for name in [name for name, waiting in self._waiting.items() if waiting.digest == candidate.digest]:
                self._refused[name] = _refused_card(self._waiting.pop(name), text)
        self._say(candidate.name, f"the adapter `{candidate.name}` is refused: {text}")

    def drained(self, nameless_s: float = 0.0) -> list[str]:
        """The digests that no name has meant for so long and no request uses, to be unloaded. From now on nobody gets hold
        of them."""
        now_s = time.monotonic()
        with self._lock:
            meant = {candidate.digest for names in (self._served, self._waiting) for candidate in names.values()}
            known = self._nameless_since_s
            self._nameless_since_s = {digest: known.get(digest, now_s) for digest in self._snapshots - meant}
            found = sorted(
                digest
                for digest, since_s in self._nameless_since_s.items()
                if now_s - since_s >= nameless_s and not self._users[digest]
            )
            for digest in found:
                self._effects.pop(digest, None)
            return found

    def forget(self, digest: str) -> None:
        """Delete the copy of an adapter that has been unloaded."""
        shutil.rmtree(storage.join(self.scratch_dir, digest), ignore_errors=True)  # another may have cleaned up there
        self._examined = {
            uri: (files, outcome)
            for uri, (files, outcome) in self._examined.items()
            if not (isinstance(outcome, Snapshot) and outcome.digest == digest)
        }
        with self._lock:
            self._snapshots.discard(digest)
            self._put_off.pop(digest, None)

    # ── anyone's ──

    def hold(self, digest: str) -> None:
        """Count a request that uses a digest, which then stays loaded. Raises `RequestError` where it is not here."""
        with self._lock:
            if digest not in self._effects:
                # The name was looked up somewhere else, or a moment ago: what it means now is known on the next try.
                message = f"the adapter {digest[:12]} is not loaded here; try again"
                raise RequestError("unavailable", message, "model", RETRY_AFTER_S)
            self._users[digest] += 1

    def release(self, digest: str) -> None:
        """End what `hold` began."""
        with self._lock:
            assert self._users[digest] > 0, "released more often than held"
            self._users[digest] -= 1
            if not self._users[digest]:
                del self._users[digest]

    def cards(self) -> tuple[Card, ...]:
        """All adapters, the served ones first; a run's own before its checkpoints, the newest of these first.

        A name stands there twice while its old version is served and the new one is refused.
        """
        with self._lock:
            served = [
                Card(
                    each.name, each.kind, each.digest, each.step, each.created, self._effects[each.digest],
                    each.base_verified, None, each.markers,
                )
                for each in self._served.values()
            ]  # fmt: skip
            later = [_refused_card(each, _LATER) for each in self._waiting.values() if each.digest in self._put_off]
            return (*sorted(served, key=_order), *sorted([*self._refused.values(), *later], key=_order))

    # ── inside ──

    def _list(self) -> Mapping[str, Files]:
        for path in self.paths:
            try:
                listed = listing(path)
            except StorageError as error:
                if path not in self._listings:
                    raise
                self._say(path, f"{error}; what is served of it stays")
                continue
            if listed is None and path not in self._listings:
                raise ConfigError(
                    f"`adapters_path` {path} is no folder that exists\nhint: check the path, or make it first"
                )
            self._said.pop(path, None)
            self._listings[path] = listed or {}
        return self._listings

    def _examine(self, found: Found) -> Snapshot | str:
        """What comes of a folder: as before while its files are the same, else copied and looked at."""
        if self._is_examined(found):
            return self._examined[found.uri][1]
        outcome: Snapshot | str
        try:
            outcome = snapshot(found, self.scratch_dir, self.base, self.allow_unverified_base)
        except StorageError as error:  # it may be readable next time
            return _sentence(str(error), found.uri, found.root)
        except ModelError as error:
            outcome = _sentence(str(error), found.uri, found.root)
        else:
            with self._lock:
                self._snapshots.add(outcome.digest)
        self._examined[found.uri] = (found.files, outcome)
        return outcome

    def _is_examined(self, found: Found) -> bool:
        """Whether what came of a folder still stands: its files are the same, and the copy of them is there."""
        files, outcome = self._examined.get(found.uri, (None, ""))
        return files == found.files and (isinstance(outcome, str) or os.path.isdir(outcome.directory))

    def _candidate(self, found: Found, copied: Snapshot) -> Candidate:
        step = copied.step if found.kind == "checkpoint" else None
        digest, directory, base_verified, _ = copied
        markers = self._markers(found)
        return Candidate(found.name, found.kind, step, _created(found), digest, directory, base_verified, markers)

    def _refusal(self, found: Found, reason: str) -> Card:
        name, text = _printable(found.name)[:128], _sentence(reason, found.uri, found.root)
        self._say(found.uri, f"the adapter `{name}` in {_printable(found.uri)} is refused: {text}")
        return Card(name, found.kind, None, found.step, _created(found), base_verified=False, refused=text)

    def _markers(self, found: Found) -> tuple[str, ...]:
        """The author's words, read again when the evaluation has changed; none where there is no good one."""
        run, entry = found.run or "", found.run_files.get(EVALUATION)
        if run not in self._evaluations or self._evaluations[run][0] != entry:
            try:
                words = author_words(found)
            except RaystyleError as error:
                self._say(f"{run}/{EVALUATION}", f"no markers from {_printable(run)}: {error}")
                if isinstance(error, StorageError):  # it may be readable next time
                    return ()
                words = ()
            self._evaluations[run] = (entry, words)
        return self._evaluations[run][1]

    def _forget_gone(self, uris: set[str]) -> None:
        self._examined = {uri: known for uri, known in self._examined.items() if uri in uris}

    def _say(self, about: str, message: str) -> None:
        """Log what has not been said of this before, for the loop comes by every few seconds."""
        if self._said.get(about) != message:
            self._said[about] = message
            _LOG.warning("%s", message)


def _created(found: Found) -> int:
    weights = found.files.get(adapters.WEIGHTS)
    return weights.mtime_ns // 10**9 if weights else 0


def _refused_card(candidate: Candidate, reason: str) -> Card:
    kind, step, created = candidate.kind, candidate.step, candidate.created
    return Card(candidate.name, kind, None, step, created, base_verified=False, refused=reason)


def _order(card: Card) -> tuple[str, bool, int]:
    return card.name.partition("@")[0], card.step is not None, -(card.step or 0)


def _sentence(message: str, *places: str) -> str:
    """An error for everybody to read: one line, and none of these folders in it."""
    for place in places:
        message = message.replace(f"{place}/", "").replace(place, "…")
    return _printable(message.replace("\nhint: ", "; "))[:600]


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)
