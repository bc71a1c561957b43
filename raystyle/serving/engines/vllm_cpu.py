"""A vLLM plugin that keeps adapters off the base's rows on a CPU.

vLLM marks a row without an adapter by slot -1. Its GPU kernels skip such rows; its CPU ones use the number as an index, so
that the base's rows get the adapter of the last slot whenever a batch has an adapter's row too (vLLM 0.29 and 0.32; pull
requests 48421 and 49656 there mend it). Every such product starts in `bgmv_shrink`; made zero there, the rest adds zero.

vLLM calls `mend` in each of its processes, by the entry point in pyproject.toml.
"""

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch


def mend() -> None:
    """Give rows of slot -1 an update of zero. Does nothing on a GPU or when it is done already."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.lora.ops.torch_ops import lora_ops
    from vllm.lora.punica_wrapper import punica_cpu

    if not hasattr(lora_ops.bgmv_shrink, "__wrapped__"):
        # Prompts come through lora_ops, single tokens through the name that punica_cpu imported.
        lora_ops.bgmv_shrink = punica_cpu.bgmv_shrink = without_base_rows(lora_ops.bgmv_shrink)


def without_base_rows(bgmv_shrink: "Callable[..., None]") -> "Callable[..., None]":
    """vLLM's `bgmv_shrink`, with zeros in the rows whose slot is negative.

    B rows, R ranks, i input features.
    """

    @functools.wraps(bgmv_shrink)
    def shrink(
        inputs_Bi: "torch.Tensor",
        weights: "torch.Tensor",
        output_BR: "torch.Tensor",
        slots_B: "torch.Tensor",
        scaling: float = 1.0,
    ) -> None:
        bgmv_shrink(inputs_Bi, weights, output_BR, slots_B.clamp(min=0), scaling)
        output_BR.masked_fill_((slots_B < 0)[:, None], 0)

    return shrink
