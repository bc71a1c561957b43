"""What of PEFT's LoRA config is understood, and the refusal of all else by name.

PEFT passes over what it does not know, and its other kinds of LoRA change the base's weights as they load. A config may ask
only for plain LoRA on linear layers: for these `multi_lora`, PEFT and vLLM do the same.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from raystyle import adapters
from raystyle.errors import ModelError

MAX_RANK = 1024  # twice vLLM's
# PEFT takes a pattern's key for a regular expression, and some can stall it: names alone are let through.
_MODULE = re.compile(r"\^?[\w.-]{1,200}")
RESAVE = "save the adapter again with PEFT"
TRAIN = "train plain LoRA, or merge the adapter into its base and use that"


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def _is_positive(value: object) -> bool:
    return _is_number(value) and value > 0  # type: ignore[operator]


def _is_rank(value: object) -> bool:
    return type(value) is int and 0 < value <= MAX_RANK


def _is_flag(value: object) -> bool:
    return value is None or isinstance(value, bool)


def _is_text(value: object) -> bool:
    return value is None or isinstance(value, str)


def _asks_for_nothing(value: object) -> bool:
    return value in (None, False, "", [], {})


def _are_modules(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) and _MODULE.fullmatch(name) for name in value)


def _maps(is_right: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: (
        not value
        or (isinstance(value, dict) and all(_MODULE.fullmatch(key) and is_right(inner) for key, inner in value.items()))
    )


# What is understood. A field that is not here must have a value that asks for nothing: null, false, or empty.
_UNDERSTOOD: dict[str, Callable[[object], bool]] = {
    "r": _is_rank,
    "lora_alpha": _is_positive,
    "rank_pattern": _maps(_is_rank),
    "alpha_pattern": _maps(_is_positive),
    "use_rslora": _is_flag,
    "target_modules": lambda value: value == "all-linear" or _are_modules(value),
    "exclude_modules": lambda value: not value or _are_modules(value),
    "layers_to_transform": lambda value: value is None or type(value) is int or _is_list_of_numbers(value),
    "layers_pattern": lambda value: not value or _are_modules([value] if isinstance(value, str) else value),
    "bias": lambda value: value == "none",
    # How training began. Other ways than these change the base's weights when the adapter is loaded.
    "init_lora_weights": lambda value: value is None or isinstance(value, bool) or value == "gaussian",
    # Of no effect here: training only, or where the adapter comes from, which nothing is loaded from.
    "lora_dropout": _is_number,
    "inference_mode": _is_flag,
    "base_model_name_or_path": _is_text,
    "revision": _is_text,
    "peft_version": _is_text,
    "task_type": lambda value: value in (None, "CAUSAL_LM"),
    "auto_mapping": lambda value: value is None or isinstance(value, dict),
    "megatron_core": lambda value: value in (None, "megatron.core"),
    "qalora_group_size": _is_number,
}


def _is_list_of_numbers(value: object) -> bool:
    return isinstance(value, list) and all(type(number) is int for number in value)


def is_understood(name: str, value: object) -> bool:
    """Whether a field of PEFT's config has a value that `multi_lora`, and so serving and `raystyle sample`, computes."""
    return _UNDERSTOOD.get(name, _asks_for_nothing)(value)


def check_config(config: Mapping[str, Any]) -> None:
    """Refuse a config that asks for anything but plain LoRA on linear layers, by the field's name."""
    if config.get("peft_type") != "LORA":
        raise ModelError(
            f"{adapters.CONFIG} is of type {config.get('peft_type')!r:.40}, and only LORA is understood\nhint: {TRAIN}"
        )
    for name in ("r", "lora_alpha", "target_modules"):
        if name not in config:
            raise ModelError(f"{adapters.CONFIG} has no `{name}`\nhint: {RESAVE}")
    for name, value in config.items():
        if name != "peft_type" and not is_understood(name, value):
            shown = json.dumps(value, ensure_ascii=False)
            what = (
                f"{adapters.CONFIG} has `{name[:100]}` {shown[:80]}{'…' * (len(shown) > 80)}, which is not understood"
            )
            if name == "auto_map":
                what = f"{adapters.CONFIG} names Python code to run (`auto_map`)"
            raise ModelError(f"{what}\nhint: {TRAIN}")
