"""A run's progress for a person watching: a bar over the steps, and a line for each event worth one."""

import itertools
import operator
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from raystyle import progress, storage
from raystyle.errors import StorageError
from raystyle.training import metrics

POLL_INTERVAL_S = 1.0
NUMBERS_SHOWN = 5


@contextmanager
def followed(output_dir: str, steps: int) -> Iterator[None]:
    """Show the workers' progress while the block lasts: rank 0 writes metrics.jsonl, wherever it runs."""
    done = threading.Event()
    with progress.bar(steps, "train", "step") as shown:
        seen = 0
        told = _own(output_dir)
        known = _validation_files(output_dir)

        def refresh() -> None:
            nonlocal seen
            everything = _own(output_dir)
            # A run that has started again goes on from an earlier step, and the lines after that one are other lines.
            # None at all are storage that does not answer just now.
            if everything:
                same = itertools.takewhile(bool, map(operator.eq, told, everything))
                del told[len(list(same)) :]
            for entry in everything[len(told) :]:
                told.append(entry)
                if line := _milestone(entry):
                    _say(line)
            for record in _new_records(output_dir, known):
                _say(outcome(record))
            entries = [entry for entry in everything if "loss" in entry]
            if entries and entries[-1]["step"] > seen:
                speed = f"{entries[-1].get('tokens_per_second', 0):,.0f} tokens/s"
                shown.update(entries[-1]["step"] - seen, f"loss {entries[-1]['loss']:.3f}, {speed}")
                seen = entries[-1]["step"]

        def follow() -> None:
            while not done.wait(POLL_INTERVAL_S):
                refresh()

        thread = threading.Thread(target=follow, name="raystyle-progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            refresh()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _own(output_dir: str) -> list[dict[str, Any]]:
    """Training's own lines: those of evaluations stand among them, and would move the others' places."""
    return [entry for entry in metrics.read(output_dir) if not entry.get("evaluated")]


def _validation_files(output_dir: str) -> set[storage.File]:
    """The records of evaluations as they are now: one that is written again is another."""
    folder = storage.join(output_dir, metrics.FOLDER)
    try:
        return set(storage.list_files(folder, (".json",))) if storage.exists(folder) else set()
    except StorageError:  # storage that does not answer is no reason to lose the bar; the next look is a second away
        return set()


def _new_records(output_dir: str, known: set[storage.File]) -> list[dict[str, Any]]:
    """What evaluations have written since the last look, which `known` then holds too."""
    records = []
    for file in sorted(_validation_files(output_dir) - known):
        try:
            records.append(storage.read_json(file.uri))
        except StorageError:  # as above: told a second later, or not at all, while the record itself is kept
            break
        known.add(file)
    return records


def _milestone(entry: dict[str, Any]) -> str | None:
    """What a line of metrics.jsonl tells a person watching, beside the bar."""
    if "isolation_logit_difference" in entry:
        return (
            f"isolation of documents proved: logits within {entry['isolation_logit_difference']:.0e} of each one alone"
        )
    if "continued_from_step" in entry:
        return f"continued from the checkpoint of step {entry['continued_from_step']}, by {workers(entry)}"
    if "num_workers" in entry:
        return f"training with {workers(entry)}"
    if "heldout_loss" in entry:
        return f"held-out loss after step {entry['step']}: {entry['heldout_loss']:.4f} nats per token"
    return None


def workers(entry: dict[str, Any]) -> str:
    count = entry["num_workers"]
    return f"{count} worker{'s' if count > 1 else ''}"


def outcome(record: dict[str, Any]) -> str:
    """A line on an evaluated checkpoint: its first numbers, or why there are none."""
    if "failed" in record:
        return f"the evaluation of step {record['step']} failed, training goes on: {record['failed']}"
    numbers = [f"{name} {value:.4g}" for name, value in record.items() if name != "step"]
    more = f" and {len(numbers) - NUMBERS_SHOWN} more" if len(numbers) > NUMBERS_SHOWN else ""
    return f"step {record['step']} evaluated: {', '.join(numbers[:NUMBERS_SHOWN])}{more}"
