"""DeepSpeed: its configuration, and its sharded optimizer states to and from checkpoints that know no workers.

DeepSpeed keeps its own checkpoints as one pickle per worker. These functions gather each parameter's optimizer state
whole instead, and give it back, so that any number of workers may continue a checkpoint, under DDP, ZeRO-1 or ZeRO-2.
In bf16 DeepSpeed also has fp32 master weights, which are kept beside it for DeepSpeed to continue from.
"""

import os
from typing import Any

from raystyle import storage
from raystyle.errors import ConfigError

STAGES = {"zero1": 1, "zero2": 2}
# Beside Adam's moments: the fp32 weights that DeepSpeed updates while the model itself holds bf16 copies.
MASTER = "fp32"


def deepspeed_config(deepspeed: str | None) -> dict[str, Any] | None:
    """DeepSpeed's configuration for a preset's name or a JSON file; Hugging Face fills in what is `auto`.

    Raises `ConfigError` for a file that is not there, and for stage 3: it gathers the whole frozen base in every pass
    to save memory that LoRA does not use.
    """
    if deepspeed is None:
        return None
    if deepspeed in STAGES:
        return {
            "zero_optimization": {"stage": STAGES[deepspeed], "overlap_comm": False, "contiguous_gradients": True},
            "bf16": {"enabled": "auto"},
            "gradient_clipping": "auto",
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
            "train_batch_size": "auto",
            "zero_allow_untested_optimizer": True,
        }
    if not os.path.isfile(deepspeed):
        raise ConfigError(f"`deepspeed` is `{deepspeed}`\nhint: use {' or '.join(STAGES)}, or a JSON file that exists")
    loaded: dict[str, Any] = storage.read_json(deepspeed)
    stage = loaded.get("zero_optimization", {}).get("stage", 0)
    if stage == 3:
        raise ConfigError(f"`deepspeed` file `{deepspeed}` asks for ZeRO-3, which is not supported\nhint: use `zero2`")
    if own := {"optimizer", "scheduler"} & set(loaded):
        raise ConfigError(
            f"`deepspeed` file `{deepspeed}` sets its own {' and '.join(sorted(own))}, which checkpoints cannot continue\n"
            "hint: leave them out; `learning_rate`, `lr_scheduler_type` and the like are flags"
        )
    return loaded


def gather_optimizer(model: Any, optimizer: Any) -> dict[str, Any]:
    """`parameter name|state name` -> whole tensor on the CPU. Every worker must call it: the shards are exchanged."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    _, inner = _unwrapped(optimizer)
    step = next(iter(inner.state.values()))["step"]
    tensors = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            for key in ("exp_avg", "exp_avg_sq"):
                tensors[f"{name}|{key}"] = safe_get_full_optimizer_state(parameter, key)
            tensors[f"{name}|{MASTER}"] = safe_get_full_fp32_param(parameter)
            tensors[f"{name}|step"] = step
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def scatter_optimizer(tensors: dict[str, Any], model: Any, optimizer: Any) -> None:
    """Give each worker its shard of what `gather_optimizer`, or a DDP run, saved.

    Before its first step DeepSpeed has no optimizer states to write into, and its own loader reads pickles; so zeros are
    laid out as the first step would, and linked to the parameters by the function that the first step calls.
    """
    import torch
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    [done] = {int(value) for name, value in tensors.items() if name.endswith("|step")}
    zero, inner = _unwrapped(optimizer)
    for flat in zero.single_partition_of_fp32_groups:
        moments = {key: torch.zeros_like(flat) for key in ("exp_avg", "exp_avg_sq")}
        inner.state[flat] = {"step": torch.tensor(float(done)), **moments}
    zero._lazy_init_hp_params_optimizer_state()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            for key in ("exp_avg", "exp_avg_sq"):
                safe_set_full_optimizer_state(parameter, tensors[f"{name}|{key}"].to(parameter.device), key)
            master = tensors.get(f"{name}|{MASTER}", parameter.detach().float())
            safe_set_full_fp32_param(parameter, master.to(parameter.device))


def _unwrapped(optimizer: Any) -> tuple[Any, Any]:
    """DeepSpeed's ZeRO optimizer inside accelerate's wrapper, and the torch optimizer inside that."""
    zero = optimizer
    while not hasattr(zero, "single_partition_of_fp32_groups"):
        zero = zero.optimizer
    return zero, zero.optimizer
