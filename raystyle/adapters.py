"""Read, write, verify and fingerprint adapters: LoRA weights and config in PEFT's format, safetensors only."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from raystyle import storage
from raystyle.errors import ModelError

if TYPE_CHECKING:
    from peft import PeftModel

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
ABOUT = "raystyle_adapter.json"


Change = Callable[[dict[str, Any], dict[str, Any]], tuple[dict[str, Any], dict[str, Any]]]


def save(model: "PeftModel", directory: str, about: dict[str, Any], change: Change | None = None) -> None:
    """Write a model's adapter to a local directory, with what raystyle knows about it in `raystyle_adapter.json`.

    `about` says where it comes from (base model, data digest, step). Embeddings are left out unless they are trained.
    `change` makes other tensors, by name, and another PEFT config of the model's own.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    os.makedirs(directory, exist_ok=True)
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    config = model.peft_config["default"].to_dict() | {"inference_mode": True}
    if change:
        state, config = change(state, config)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(tensors, os.path.join(directory, WEIGHTS), metadata={"format": "pt"})
    plain = {k: sorted(v) if isinstance(v, set) else v for k, v in config.items()}
    with open(os.path.join(directory, CONFIG), "w", encoding="utf-8") as file:
        json.dump(plain, file, ensure_ascii=False, indent=1, sort_keys=True, default=_enum_value)
    storage.write_json(os.path.join(directory, ABOUT), about | {"fingerprint": fingerprint(directory)})


def _enum_value(value: Any) -> Any:
    """PEFT's config holds enums (`PeftType.LORA`)."""
    return value.value


def fingerprint(directory: str) -> str:
    """sha256 over an adapter's weights and config files: equal means the same adapter."""
    digest = hashlib.sha256()
    for name in (CONFIG, WEIGHTS):
        with open(os.path.join(directory, name), "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def verify(directory: str, layers: dict[str, int] | None = None, *, may_be_zero: bool = False) -> dict[str, Any]:
    """Re-open an adapter and check that it is one that does something; returns what `raystyle_adapter.json` says.

    `layers` maps each target module's name to how many layers of the base have it. Raises `ModelError` where a file is
    missing or not safetensors, a tensor is not finite, a target lacks its pair of matrices, or all of B is zero,
    unless it `may_be_zero`.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    broken: list[str] = []
    is_zero = True
    try:
        with open(os.path.join(directory, CONFIG), encoding="utf-8") as file:
            peft_type = json.load(file).get("peft_type")
        with safe_open(os.path.join(directory, WEIGHTS), framework="pt") as stored:
            names = list(stored.keys())
            for name in names:  # one at a time, for together they may be more than there is memory for
                tensor = stored.get_tensor(name)
                # The least and greatest of values are not finite where one of them is not, and far quicker to find than each.
                if not torch.stack(torch.aminmax(tensor)).isfinite().all():
                    broken.append(name)
                is_zero = is_zero and not ("lora_B" in name and tensor.any())
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"the adapter `{directory}` cannot be opened: {error}") from error
    if peft_type != "LORA":
        raise ModelError(f"the adapter `{directory}` is a `{peft_type}`, not a LoRA")
    if broken:
        raise ModelError(
            f"the adapter `{directory}` has values that are not finite, in `{broken[0]}` and {len(broken) - 1} more"
        )
    for module, count in (layers or {}).items():
        for half in ("lora_A", "lora_B"):
            found = sum(f".{module}.{half}." in name for name in names)
            if found != count:
                raise ModelError(f"the adapter `{directory}` has {half} for {found} of {count} `{module}` layers")
    if is_zero and not may_be_zero:
        raise ModelError(f"the adapter `{directory}` is all zero: it would change nothing")
    return about(directory)


def about(directory: str) -> dict[str, Any]:
    """What a local adapter's `raystyle_adapter.json` says; nothing where there is none. Raises `StorageError`."""
    path = os.path.join(directory, ABOUT)
    return storage.read_json(path) if os.path.exists(path) else {}


def find(path: str) -> str:
    """The adapter that a path means: itself, a run's `adapter/`, or the newest checkpoint of an unfinished run.

    Raises `ModelError` where there is none.
    """
    # A run's own adapter is whole when ABOUT is there, which is written last, and so is a checkpoint by its marker.
    for place, last_file in ((path, CONFIG), (storage.join(path, "adapter"), ABOUT)):
        if storage.exists(storage.join(place, last_file)):
            return place
    if not storage.exists(path):
        raise ModelError(f"no adapter at `{path}`: it does not exist\nhint: give an adapter, a run or a checkpoint")
    checkpoints = storage.join(path, "checkpoints")
    if storage.exists(checkpoints):
        found = [
            file.uri for file in storage.list_files(checkpoints) if storage.basename(file.uri) == "checkpoint.json"
        ]
        if found:
            return max(found).rsplit("/", 1)[0]
    raise ModelError(
        f"no adapter at `{path}`: neither it nor `adapter/` in it has {CONFIG}\nhint: has training finished?"
    )


@contextmanager
def opened(path: str) -> Iterator[str]:
    """A verified local directory of the adapter that `path` means, for as long as the block lasts."""
    place = find(path)
    with storage.local_copy(place, (CONFIG, WEIGHTS, ABOUT)) as directory:
        present = set(os.listdir(directory))
        if WEIGHTS not in present:
            raise ModelError(
                f"the adapter `{place}` has no {WEIGHTS}\nhint: raystyle opens safetensors only, never pickle"
            )
        verify(directory)
        yield directory
