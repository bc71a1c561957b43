"""Training that continues from an adapter: a second stage, or more text.

The adapter's rank, alpha, targets and kind are taken, and settings that say otherwise are refused. What it is, by its
digest, becomes part of what the new run is: the same command with another adapter is another run.
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from raystyle import adapters, models, storage, tensors
from raystyle.config import TrainConfig
from raystyle.errors import ConfigError, ModelError
from raystyle.training import lora

# Settings that are the adapter's, and PEFT's names for them. Dropout is not: it acts in training alone.
TAKEN = {
    "lora_r": "r",
    "lora_alpha": "lora_alpha",
    "lora_target_modules": "target_modules",
    "lora_target_parameters": "target_parameters",
    "use_rslora": "use_rslora",
    "use_dora": "use_dora",
    "modules_to_save": "modules_to_save",
}
# Fields of PEFT's config that do not change what an adapter computes.
PASSED_OVER = (
    "peft_type",
    "task_type",
    "auto_mapping",
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "lora_dropout",
    "megatron_core",
    "qalora_group_size",
)
PLAIN_VALUES: dict[str, tuple[Any, ...]] = {"bias": ("none",), "init_lora_weights": (True, "gaussian")}
HINT = "hint: merge it into its base (`raystyle export`), and train a new adapter on that"


def begin(config: TrainConfig, shapes: models.Shapes) -> tuple[TrainConfig, str | None]:
    """The config with what it takes from the adapter at `lora_path`, and that adapter's digest; unchanged without one.

    Raises `ModelError` for an adapter of another base or of a kind that cannot be continued, `ConfigError` for a setting
    that contradicts it.
    """
    if config.lora_path is None:
        return config, None
    with adapters.opened(config.lora_path) as directory:
        about_path = os.path.join(directory, adapters.ABOUT)
        about = storage.read_json(about_path) if os.path.exists(about_path) else {}
        if models.is_same_base(about.get("base_identity", shapes.identity), shapes.identity) is False:
            raise ModelError(
                f"the adapter `{config.lora_path}` was trained on the base {about['base_identity']}, and "
                f"`model_name_or_path` is {shapes.identity}\nhint: give the base it was trained on"
            )
        linear = {layer.name for layer in shapes.linears if not layer.is_head}
        continued = taken(config, storage.read_json(os.path.join(directory, adapters.CONFIG)), linear)
        _check_places(continued, directory)
        return continued, adapters.fingerprint(directory)


def taken(config: TrainConfig, adapter: Mapping[str, Any], linear: set[str]) -> TrainConfig:
    """The config with an adapter's own rank, alpha, targets and kind, by PEFT's config of it.

    `linear` names what `all-linear` means for the base.
    """
    for name, value in adapter.items():
        is_plain = value in PLAIN_VALUES.get(name, ()) or value in (None, False, "", [], {})
        if name not in (*PASSED_OVER, *TAKEN.values()) and not is_plain:
            raise ModelError(
                f"the adapter `{config.lora_path}` has `{name}` {value!r:.80}, and cannot be continued\n{HINT}"
            )
    values: dict[str, Any] = {}
    for ours, theirs in TAKEN.items():
        value = adapter.get(theirs)
        if ours == "lora_target_modules" and isinstance(value, str) and value != "all-linear":
            raise ModelError(
                f"the adapter `{config.lora_path}` has a pattern for its targets, `{value:.80}`, and cannot be continued\n{HINT}"
            )
        if ours.startswith("use_"):
            value = bool(value)
        elif ours in ("lora_r", "lora_alpha"):
            if value is None or value != int(value):
                raise ModelError(
                    f"the adapter `{config.lora_path}` has `{theirs}` {value}, and only whole numbers can be continued\n{HINT}"
                )
            value = int(value)
        else:
            value = (value,) if isinstance(value, str) else tuple(sorted(value or ()))
        asked = getattr(config, ours)
        if ours in config.given and _plain(asked, linear) != _plain(value, linear):
            raise ConfigError(
                f"`{ours}` is {_shown(asked)}, and the adapter `{config.lora_path}` has {_shown(value)}\n"
                "hint: leave it out; an adapter is continued as it is"
            )
        values[ours] = value
    return dataclasses.replace(config, **values)


def _plain(value: Any, linear: set[str]) -> Any:
    return sorted(linear if value == ("all-linear",) else value) if isinstance(value, tuple) else value


def _shown(value: Any) -> str:
    return " ".join(value) or "none" if isinstance(value, tuple) else str(value).lower()


def _check_places(config: TrainConfig, directory: str) -> None:
    """Lay the adapter out on the base without loading either, and compare names and shapes of its tensors."""
    from peft import get_peft_model_state_dict

    laid_out = lora.attach(models.laid_out(config.model_name_or_path, config.trust_remote_code), config)
    places = {
        name: tuple(tensor.shape)
        for name, tensor in get_peft_model_state_dict(laid_out, save_embedding_layers=False).items()
    }
    with open(os.path.join(directory, adapters.WEIGHTS), "rb") as file:
        stored = {tensor.name: tensor.shape for tensor in tensors.read_header(file)}
    if stored != places:
        odd = min(name for name in {*stored, *places} if stored.get(name) != places.get(name))
        raise ModelError(
            f"the adapter `{config.lora_path}` does not fit the base model: `{odd}` is {stored.get(odd, 'not there')}, and its "
            f"place is {places.get(odd, 'not there')}\nhint: give the base it was trained on"
        )


def take_weights(config: TrainConfig, digest: str | None, model: Any) -> None:
    """Give a freshly attached model the weights of the adapter it continues from, if it does.

    Raises `ModelError` where that is another adapter now than when the run was planned.
    """
    if config.lora_path is None:
        return
    with adapters.opened(config.lora_path) as directory:
        if adapters.fingerprint(directory) != digest:
            raise ModelError(
                f"the adapter at `{config.lora_path}` is another one than when this run was planned\n"
                "hint: give an adapter or a checkpoint that nothing writes to"
            )
        lora.load(directory, model)
