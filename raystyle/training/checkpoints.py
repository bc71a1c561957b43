"""Save, verify and find checkpoints: adapter, optimizer and position, in safetensors and JSON only.

No random state is stored: dropout is seeded by each micro-batch's place in the run (`trainer.py`), and the learning rate
is a function of the step, so position implies both.
Nothing in a checkpoint depends on how many workers wrote it. `checkpoint.json` holds every other file's digest and is
what makes a directory a checkpoint: one that is missing files, or holds part of one, is not taken.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from typing import Any

from raystyle import storage
from raystyle.training import lora

MARKER = "checkpoint.json"
OPTIMIZER = "optimizer.safetensors"
TRAINER_STATE = "trainer_state.json"
CURSOR = "stream.json"  # where rows are streamed


def name_of(step: int) -> str:
    return f"step-{step:08d}"


def step_of(uri: str) -> int:
    """The step that a checkpoint's name says."""
    return int(storage.basename(uri).removeprefix("step-"))


def save(
    directory: str,
    step: int,
    model: Any,
    optimizer_tensors: dict[str, Any],
    trainer_state: Any,
    about: dict[str, Any],
) -> None:
    """Write a checkpoint to a local directory; `checkpoint.json` comes last."""
    from safetensors.torch import save_file

    lora.save(model, directory, about | {"step": step})
    save_file(optimizer_tensors, os.path.join(directory, OPTIMIZER))
    trainer_state.save_to_json(os.path.join(directory, TRAINER_STATE))
    digests = {name: _digest(os.path.join(directory, name)) for name in sorted(os.listdir(directory)) if name != MARKER}
    storage.write_json(os.path.join(directory, MARKER), {"step": step, "sha256": digests})


def upload(directory: str, uri: str) -> None:
    """Copy a saved checkpoint to storage; `checkpoint.json` comes last there, too."""
    for name in sorted(os.listdir(directory), key=lambda name: (name == MARKER, name)):
        with (
            open(os.path.join(directory, name), "rb") as source,
            storage.open_output(storage.join(uri, name)) as target,
        ):
            shutil.copyfileobj(source, target, storage.CHUNK)


def _digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def collect_optimizer(model: Any, optimizer: Any) -> dict[str, Any]:
    """`parameter name|state name` -> tensor, for every trained parameter that the optimizer has state for."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"{names[id(parameter)]}|{key}": value.detach().cpu().contiguous()
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def read_optimizer(directory: str) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(os.path.join(directory, OPTIMIZER))


def restore_optimizer(tensors: dict[str, Any], model: Any, optimizer: Any) -> None:
    """Give the optimizer the state of a checkpoint, by parameter name, on each parameter's device."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    known = {key for state in ("exp_avg", "exp_avg_sq", "step") for key in tensors if key.endswith(f"|{state}")}
    states: dict[str, dict[str, Any]] = {}
    for key in known:
        name, _, state_name = key.partition("|")
        states.setdefault(name, {})[state_name] = tensors[key]
    order = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
    packed = {index: states[name] for index, name in enumerate(order)}
    optimizer.load_state_dict({"state": packed, "param_groups": optimizer.state_dict()["param_groups"]})


def restore_schedule(step: int, scheduler: Any, optimizer: Any) -> None:
    """Put a learning-rate schedule to where it is after `step` steps.

    Every schedule that `config.Schedule` admits is a function of the step alone, so nothing of it is stored, and an
    optimizer whose parameters are grouped otherwise (DeepSpeed drops empty groups) gets the same rates.
    """
    schedule = getattr(scheduler, "scheduler", scheduler)  # accelerate wraps it
    schedule.last_epoch, schedule._step_count = step, step + 1
    rates = [base * factor(step) for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
    schedule._last_lr = rates
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def write_cursor(directory: str, cursor: Sequence[int]) -> None:
    """Into a checkpoint that is being written."""
    storage.write_json(storage.join(directory, CURSOR), {"shard": cursor[0], "row": cursor[1]})


def read_cursor(checkpoint: str | None) -> tuple[int, int]:
    """The shard and row behind the last row of a checkpoint; the stream's beginning where there is none."""
    if checkpoint is None:
        return 0, 0
    found = storage.read_json(storage.join(checkpoint, CURSOR))
    return found["shard"], found["row"]


def is_good(uri: str) -> bool:
    """Whether every file that `checkpoint.json` names is there with its digest.

    Raises `StorageError` where storage does not answer, which says nothing of the checkpoint: it might be the newest good one.
    """
    if not storage.exists(uri):
        return False
    present = {storage.basename(file.uri) for file in storage.list_files(uri, hidden=True)}
    if MARKER not in present:
        return False
    try:
        digests = dict(json.loads(storage.read_bytes(storage.join(uri, MARKER)))["sha256"])
    except (ValueError, KeyError, TypeError):
        return False
    return digests.keys() <= present and all(
        _sha256(storage.join(uri, name)) == digest for name, digest in digests.items()
    )


def _sha256(uri: str) -> str:
    with storage.open_input(uri) as file:
        return storage.sha256(iter(lambda: file.read(storage.CHUNK), b""))


def all_steps(checkpoints_dir: str) -> dict[int, str]:
    """Step -> URI of every directory below that is named like a checkpoint, complete or not."""
    if not storage.exists(checkpoints_dir):
        return {}
    names = {file.uri[len(checkpoints_dir) :].strip("/").split("/")[0] for file in storage.list_files(checkpoints_dir)}
    return {
        step_of(name): storage.join(checkpoints_dir, name)
        for name in sorted(names)
        if name.startswith("step-") and name.removeprefix("step-").isdigit()
    }


def last_good(checkpoints_dir: str) -> tuple[str | None, list[str]]:
    """The newest checkpoint that verifies (None: there is none), and the newer ones that do not. Raises `StorageError`."""
    torn: list[str] = []
    for _, uri in sorted(all_steps(checkpoints_dir).items(), reverse=True):
        if is_good(uri):
            return uri, torn
        torn.append(uri)
    return None, torn


def prune(checkpoints_dir: str, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints."""
    steps = all_steps(checkpoints_dir)
    for step in sorted(steps)[:-keep]:
        storage.delete(steps[step])
