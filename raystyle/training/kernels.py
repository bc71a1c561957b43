"""Liger's Triton kernels for a base model's norms, rotary positions and SwiGLU: each is one pass over memory, not several."""

import importlib.util
from typing import Any

from raystyle.errors import ConfigError

# The loss is ours (`loss.py`): it needs the model's own forward.
OURS = {"cross_entropy": False, "fused_linear_cross_entropy": False}


def apply_liger(model: Any, wanted: bool | None, use_gpu: bool) -> bool:
    """Put Liger's kernels into a base model where they can run; returns whether it has them.

    None wants them where they are: on a GPU, with `liger-kernel` installed and the model's kind known to it. Raises
    `ConfigError` where they are asked for and cannot be had.
    """
    if wanted is False:
        return False
    lacks = [
        reason
        for lacking, reason in [
            (not use_gpu, "a GPU"),
            (importlib.util.find_spec("liger_kernel") is None, "the package liger-kernel on the workers"),
        ]
        if lacking
    ]
    if not lacks:
        from liger_kernel.transformers import _apply_liger_kernel_to_instance
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

        kind = model.config.model_type
        if kind in MODEL_TYPE_TO_APPLY_LIGER_FN:
            _apply_liger_kernel_to_instance(model=model, **OURS)
            return True
        lacks.append(f"a model that Liger knows, which `{kind}` is not")
    if wanted:
        raise ConfigError(f"`use_liger_kernel` needs {' and '.join(lacks)}\nhint: leave it out to take what is there")
    return False
