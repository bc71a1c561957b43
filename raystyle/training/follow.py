"""A run's progress for a person watching: a bar over the steps, and a line for each event worth one."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from raystyle import progress, storage
from raystyle.errors import StorageError
from raystyle.training import metrics
from raystyle.training.guard import described

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
            nonlocal seen, told
            # Nothing: the file cannot be read now.
            everything = _own(output_dir) or told
            for entry in _news(told, everything):
                if line := _milestone(entry):
                    _say(line)
            told = everything
            for record in _new_records(output_dir, known):
                _say(outcome(record))
            entries = [entry for entry in everything if "loss" in entry]
            if entries and entries[-1]["step"] > seen:
                shown.update(entries[-1]["step"] - seen, note(entries[-1]))
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


def note(entry: dict[str, Any]) -> str:
    """What the bar says of the last logged step."""
    parts = [f"loss {entry['loss']:.3f}", f"{entry.get('tokens_per_second', 0):,.0f} tokens/s"]
    if "model_flop_utilisation" in entry:
        parts.append(f"{entry['model_flop_utilisation']:.1%} of peak")
    if "peak_memory_gb" in entry:
        parts.append(f"{entry['peak_memory_gb']:.1f} GB")
    if "seconds_left" in entry:
        parts.append(f"{entry['seconds_left'] / 60:.0f} min left")
    return ", ".join(parts)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _own(output_dir: str) -> list[dict[str, Any]]:
    """Training's own lines: those of evaluations stand among them, and would move the others' places."""
    return [entry for entry in metrics.read(output_dir) if not entry.get("evaluated")]


def _news(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines from the first one that is another than before. A run that continues from a checkpoint takes back what
    came after it, so there may be fewer lines than before, and news among them."""
    same = (old == new for old, new in zip(before, now, strict=False))
    first = next((place for place, is_same in enumerate(same) if not is_same), min(len(before), len(now)))
    return now[first:]


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
        went_on = f"continued from the checkpoint of step {entry['continued_from_step']}, by {workers(entry)}"
        return f"{went_on}{between(entry)}{torn(entry)}"
    if "num_workers" in entry:
        return f"training with {workers(entry)}{between(entry)}{torn(entry, 'training starts over')}"
    if "leaving_at_step" in entry:
        return f"a machine is announced to go: a checkpoint is kept after step {entry['leaving_at_step']}"
    if entry.get("left_out"):
        return f"{entry['bad_loss']}; the step was left out: {described(entry['rows'], entry['sources'])}"
    if "heldout_loss" in entry:
        return f"held-out loss after step {entry['step']}: {entry['heldout_loss']:.4f} nats per token"
    return None


def workers(entry: dict[str, Any]) -> str:
    count = entry["num_workers"]
    return f"{count} worker{'s' if count > 1 else ''}"


def torn(entry: dict[str, Any], consequence: str = "") -> str:
    """A warning of checkpoints that could not be continued from, and so were deleted."""
    names = entry.get("torn_checkpoints")
    if not names:
        return ""
    return f"\nwarning: not complete, or damaged, and deleted: {', '.join(names)}" + (
        f"; {consequence}" if consequence else ""
    )


def between(entry: dict[str, Any]) -> str:
    """How fast several workers sum gradients, and by what ways; a warning where those are sockets between GPUs."""
    if "all_reduce_gb_per_s" not in entry:
        return ""
    said = f"; gradients are summed at {entry['all_reduce_gb_per_s']:g} GB/s ({entry['transport']})"
    if "NET/Socket" not in entry["transport"]:
        return said
    return (
        f"{said}\nwarning: NCCL goes over TCP sockets, and each step waits for them\n"
        "hint: with InfiniBand or EFA, install its NCCL plugin; else name the fast interface in NCCL_SOCKET_IFNAME"
    )


def outcome(record: dict[str, Any]) -> str:
    """A line on an evaluated checkpoint: its first numbers, or why there are none."""
    if "failed" in record:
        return f"the evaluation of step {record['step']} failed, training goes on: {record['failed']}"
    numbers = [f"{name} {value:.4g}" for name, value in record.items() if name != "step"]
    more = f" and {len(numbers) - NUMBERS_SHOWN} more" if len(numbers) > NUMBERS_SHOWN else ""
    return f"step {record['step']} evaluated: {', '.join(numbers[:NUMBERS_SHOWN])}{more}"
