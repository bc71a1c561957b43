"""The loss on documents that were set aside before packing: what training is for, and what its own loss cannot say."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from raystyle import storage, tokens
from raystyle.training import attention
from raystyle.training.loss import IGNORE

# Held-out text is read to the end, but at most this many blocks of it, evenly spread, are measured.
MAX_BLOCKS = 64

Block = np.ndarray[Any, np.dtype[np.int64]]


def blocks(prepared_dir: str, tokenizer: Any, max_seq_length: int) -> list[Block]:
    """Held-out documents as token ids, as training has them, cut into blocks of at most `max_seq_length`, none below 2."""
    prefix, end_id = tokens.prefix_and_end(tokenizer)
    found = []
    for text in documents(prepared_dir):
        ids_T = np.concatenate([prefix, tokens.encode(tokenizer, text)[0], [end_id]]).astype(np.int64)
        found += [ids_T[i : i + max_seq_length] for i in range(0, len(ids_T), max_seq_length)]
    found = [block for block in found if len(block) > 1]
    if len(found) > MAX_BLOCKS:
        found = [found[i] for i in np.linspace(0, len(found) - 1, MAX_BLOCKS).round().astype(int)]
    return found


def documents(prepared_dir: str) -> Iterator[str]:
    for file in storage.list_files(storage.join(prepared_dir, "heldout")):
        with storage.open_input(file.uri) as stream:
            yield from pq.read_table(stream, columns=["text"])["text"].to_pylist()


@torch.no_grad()
def summed_loss(trainer: Any, found: list[Block], rank: int, num_workers: int) -> tuple[float, int]:
    """Summed loss in nats and number of predicted tokens over all blocks, each worker measuring its share.

    Every worker runs the same number of forward passes: sharded models need all of them in each.
    """
    model = trainer.model
    model.eval()
    device = trainer.args.device
    totals = torch.zeros(2, dtype=torch.float64)
    for start in range(0, len(found), num_workers):
        mine = start + rank < len(found)
        ids_T = torch.from_numpy(found[start + rank if mine else start]).to(device)
        labels_T = ids_T.clone()
        labels_T[0] = IGNORE
        inputs = {
            "input_ids": ids_T[None],
            "labels": labels_T[None],
            "position_ids": torch.arange(len(ids_T))[None].to(device),
            # As in training: where attention has a window, it is told so by these alone.
            **attention.boundaries([len(ids_T)], trainer.run.implementation, device),
        }
        loss = float(trainer.loss_sum(model, inputs))
        if mine:
            totals += torch.tensor([loss, len(ids_T) - 1], dtype=torch.float64)
    model.train()
    if torch.distributed.is_initialized():
        totals = totals.to(device)
        torch.distributed.all_reduce(totals)
    return float(totals[0]), int(totals[1])
