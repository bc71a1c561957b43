"""DeepSpeed: its configuration, and its sharded optimizer states to and from checkpoints that know no workers.

DeepSpeed keeps its own checkpoints as one pickle per worker. These functions gather each parameter's optimizer state
whole instead, and give it back, so that any number of workers may continue a checkpoint, under DDP or any ZeRO stage.
In bf16 DeepSpeed also has fp32 master weights, which are kept beside it for DeepSpeed to continue from.

ZeRO-1 and 2 shard what LoRA adds, which is little. ZeRO-3 also shards the frozen base, and gathers it layer by layer in each
pass: for a base that does not fit on one device.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from raystyle import storage
from raystyle.errors import ConfigError

_CPU = {"device": "cpu", "pin_memory": True}
# DeepSpeed's `zero_optimization` of each preset. Offloading keeps Adam's states, and under ZeRO-3 the base too, in the CPU's
# memory; the optimizer stays torch's, for its states are what checkpoints hold.
PRESETS: dict[str, dict[str, Any]] = {
    "zero1": {"stage": 1},
    "zero2": {"stage": 2},
    "zero3": {"stage": 3},
    "zero2_offload": {"stage": 2, "offload_optimizer": _CPU},
    "zero3_offload": {"stage": 3, "offload_optimizer": _CPU, "offload_param": _CPU},
}
_STAGE_3 = ("reduce_bucket_size", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold")
# Beside Adam's moments: the fp32 weights that DeepSpeed updates while the model itself holds bf16 copies.
MASTER = "fp32"


def deepspeed_config(deepspeed: str | None) -> dict[str, Any] | None:
    """DeepSpeed's configuration for a preset's name or a JSON file; Hugging Face fills in what is `auto`.

    Raises `ConfigError` for a file that is not there, or whose runs could not be continued.
    """
    if deepspeed is None:
        return None
    if deepspeed in PRESETS:
        zero = PRESETS[deepspeed] | {"overlap_comm": False, "contiguous_gradients": True}
        if zero["stage"] == 3:
            zero |= dict.fromkeys(_STAGE_3, "auto")
        return {
            "zero_optimization": zero,
            "bf16": {"enabled": "auto"},
            "gradient_clipping": "auto",
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
            "train_batch_size": "auto",
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        }
    if not os.path.isfile(deepspeed):
        raise ConfigError(f"`deepspeed` is `{deepspeed}`\nhint: use {', '.join(PRESETS)}, or a JSON file that exists")
    loaded: dict[str, Any] = storage.read_json(deepspeed)
    if own := {"optimizer", "scheduler"} & set(loaded):
        raise ConfigError(
            f"`deepspeed` file `{deepspeed}` sets its own {' and '.join(sorted(own))}, which checkpoints cannot continue\n"
            "hint: leave them out; `learning_rate`, `lr_scheduler_type` and the like are flags"
        )
    zero = loaded.get("zero_optimization", {})
    stage, sums = zero.get("stage"), loaded.get("data_types", {}).get("grad_accum_dtype")
    for is_so, what in (
        (not stage, "no `zero_optimization` with a `stage` of 1, 2 or 3"),
        (stage == 1 and sums == "fp32", "`grad_accum_dtype` fp32, for which DeepSpeed has another kind of optimizer"),
        (
            zero.get("compute_grad_norm") is False,
            "`compute_grad_norm` false, so that nobody sees a gradient that breaks",
        ),
    ):
        if is_so:
            raise ConfigError(
                f"`deepspeed` file `{deepspeed}` has {what}, and could not be continued or judged\n"
                f"hint: use a preset ({', '.join(PRESETS)}), or mend the file"
            )
    if "nvme" in (zero.get(name, {}).get("device") for name in ("offload_optimizer", "offload_param")):
        raise ConfigError(
            f"`deepspeed` file `{deepspeed}` offloads to NVMe, from where checkpoints cannot be continued\n"
            'hint: use `"device": "cpu"`, or the preset `zero3_offload`'
        )
    # DeepSpeed's own Adam for the CPU would be compiled first, and is no other Adam.
    return loaded | {"zero_force_ds_cpu_optimizer": False}


def join() -> None:
    """Let DeepSpeed know the workers' process group now: ZeRO-3 shards a model while it is loaded."""
    import torch

    if torch.distributed.is_initialized():
        from deepspeed import comm

        comm.init_distributed(torch.distributed.get_backend(), verbose=False)


def is_base_sharded(model: Any) -> bool:
    """Whether ZeRO-3 has the model in shards: then no worker can run it alone, token by token."""
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())


@contextmanager
def whole_adapter(model: Any) -> Iterator[None]:
    """All of what is trained on every worker while the block lasts, where ZeRO-3 has it in shards. All must enter it."""
    shards = [parameter for parameter in model.parameters() if parameter.requires_grad and hasattr(parameter, "ds_id")]
    if not shards:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(shards):
        yield


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

    [done] = {int(value) for name, value in tensors.items() if name.endswith("|step")}
    zero, inner = _unwrapped(optimizer)
    for flat in getattr(zero, _FLAT_3 if _is_stage_3(zero) else _FLAT):
        moments = {key: torch.zeros_like(flat) for key in ("exp_avg", "exp_avg_sq")}
        # Fused AdamW takes the step from where the weights are, and does not look whether it is there.
        inner.state[flat] = {"step": torch.tensor(float(done), device=flat.device), **moments}
    if not _is_stage_3(zero):
        zero._lazy_init_hp_params_optimizer_state()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            for key in ("exp_avg", "exp_avg_sq"):
                _set(parameter, tensors[f"{name}|{key}"], key)
            if (master := tensors.get(f"{name}|{MASTER}")) is not None or not _is_stage_3(zero):
                _set(parameter, parameter.detach().float() if master is None else master, None)


def _set(parameter: Any, value: Any, key: str | None) -> None:
    """Write a worker's shard of an optimizer state (`key` None: of the fp32 weight), given the whole of it."""
    from deepspeed import comm, utils
    from torch.nn.functional import pad

    value = value.to(parameter.device)
    if not hasattr(parameter, "ds_id"):
        if key is None:
            utils.safe_set_full_fp32_param(parameter, value)
        else:
            utils.safe_set_full_optimizer_state(parameter, value, key)
        return
    # ZeRO-3's own setter of whole values fails where the workers' number does not divide them: the last shard is padded.
    size, rank, count = parameter.partition_numel(), comm.get_rank(), comm.get_world_size()
    shard = pad(value.flatten(), (0, size * count - value.numel())).narrow(0, size * rank, size)
    if key is None:
        utils.safe_set_local_fp32_param(parameter, shard)
    else:
        utils.safe_set_local_optimizer_state(parameter, shard, key)


# Where DeepSpeed's ZeRO optimizers keep a worker's share of the fp32 weights.
_FLAT, _FLAT_3 = "single_partition_of_fp32_groups", "fp32_partitioned_groups_flat"


def _is_stage_3(zero: Any) -> bool:
    return hasattr(zero, _FLAT_3)


def _unwrapped(optimizer: Any) -> tuple[Any, Any]:
    """DeepSpeed's ZeRO optimizer inside accelerate's wrapper, and the torch optimizer inside that."""
    zero = optimizer
    while not (hasattr(zero, _FLAT) or hasattr(zero, _FLAT_3)):
        zero = zero.optimizer
    return zero, zero.optimizer
