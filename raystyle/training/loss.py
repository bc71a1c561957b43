"""Cross-entropy whose logits are never whole: 4,096 tokens times 128,256 words in fp32 are 2.1 GB, and a step has eight.

The head is frozen, so nothing but the hidden states' gradient is wanted of it: the pass that makes a chunk's logits
makes that gradient too, and drops them. Nothing is computed twice, and only the gradient (T x D) waits for the backward
pass. Liger (Hsu et al. 2024) does the same with the softmax in one Triton kernel, and is taken where it is in use.

T tokens, C tokens of a chunk, D hidden size, V vocabulary.
"""

from typing import Any

import torch
from torch.nn.functional import cross_entropy, linear
from torch.utils.checkpoint import checkpoint

IGNORE = -100
CHUNK_BYTES = 256 * 2**20


def summed_cross_entropy(
    hidden_TD: torch.Tensor,
    head: Any,
    labels_T: torch.Tensor,
    vocab_size: int,
    has_liger: bool = False,
) -> torch.Tensor:
    """Sum of -log p(label) in nats over the tokens whose next label is not -100; labels are shifted here.

    `head` makes logits of hidden states. At most 256 MiB of logits are there at a time, in fp32. A head that is itself
    trained, sharded or no plain linear layer makes its chunks again in the backward pass, which costs one more product
    with it.
    """
    hidden_TD, labels_T = hidden_TD[:-1], labels_T[1:]
    chunk_tokens = max(1, CHUNK_BYTES // (4 * vocab_size))
    if is_frozen_linear(head):
        if has_liger and torch.is_grad_enabled():
            from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy as fused

            return fused(hidden_TD, head.weight, labels_T, bias=head.bias, ignore_index=IGNORE, reduction="sum")  # type: ignore[no-any-return]
        total: torch.Tensor = _FrozenHead.apply(hidden_TD, head.weight, head.bias, labels_T, chunk_tokens)  # type: ignore[no-untyped-call]
        return total

    def chunk_loss(hidden_CD: torch.Tensor, labels_C: torch.Tensor) -> torch.Tensor:
        return cross_entropy(head(hidden_CD).float(), labels_C, ignore_index=IGNORE, reduction="sum")

    if len(labels_T) <= chunk_tokens:
        return chunk_loss(hidden_TD, labels_T)
    losses = [
        checkpoint(chunk_loss, hidden_CD, labels_C, use_reentrant=False)
        for hidden_CD, labels_C in zip(hidden_TD.split(chunk_tokens), labels_T.split(chunk_tokens), strict=True)
    ]
    return torch.stack(losses).sum()


def is_frozen_linear(module: Any) -> bool:
    """Whether a layer is nothing but its weight and bias, whole on this device (DeepSpeed's stage 3 keeps parts), untrained."""
    return type(module) is torch.nn.Linear and not any(
        parameter.requires_grad or hasattr(parameter, "ds_id") for parameter in module.parameters()
    )


class _FrozenHead(torch.autograd.Function):
    """The summed loss, with the gradient of the hidden states made on the way."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: torch.Tensor,
        weight_VD: torch.Tensor,
        bias_V: torch.Tensor | None,
        labels_T: torch.Tensor,
        chunk_tokens: int,
    ) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden_TD.device)
        gradient_TD = torch.empty_like(hidden_TD) if ctx.needs_input_grad[0] else None
        for start in range(0, len(labels_T), chunk_tokens):
            part = slice(start, start + chunk_tokens)
            logits_CV = linear(hidden_TD[part].to(weight_VD.dtype), weight_VD, bias_V)
            log_p_CV = torch.log_softmax(logits_CV, dim=-1, dtype=torch.float32)
            del logits_CV
            is_counted_C1 = (labels_T[part] != IGNORE)[:, None]
            labels_C1 = labels_T[part].clamp(min=0)[:, None]
            total -= (log_p_CV.gather(1, labels_C1) * is_counted_C1).sum()
            if gradient_TD is not None:
                # d(-log p(label)) / d(logits) = p - [label]
                p_CV = log_p_CV.exp_()
                p_CV.scatter_add_(1, labels_C1, torch.full_like(labels_C1, -1, dtype=p_CV.dtype))
                gradient_TD[part] = (p_CV.to(weight_VD.dtype) @ weight_VD) * is_counted_C1
        ctx.gradient_TD = gradient_TD
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        [total_gradient] = gradients
        return ctx.gradient_TD * total_gradient.to(ctx.gradient_TD.dtype), None, None, None, None
