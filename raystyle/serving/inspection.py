"""What an adapter's files say of it, and the refusal of all that is not plain LoRA trained on this base.

A config may ask only for what is on the list of what is understood: PEFT and vLLM pass over what they do not know, and
PEFT's other kinds of LoRA change the base's weights as they load. A header must stand for pairs of matrices of the ranks
that the config says, before memory is set aside for any. Each refusal names the file, and the tensor or field.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, NamedTuple

from raystyle import adapters, models, tensors
from raystyle.errors import ModelError
from raystyle.serving.finding import Files

MAX_ADAPTER_BYTES = 8 << 30  # rank 256 on every linear layer of a 70B model in bfloat16 has 6.6 GB
MAX_JSON_BYTES = 1 << 20  # of a config; PEFT's own have about 1 kB
MAX_RANK = 1024  # twice vLLM's
DTYPE_BYTES = {"F16": 2, "BF16": 2, "F32": 4, "F64": 8}
# What loads code or pickles, in one library or another, when it lies beside an adapter.
UNSAFE = (".py", ".pyc", ".so", ".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")

_MATRIX = re.compile(r"base_model\.model\.([\w.-]{1,300})\.lora_([AB])\.weight")
# PEFT takes a pattern's key for a regular expression, and some can stall it: names alone are let through.
_MODULE = re.compile(r"\^?[\w.-]{1,200}")
_REMOVE = "remove it from the folder, and serve weights in safetensors only"
_RESAVE = "save the adapter again with PEFT"
_TRAIN = "train plain LoRA, or merge the adapter into its base and serve that"


class Base(NamedTuple):
    """What an adapter's base must be: as `models.identity` and `tokens.tokenizer_digest` put it."""

    identity: str
    tokenizer_digest: str


# ── the folder ──


def check_folder(files: Files) -> None:
    """Refuse a folder that lacks a file, has something else in its place, or holds pickles or code."""
    for name, entry in sorted(files.items()):
        if name.lower().endswith(UNSAFE) and entry.what != "folder":
            raise ModelError(f"{name} may hold code, and lies in the folder\nhint: {_REMOVE}")
    for name, limit in ((adapters.CONFIG, MAX_JSON_BYTES), (adapters.WEIGHTS, MAX_ADAPTER_BYTES)):
        if name not in files:
            raise ModelError(
                f"{name} is missing\nhint: a LoRA as PEFT saves it has {adapters.CONFIG} and {adapters.WEIGHTS}"
            )
        entry = files[name]
        if entry.what != "file":
            raise ModelError(f"{name} is a {entry.what}, and no file\nhint: put the file itself there")
        if entry.size > limit:
            raise ModelError(f"{name} has {entry.size} bytes, more than the {limit} that are read\nhint: {_TRAIN}")


def parse(name: str, data: bytes) -> dict[str, Any]:
    """A file that holds a JSON object. Raises `ModelError` for anything else."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ModelError(f"{name} is no JSON: {reason[:200]}\nhint: {_RESAVE}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{name} holds no JSON object\nhint: {_RESAVE}")
    return value


# ── the base ──


def check_base(about: Mapping[str, Any], base: Base, allow_unverified_base: bool) -> bool:
    """Whether an adapter says, in `raystyle_adapter.json`, that it was trained on this base and tokenizer.

    Raises `ModelError` where it says another one, and where it says none unless that is allowed.
    """
    theirs, tokenizer = about.get("base_identity"), about.get("tokenizer_digest")
    is_same = models.is_same_base(theirs, base.identity) if isinstance(theirs, str) else None
    if is_same is False:
        raise ModelError(
            f"it was trained on another base: `{theirs}`, and this is `{base.identity}`\nhint: serve it with its own base"
        )
    if tokenizer is not None and tokenizer != base.tokenizer_digest:
        raise ModelError(
            f"it was trained with another tokenizer: {str(tokenizer)[:12]}, and this is {base.tokenizer_digest[:12]}\n"
            "hint: serve it with its own (`--tokenizer_name_or_path`)"
        )
    if is_same and tokenizer is not None:
        return True
    if not allow_unverified_base:
        what = f"it was trained on `{theirs}`, which cannot be compared with `{base.identity}`"
        if theirs is None or tokenizer is None:
            what = f"it does not say which base it was trained on ({adapters.ABOUT} has no base_identity and tokenizer_digest)"
        raise ModelError(f"{what}\nhint: if you know that it is this one, `--allow_unverified_base` serves it, marked")
    return False


# ── the config ──


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


def check_config(config: Mapping[str, Any]) -> None:
    """Refuse a config that asks for anything but plain LoRA on linear layers, by the field's name."""
    if config.get("peft_type") != "LORA":
        raise ModelError(
            f"{adapters.CONFIG} is of type {config.get('peft_type')!r:.40}, and only LORA is served\nhint: {_TRAIN}"
        )
    for name in ("r", "lora_alpha", "target_modules"):
        if name not in config:
            raise ModelError(f"{adapters.CONFIG} has no `{name}`\nhint: {_RESAVE}")
    for name, value in config.items():
        is_right = _UNDERSTOOD.get(name, _asks_for_nothing)
        if name != "peft_type" and not is_right(value):
            shown = json.dumps(value, ensure_ascii=False)
            what = f"{adapters.CONFIG} has `{name[:100]}` {shown[:80]}{'…' * (len(shown) > 80)}, which is not served"
            if name == "auto_map":
                what = f"{adapters.CONFIG} names Python code to run (`auto_map`)"
            raise ModelError(f"{what}\nhint: {_TRAIN}")


