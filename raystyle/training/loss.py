"""Cross-entropy whose logits are never whole: 4,096 tokens times 128,256 words in fp32 are 2.1 GB, and a step has eight.

T tokens, D hidden size, V vocabulary.
"""

from collections.abc import Callable

import torch
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

IGNORE = -100
CHUNK_BYTES = 256 * 2**20


def summed_cross_entropy(
    hidden_TD: torch.Tensor, head: Callable[[torch.Tensor], torch.Tensor], labels_T: torch.Tensor, vocab_size: int
) -> torch.Tensor:
    """Sum of -log p(label) in nats over the tokens whose next label is not -100; labels are shifted here.

    The head's logits are made, used and dropped chunk by chunk, at most 256 MiB of them in fp32, and made again in the
    backward pass, which costs one more product with the head; where all fit into one chunk nothing is recomputed.
    """
    hidden_TD, labels_T = hidden_TD[:-1], labels_T[1:]

    def chunk_loss(hidden_CD: torch.Tensor, labels_C: torch.Tensor) -> torch.Tensor:
        return cross_entropy(head(hidden_CD).float(), labels_C, ignore_index=IGNORE, reduction="sum")

    chunk_tokens = max(1, CHUNK_BYTES // (4 * vocab_size))
    if len(labels_T) <= chunk_tokens:
        return chunk_loss(hidden_TD, labels_T)
    losses = [
        checkpoint(chunk_loss, hidden_CD, labels_C, use_reentrant=False)
        for hidden_CD, labels_C in zip(hidden_TD.split(chunk_tokens), labels_T.split(chunk_tokens), strict=True)
    ]
    return torch.stack(losses).sum()
