"""Whether all workers do the same work: with other packages, another base or other data on one machine they would train on
without a word, towards something that nobody asked for.
"""

from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import torch.distributed

from raystyle.errors import ConfigError
from raystyle.training import sharding
from raystyle.training.trainer import Task

PACKAGES = ("torch", "transformers", "peft", "accelerate")
# Where a machine has things is its own affair: what lies there is compared.
PLACES = ("model_name_or_path", "tokenizer_name_or_path", "dataset_path", "output_dir", "lora_path", "deepspeed")


def check(base_identity: Any, task: Task) -> None:
    """Compare what decides the weights over all workers; each must call it. Raises `ConfigError`, on all of them."""
    if not torch.distributed.is_initialized():
        return
    own = {f"`{name}`": value for name, value in task.config.items() if name not in PLACES}
    own |= {f"the package {name}": metadata.version(name) for name in PACKAGES}
    own |= {
        "`deepspeed`": sharding.deepspeed_config(task.config["deepspeed"]),
        "the base": base_identity,
        "the rows": task.manifest["digest"],
        "the adapter at `lora_path`": task.start_digest,
    }
    found: list[dict[str, Any]] = [own] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, own)
    if differences := apart(found):
        raise ConfigError(
            f"the workers differ: {'; '.join(differences)}\nhint: give all machines the same packages, files and command"
        )


def apart(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is not the same of all workers as of the first one, with both values, by whoever differs first."""
    told = []
    for name, value in found[0].items():
        other = next((rank for rank, theirs in enumerate(found) if theirs.get(name) != value), None)
        if other is not None:
            told.append(f"{name} is {value} for worker 0 and {found[other].get(name)} for worker {other}")
    return told
