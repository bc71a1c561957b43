"""What a run measured: `metrics.jsonl`, a JSON object a line, in which evaluated checkpoints stand under their step.

Training's own lines come from the Trainer's history, which checkpoints carry. An evaluation is ready whenever it is, in
another process, so each leaves a file of its own, `validation/step-XXXXXXXX.json`: its numbers, or why it failed. Who
writes `metrics.jsonl` joins them in, marked `"evaluated": true`: rank 0 while training goes on, the driver afterwards.
"""

import json
import math
import tempfile
from collections.abc import Iterable, Mapping
from typing import Any

from raystyle import storage
from raystyle.errors import StorageError
from raystyle.training.checkpoints import name_of

FOLDER = "validation"


def read(output_dir: str) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`; none where there is no such file yet."""
    try:
        return _lines(storage.join(output_dir, "metrics.jsonl"))
    except StorageError:
        return []


def _lines(uri: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in storage.read_bytes(uri).decode().splitlines()]


def write(output_dir: str, entries: Iterable[dict[str, Any]]) -> None:
    text = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
    storage.write_bytes(storage.join(output_dir, "metrics.jsonl"), text.encode())


Records = Mapping[storage.File, dict[str, Any]]


def records(output_dir: str, known: Records) -> Records:
    """What is known of evaluated checkpoints, by file; files that `known` has, unchanged, are not read again."""
    folder = storage.join(output_dir, FOLDER)
    if not storage.exists(folder):
        return {}
    files = storage.list_files(folder, (".json",))
    return {file: known[file] if file in known else storage.read_json(file.uri) for file in files}


def evaluations(output_dir: str) -> list[dict[str, Any]]:
    """What is known of evaluated checkpoints, by step: `{"step", numbers…}` or `{"step", "failed": reason}`."""
    return sorted(records(output_dir, {}).values(), key=lambda record: record["step"])


def write_evaluation(output_dir: str, step: int, numbers: Mapping[str, Any], *, tensorboard: bool) -> None:
    """Keep the numbers of one evaluated checkpoint, for `metrics.jsonl` and, where asked for, TensorBoard.

    What is not a finite number (a measure that did not apply) is left out. The same numbers again change nothing.
    """
    finite = {
        name: value
        for name, value in numbers.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and name != "step"
    }
    record, uri = {"step": step, **finite}, _uri(output_dir, step)
    if storage.exists(uri) and storage.read_json(uri) == record:
        return
    storage.write_json(uri, record)
    if tensorboard:
        _write_events(storage.join(output_dir, "tensorboard", FOLDER), step, finite)


def write_failure(output_dir: str, step: int, reason: str) -> None:
    storage.write_json(_uri(output_dir, step), {"step": step, "failed": reason})


def _uri(output_dir: str, step: int) -> str:
    return storage.join(output_dir, FOLDER, f"{name_of(step)}.json")


def _write_events(folder: str, step: int, numbers: Mapping[str, float]) -> None:
    """One event file for one step, in a folder of its own: TensorBoard leaves a file for good once a later one lies
    beside it, and the trainer still writes to the one above."""
    from tensorboard.summary import Writer  # type: ignore[import-untyped]

    with tempfile.TemporaryDirectory(prefix="raystyle-tensorboard-") as directory:
        writer = Writer(directory)
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)
        writer.close()
        storage.upload(directory, folder)


def joined(entries: Iterable[dict[str, Any]], evaluated: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """`entries`, in the order of their steps, with the numbers of each evaluated step behind the lines of that step.

    Lines of earlier evaluations among `entries` are replaced; failed evaluations have no numbers.
    """
    own = [entry for entry in entries if not entry.get("evaluated")]
    added = [{**record, "evaluated": True} for record in evaluated if "failed" not in record]
    return sorted([*own, *added], key=lambda entry: int(entry["step"]))


def join(output_dir: str) -> None:
    """Join all evaluations into `metrics.jsonl`; for when training has ended and nobody else writes it."""
    uri = storage.join(output_dir, "metrics.jsonl")
    # Lines that are there and cannot be read now must not be replaced by those of the evaluations alone.
    before = _lines(uri) if storage.exists(uri) else []
    after = joined(before, evaluations(output_dir))
    if after != before:
        write(output_dir, after)
