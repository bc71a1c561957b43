"""Why a loss stays high: the rows and the lines on which it is highest, with their source files.

Where a loss stops falling too high, noise that survived cleaning is the usual reason: navigation, garbled text, another
language. Such lines stand out by their loss, and those that a corpus repeats are worth a rule. A sample of rows is enough
to see them.

T tokens, C tokens of a chunk, D hidden size, V vocabulary.
"""

import collections
import dataclasses
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch.nn.functional import cross_entropy

from raystyle import storage
from raystyle.training import guard
from raystyle.training.loss import CHUNK_BYTES, IGNORE
from raystyle.training.rows import flat_batch

ROWS = 64  # measured, evenly spread over all; of a stream the last ones
SHOWN_ROWS, SHOWN_LINES, CANDIDATES = 8, 12, 48
LEAST_TOKENS = 3  # of a line: the loss of one or two says little
EXCERPT_CHARS = 120


@dataclasses.dataclass(frozen=True)
class Line:
    """A line in a row: its text, the mean loss of its tokens in nats, its row and document."""

    text: str
    loss: float
    row: int
    doc_id: str


@torch.no_grad()
def token_losses(trainer: Any, inputs: Mapping[str, Any]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The loss of each token of a flat batch (T,) in nats, given those before it; nan where nothing predicts it."""
    inputs = {k: v.to(trainer.args.device) if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
    labels_T = inputs.pop("labels")[0]
    inputs.pop("place", None)
    with trainer.accelerator.autocast():
        output = trainer.model(**inputs, use_cache=False, **({"logits_to_keep": 1} if trainer.is_head_plain else {}))
        hidden_TD, trainer.hidden_TD = trainer.hidden_TD, None
        if not trainer.is_head_plain:
            hidden_TD = output.logits[0]
        chunk = max(1, CHUNK_BYTES // (4 * trainer.model.config.vocab_size))
        losses = [torch.zeros(1, device=labels_T.device)]
        for hidden_CD, labels_C in zip(hidden_TD[:-1].split(chunk), labels_T[1:].split(chunk), strict=True):
            logits_CV = trainer.head(hidden_CD) if trainer.is_head_plain else hidden_CD
            losses.append(cross_entropy(logits_CV.float(), labels_C, ignore_index=IGNORE, reduction="none"))
    losses_T = torch.cat(losses)
    losses_T[labels_T == IGNORE] = torch.nan
    losses_T[0] = torch.nan
    return losses_T.float().cpu().numpy()


def lines_of(ids: Sequence[int], losses_T: Sequence[float], tokenizer: Any, row: int, doc_id: str) -> Iterator[Line]:
    """The lines of a piece of one document. A token that ends a line ends it wholly: what follows in it is rare."""
    start = 0
    for end in range(1, len(ids) + 1):
        if end == len(ids) or "\n" in tokenizer.decode([ids[end - 1]]):
            known = [loss for loss in losses_T[start:end] if not np.isnan(loss)]
            text = tokenizer.decode(ids[start:end], skip_special_tokens=True).strip()
            if len(known) >= LEAST_TOKENS and text:
                yield Line(text, float(np.mean(known)), row, doc_id)
            start = end


def find(trainer: Any) -> dict[str, Any]:
    """What metrics.jsonl says of the rows and lines with the highest loss: rows, then lines, the highest first.

    Of lines, those that the corpus repeats come before those that stand in it once.
    """
    rows, tokenizer = trainer.train_dataset.rows, trainer.run.tokenizer
    was_training = trainer.model.training
    trainer.model.eval()
    lines: list[Line] = []
    means: dict[int, float] = {}
    for number in rows.spread(ROWS):
        row = rows[number]
        batch = flat_batch([(0, row)], trainer.run.config.isolation, trainer.run.implementation)
        losses_T = token_losses(trainer, batch)
        means[number] = float(np.nanmean(losses_T))
        start = 0
        for length, doc_id in zip(row.segment_lengths, row.doc_ids, strict=True):
            piece = row.input_ids[start : start + length].tolist()
            lines += lines_of(piece, losses_T[start : start + length].tolist(), tokenizer, number, doc_id)
            start += length
    trainer.model.train(was_training)
    by_text = collections.defaultdict(list)
    for line in lines:
        by_text[line.text].append(line)
    loss_of = {text: statistics.fmean(line.loss for line in found) for text, found in by_text.items()}
    candidates = sorted(loss_of, key=lambda text: -loss_of[text])[:CANDIDATES]
    repeats = _occurrences(rows.documents_dir, candidates)
    known = rows.sources_by_document()

    def line_entry(text: str) -> dict[str, Any]:
        times, places = repeats.get(text, (0, []))
        here = [known.get(line.doc_id, line.doc_id) for line in by_text[text]]
        return {
            "text": text[:EXCERPT_CHARS],
            "loss": round(loss_of[text], 3),
            "times": max(times, len(here)),
            "sources": list(dict.fromkeys([*places, *here]))[:4],
        }

    entries = [line_entry(text) for text in candidates]
    entries.sort(key=lambda entry: (entry["times"] < 2, -entry["loss"]))
    return {
        "hardest_rows": [
            {
                "row": number,
                "loss": round(means[number], 3),
                "sources": guard.sources(rows, [number]),
                "text": tokenizer.decode(rows[number].input_ids[:200].tolist(), skip_special_tokens=True)[
                    :EXCERPT_CHARS
                ],
            }
            for number in sorted(means, key=lambda number: -means[number])[:SHOWN_ROWS]
        ],
        "hardest_lines": entries[:SHOWN_LINES],
    }


def _occurrences(folder: str | None, texts: Sequence[str]) -> dict[str, tuple[int, list[str]]]:
    """How often each line stands in all documents, and in which sources first; nothing where there are no documents."""
    found: dict[str, tuple[int, list[str]]] = {}
    for file in storage.list_files(folder, (".parquet",)) if folder else []:
        with storage.open_input(file.uri) as stream:
            table = pq.read_table(stream, columns=["source", "text"])
        padded = pc.binary_join_element_wise("\n", table["text"], "\n", "")
        for text in texts:
            counts = pc.count_substring(padded, f"\n{text}\n").to_numpy()
            if total := int(counts.sum()):
                times, places = found.get(text, (0, []))
                sources = [table["source"][int(place)].as_py() for place in counts.nonzero()[0][:4]]
                found[text] = (times + total, [*places, *sources])
    return found