# ── the weights ──


def check_weights(stream: BinaryIO, config: Mapping[str, Any]) -> None:
    """Refuse weights whose header does not stand for pairs of LoRA matrices, of the ranks that the config says."""
    try:
        stored = tensors.read_header(stream)
    except ModelError as error:
        raise ModelError(f"{adapters.WEIGHTS}: {error}\nhint: {_RESAVE}, or copy it again") from error
    pairs: dict[str, dict[str, tensors.Tensor]] = {}
    for tensor in stored:
        match = _MATRIX.fullmatch(tensor.name)
        if match is None:
            raise _refused(tensor.name, "is no LoRA matrix of a linear layer", _TRAIN)
        _check_size(tensor)
        pairs.setdefault(match[1], {})[match[2]] = tensor
    if not pairs:
        raise ModelError(f"{adapters.WEIGHTS} has no tensors\nhint: {_RESAVE}")
    for module, halves in pairs.items():
        if len(halves) < 2:
            [(half, tensor)] = halves.items()
            raise _refused(tensor.name, f"has no lora_{'B' if half == 'A' else 'A'} beside it", _RESAVE)
        expected = _of(config.get("rank_pattern") or {}, module, config["r"])
        found = halves["A"].shape[0], halves["B"].shape[1]
        if found != (expected, expected):
            what = f"has rank {found[0]}, its lora_B {found[1]}, and {adapters.CONFIG} says {expected}"
            raise _refused(halves["A"].name, what, _RESAVE)
    highest = max(halves["A"].shape[0] for halves in pairs.values())
    declared = max([config["r"], *(config.get("rank_pattern") or {}).values()])
    if declared > highest:  # memory is set aside for it, on every module named
        raise ModelError(
            f"{adapters.CONFIG} says rank {declared}, and the highest in {adapters.WEIGHTS} is {highest}\nhint: {_RESAVE}"
        )


def _check_size(tensor: tensors.Tensor) -> None:
    width = DTYPE_BYTES.get(tensor.dtype)
    if width is None:
        raise _refused(tensor.name, f"is of dtype {tensor.dtype[:20]}, and floats of 16 to 64 bits are served", _RESAVE)
    if len(tensor.shape) != 2 or 0 in tensor.shape:
        raise _refused(tensor.name, f"has shape {str(tensor.shape)[:60]}, which is no matrix of a linear layer", _TRAIN)
    needed = math.prod(tensor.shape) * width
    if needed != tensor.end - tensor.start:
        what = f"has shape {str(tensor.shape)[:60]}, which needs {needed} bytes, and has {tensor.end - tensor.start}"
        raise _refused(tensor.name, what, _RESAVE)


def _of(pattern: Mapping[str, int], module: str, default: int) -> int:
    """A module's value, as PEFT takes it: of the first key that the name ends with, or with `^` is.

    PEFT reads the keys as regular expressions; `_MODULE` admits names alone, which are looked up.
    """
    parts = module.split(".")
    ends = {".".join(parts[start:]) for start in range(len(parts))} | {f"^{module}"}
    return next((value for key, value in pattern.items() if key in ends), default)


def _refused(tensor: str, what: str, hint: str) -> ModelError:
    return ModelError(f"{adapters.WEIGHTS}: `{tensor[:200]}` {what}\nhint: {hint}")
