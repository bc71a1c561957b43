"""Attention that keeps the blocks of a packed batch apart, and the proof that it does.

A micro-batch is one flat sequence of blocks (`rows.py`). transformers' own isolation depends on what is passed and how
(it is lost, without a word, with `use_cache` or an all-ones mask), so boundaries are explicit here: FlashAttention, and
the same kernel as torch brings it (`torch.nn.attention.varlen`), get cumulative lengths; without a GPU, torch's SDPA runs
block by block, causal, without a mask. No block ever sees another's keys, and no mask of the flattened length squared is
ever built.

T tokens of the flat batch, H heads, D head size, V vocabulary.
"""

import importlib.util
import inspect
from collections.abc import Sequence
from typing import Any

import torch

from raystyle import models
from raystyle.errors import ConfigError, TrainingError
from raystyle.training import sharding

PACKED_SDPA = "raystyle_packed_sdpa"
VARLEN = "raystyle_varlen"
# transformers' names, and the packages that bring them; the newest first.
FLASH = {"flash_attention_3": "flash_attn_interface", "flash_attention_2": "flash_attn"}
# torch's flash kernel is compiled for Ampere and newer.
FLASH_CAPABILITY = (8, 0)
# How far apart two logits may be, relative to the largest, when only the order of summation differs.
FP32_TOLERANCE, BF16_TOLERANCE = 1e-4, 5e-2
# Of two blocks so many tokens are taken back to their embeddings: what that keeps is little beside what a step does.
BACKWARD_TOKENS = 64


def choose(attn_implementation: str, use_gpu: bool, bf16: bool) -> str:
    """transformers' name of the attention to use.

    `auto` takes FlashAttention-3 or -2 where its package is installed, else torch's own variable-length flash kernel, else
    SDPA block by block. All but the last compute in 16 bits on a GPU. Raises `ConfigError` for one that is asked for and
    cannot run.
    """
    register()
    lacks = [reason for lacking, reason in [(not use_gpu, "a GPU"), (not bf16, "--bf16 true")] if lacking]
    installed = [name for name, package in FLASH.items() if importlib.util.find_spec(package) is not None]
    if attn_implementation in FLASH and attn_implementation not in installed:
        lacks.append(f"the package {FLASH[attn_implementation].replace('_', '-')} on the workers")
    if attn_implementation == "varlen" and use_gpu and not has_varlen():
        lacks.append("a GPU of compute capability 8.0 (A100, RTX 30) or newer")
    if attn_implementation in (*FLASH, "varlen"):
        if lacks:
            raise ConfigError(
                f"`attn_implementation` is {attn_implementation}, which needs {' and '.join(lacks)}\n"
                "hint: `auto` takes what is there"
            )
        return VARLEN if attn_implementation == "varlen" else attn_implementation
    if attn_implementation == "sdpa" or lacks:
        return PACKED_SDPA
    return installed[0] if installed else VARLEN if has_varlen() else PACKED_SDPA


def has_varlen() -> bool:
    """Whether torch's variable-length flash kernel runs on this process's GPU."""
    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= FLASH_CAPABILITY


def register() -> None:
    """Make our two attentions known to transformers by their names. No mask function goes with them: they need none."""
    from transformers import AttentionInterface

    AttentionInterface.register(PACKED_SDPA, packed_sdpa)
    AttentionInterface.register(VARLEN, varlen)


