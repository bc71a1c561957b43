"""Steps whose loss is not finite, or leaps: judged before the optimizer moves, by the same numbers on every worker.

A bad step is told with the rows that made it, down to their source files: it is either the run that diverges (a lower
learning rate) or text that should not be there. What counts as a leap depends on logged losses alone, which checkpoints
carry, so that a run which is continued passes over the same steps as one that was never stopped.
"""

import dataclasses
import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

HISTORY, LEAST = 32, 16  # logged losses whose median a leap is measured from; with fewer than `LEAST` nothing leaps
MAX_SKIPPED = 10  # bad steps in a row: then it is no longer the text
ROWS_NAMED = 8


@dataclasses.dataclass(frozen=True)
class MicroBatch:
    """A micro-batch of one step: its first row's place in the run, and its loss in nats per token."""

    place: int
    loss: float


def what_is_bad(step: int, loss: float, gradient_norm: float, history: Sequence[float], spike: float) -> str | None:
    """The reason why a step is bad; None where it is not. `loss` and `history` are in nats per token."""
    if not math.isfinite(loss):
        return f"the loss of step {step} is {loss}"
    if not math.isfinite(gradient_norm):
        return f"the gradient of step {step} is {gradient_norm}, at a loss of {loss:.3f}"
    recent = list(history)[-HISTORY:]
    if spike and len(recent) >= LEAST and loss - (usual := statistics.median(recent)) > spike:
        return f"the loss of step {step} is {loss:.3f} nats per token, after a median of {usual:.3f}"
    return None


def worst(batches: Iterable[MicroBatch]) -> list[MicroBatch]:
    """The micro-batches that made a step bad: all whose loss is not finite, else the one with the highest."""
    every = list(batches)
    broken = [batch for batch in every if not math.isfinite(batch.loss)]
    return broken or [max(every, key=lambda batch: batch.loss)]


def sources(rows: Any, numbers: Iterable[int]) -> list[str]:
    """The source files of rows' documents; their ids, where the data does not say."""
    ids = [doc_id for number in numbers if (row := rows[number]) is not None for doc_id in row.doc_ids]
    known = rows.sources_by_document()
    return list(dict.fromkeys(known.get(doc_id, doc_id) for doc_id in ids))


def described(numbers: Sequence[int], names: Sequence[str]) -> str:
    """Rows and their sources, for a message."""

    def shown(items: Sequence[Any]) -> str:
        more = f" and {len(items) - ROWS_NAMED} more" if len(items) > ROWS_NAMED else ""
        return ", ".join(map(str, items[:ROWS_NAMED])) + more

    return f"row{'s' * (len(numbers) != 1)} {shown(numbers)} of {shown(names) or 'no document'}"