def varlen(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """torch's variable-length flash attention on a flat batch (1, H, T, D); without lengths, transformers' SDPA on the whole.

    A `sliding_window` counts the query's own key; the kernel's window counts the keys before it.
    """
    if cu_seq_lens_q is None or max_length_q is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    from torch.nn.attention.varlen import varlen_attn

    # The kernel has shared keys by itself; from torch 2.12 on it wants to be told that they are meant.
    shared: Any = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
    window = kwargs.get("sliding_window")
    output = varlen_attn(
        query.squeeze(0).transpose(0, 1),
        key.squeeze(0).transpose(0, 1),
        value.squeeze(0).transpose(0, 1),
        cu_seq_lens_q,
        cu_seq_lens_q,
        max_length_q,
        max_length_q,
        scale=kwargs.get("scaling"),
        window_size=(-1 if window is None else window - 1, 0),
        **shared,
    )
    assert isinstance(output, torch.Tensor)
    return output.unsqueeze(0), None


def packed_sdpa(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    block_lengths: tuple[int, ...] | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' SDPA on each block of a flat batch (1, H, T, D); without `block_lengths`, on the whole as it is."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if block_lengths is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    window = kwargs.get("sliding_window")
    blocks = zip(*(tensor.split(block_lengths, dim=2) for tensor in (query, key, value)), strict=True)
    outputs = [
        sdpa_attention_forward(module, q, k, v, _window_mask(q.shape[2], window, q.device), **kwargs)[0]
        for q, k, v in blocks
    ]
    return torch.cat(outputs, dim=1), None


def _window_mask(length: int, window: int | None, device: torch.device) -> torch.Tensor | None:
    """The causal band (1, 1, T, T) of a sliding window that is shorter than the block; else none, which is faster."""
    if window is None or length <= window:
        return None
    return torch.ones(length, length, dtype=torch.bool, device=device).tril().triu(1 - window)[None, None]


def boundaries(block_lengths: Sequence[int], implementation: str, device: torch.device | None = None) -> dict[str, Any]:
    """The model's arguments that say where blocks end, as `implementation` wants them."""
    if implementation not in (VARLEN, *FLASH):
        return {"block_lengths": tuple(block_lengths)}
    ends = torch.tensor([0, *block_lengths]).cumsum(0).to(torch.int32).to(device)
    longest = max(block_lengths)
    return {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}


def flat_positions(block_lengths: Sequence[int]) -> torch.Tensor:
    """Position ids (1, T) that start again at 0 in each block."""
    return torch.cat([torch.arange(length) for length in block_lengths])[None]


@torch.no_grad()
def prove_isolation(model: Any, ids_T: torch.Tensor, block_lengths: Sequence[int], implementation: str) -> float:
    """Check on real tokens that blocks packed together give the logits they give alone; returns the largest difference.

    `model` is a PEFT model. Alone means one sequence through transformers' own SDPA, and the difference is relative to the
    largest logit. A second check holds in any precision: with every token of the first block changed, the logits of all
    other blocks must not move at all. A third one is made as a step is, in training mode and backwards, through whatever is
    recomputed, fused or dropped there (but under ZeRO-3, whose shards only its own backward pass gathers): the gradient of a
    block must be 0 at another one's tokens. Raises `TrainingError` where one of them fails.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    ids_T = ids_T.to(device)
    packed_TV = _logits(model, ids_T, block_lengths, implementation)
    changed_T = ids_T.clone()
    changed_T[: block_lengths[0]] = (changed_T[: block_lengths[0]] + 1) % packed_TV.shape[-1]
    changed_TV = _logits(model, changed_T, block_lengths, implementation)
    base = model.get_base_model()
    is_mixture = models.num_experts(base.config.get_text_config()) > 0
    leak = _apart(changed_TV[block_lengths[0] :], packed_TV[block_lengths[0] :], block_lengths[1:], is_mixture)
    base.set_attn_implementation("sdpa")
    alone_TV = torch.cat(
        [model(block[None], use_cache=False).logits[0].float() for block in ids_T.split([*block_lengths])]
    )
    base.set_attn_implementation(implementation)
    largest = float(alone_TV.abs().max())
    difference = _apart(packed_TV, alone_TV, block_lengths, is_mixture) / largest
    back = 0.0 if sharding.is_base_sharded(model) else _gradient_across(model, ids_T, block_lengths, implementation)
    model.train(was_training)
    is_exact = next(model.parameters()).dtype == torch.float32 and not torch.backends.cuda.matmul.allow_tf32
    tolerance = FP32_TOLERANCE if is_exact else BF16_TOLERANCE
    if not difference <= tolerance or not leak <= (tolerance * largest if is_mixture else 0) or back:
        raise TrainingError(
            f"packed documents are not isolated by `{implementation}`: their logits differ by {difference:.2e} of the "
            f"largest from the documents alone, and by {leak:.2e} when another document changes; of a gradient, {back:.2e} "
            "reaches another document\n"
            "hint: use `--attn_implementation sdpa`, or report this with the model's name"
        )
    return difference


@torch.enable_grad()
def _gradient_across(model: Any, ids_T: torch.Tensor, block_lengths: Sequence[int], implementation: str) -> float:
    """In training mode: how large the second block's gradient is at the first one's tokens, beside its largest at its own."""
    pieces = [block[:BACKWARD_TOKENS] for block in ids_T.split([*block_lengths])[:2]]
    embedded: list[torch.Tensor] = []
    hidden: list[torch.Tensor] = []

    def begin(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    base = model.get_base_model()
    hooks = [
        base.get_input_embeddings().register_forward_hook(begin),
        base.get_decoder().register_forward_hook(lambda module, inputs, output: hidden.append(output[0])),
    ]
    model.train()
    try:
        _forward(model, torch.cat(pieces), list(map(len, pieces)), implementation)
    finally:
        for hook in hooks:
            hook.remove()
    first = len(pieces[0])
    # The parameters' own gradients are left alone: nobody sums them.
    [gradient] = torch.autograd.grad(hidden[-1][0, first:].float().square().sum(), embedded[-1])
    gradient_T = gradient[0].float().abs().amax(-1)
    return float(gradient_T[:first].max() / gradient_T[first:].max())


def _apart(a_TV: torch.Tensor, b_TV: torch.Tensor, block_lengths: Sequence[int], is_mixture: bool) -> float:
    """The largest difference of two logits.

    A mixture's experts take the tokens of all blocks together, so that sums are made in another order with other company,
    and a token near the border between two experts may go to the other one. There, it is the middle one of each block's
    tokens: a block that sees another's keys differs everywhere.
    """
    apart_T = (a_TV - b_TV).abs().amax(-1)
    if is_mixture:
        apart_T = torch.stack([block.median() for block in apart_T.split([*block_lengths])])
    return float(apart_T.max())


def _logits(model: Any, ids_T: torch.Tensor, block_lengths: Sequence[int], implementation: str) -> torch.Tensor:
    return _forward(model, ids_T, block_lengths, implementation).logits[0].float()  # type: ignore[no-any-return]


def _forward(model: Any, ids_T: torch.Tensor, block_lengths: Sequence[int], implementation: str) -> Any:
    return model(
        input_ids=ids_T[None],
        position_ids=flat_positions(block_lengths).to(ids_T.device),
        use_cache=False,
        **boundaries(block_lengths, implementation, ids_T.device),
    )
