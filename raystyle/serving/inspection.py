"""What an adapter's files say of it, and the refusal of all that is not plain LoRA trained on this base.

Its config must be one that `lora_config` understands. A header must stand for pairs of matrices of the ranks that the config
says and of the sizes that the base's layers have, before anything is copied or memory is set aside for it. Each refusal names
the file, and the tensor or field.
"""

import json
import math
import re
from collections.abc import Mapping
from typing import Any, BinaryIO, NamedTuple

from raystyle import adapters, models, tensors
from raystyle.errors import ModelError
from raystyle.lora_config import RESAVE, TRAIN
from raystyle.serving.finding import Files

MAX_ADAPTER_BYTES = 8 << 30  # rank 256 on every linear layer of a 70B model in bfloat16 has 6.6 GB
MAX_JSON_BYTES = 1 << 20  # of a config; PEFT's own have about 1 kB
DTYPE_BYTES = {"F16": 2, "BF16": 2, "F32": 4, "F64": 8}
# What loads code or pickles, in one library or another, when it lies beside an adapter.
UNSAFE = (".py", ".pyc", ".so", ".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")

_MATRIX = re.compile(r"base_model\.model\.([\w.-]{1,300})\.lora_([AB])\.weight")
_OTHER_BASE = "use it with the base it was trained on"
_REMOVE = "remove it from the folder, and serve weights in safetensors only"


class Base(NamedTuple):
    """What an adapter's base must be: as `models.identity`, `tokens.tokenizer_digest` and `models.linears` put it.

    For `check_weights` it needs its linear layers: by name, features in and out.
    """

    identity: str
    tokenizer_digest: str
    linears: Mapping[str, tuple[int, int]] = {}


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
            raise ModelError(f"{name} has {entry.size} bytes, more than the {limit} that are read\nhint: {TRAIN}")


def parse(name: str, data: bytes) -> dict[str, Any]:
    """A file that holds a JSON object. Raises `ModelError` for anything else."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ModelError(f"{name} is no JSON: {reason[:200]}\nhint: {RESAVE}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{name} holds no JSON object\nhint: {RESAVE}")
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
            f"it was trained on another base: `{theirs}`, and this is `{base.identity}`\nhint: use it with its own base"
        )
    if tokenizer is not None and tokenizer != base.tokenizer_digest:
        raise ModelError(
            f"it was trained with another tokenizer: {str(tokenizer)[:12]}, and this is {base.tokenizer_digest[:12]}\n"
            "hint: use it with its own (`--tokenizer_name_or_path`)"
        )
    if is_same and tokenizer is not None:
        return True
    if not allow_unverified_base:
        what = f"it was trained on `{theirs}`, which cannot be compared with `{base.identity}`"
        if theirs is None or tokenizer is None:
            what = f"it does not say which base it was trained on ({adapters.ABOUT} has no base_identity and tokenizer_digest)"
        raise ModelError(f"{what}\nhint: if you know that it is this one, `--allow_unverified_base` serves it, marked")
    return False


# ── the weights ──


def check_weights(stream: BinaryIO, config: Mapping[str, Any], base: Base) -> None:
    """Refuse weights whose header does not stand for pairs of LoRA matrices, of the ranks that the config says, for linear
    layers of the base."""
    try:
        stored = tensors.read_header(stream)
    except ModelError as error:
        raise ModelError(f"{adapters.WEIGHTS}: {error}\nhint: {RESAVE}, or copy it again") from error
    pairs: dict[str, dict[str, tensors.Tensor]] = {}
    for tensor in stored:
        match = _MATRIX.fullmatch(tensor.name)
        if match is None:
            raise _refused(tensor.name, "is no LoRA matrix of a linear layer", TRAIN)
        _check_size(tensor)
        pairs.setdefault(match[1], {})[match[2]] = tensor
    if not pairs:
        raise ModelError(f"{adapters.WEIGHTS} has no tensors\nhint: {RESAVE}")
    for module, halves in pairs.items():
        if len(halves) < 2:
            [(half, tensor)] = halves.items()
            raise _refused(tensor.name, f"has no lora_{'B' if half == 'A' else 'A'} beside it", RESAVE)
        expected = _of(config.get("rank_pattern") or {}, module, config["r"])
        found = halves["A"].shape[0], halves["B"].shape[1]
        if found != (expected, expected):
            what = f"has rank {found[0]}, its lora_B {found[1]}, and {adapters.CONFIG} says {expected}"
            raise _refused(halves["A"].name, what, RESAVE)
        _check_place(module, halves["A"], halves["B"], base)
    highest = max(halves["A"].shape[0] for halves in pairs.values())
    declared = max([config["r"], *(config.get("rank_pattern") or {}).values()])
    if declared > highest:  # memory is set aside for it, on every module named
        raise ModelError(
            f"{adapters.CONFIG} says rank {declared}, and the highest in {adapters.WEIGHTS} is {highest}\nhint: {RESAVE}"
        )


def _check_size(tensor: tensors.Tensor) -> None:
    width = DTYPE_BYTES.get(tensor.dtype)
    if width is None:
        raise _refused(tensor.name, f"is of dtype {tensor.dtype[:20]}, and floats of 16 to 64 bits are served", RESAVE)
    if len(tensor.shape) != 2 or 0 in tensor.shape:
        raise _refused(tensor.name, f"has shape {str(tensor.shape)[:60]}, which is no matrix of a linear layer", TRAIN)
    needed = math.prod(tensor.shape) * width
    if needed != tensor.end - tensor.start:
        what = f"has shape {str(tensor.shape)[:60]}, which needs {needed} bytes, and has {tensor.end - tensor.start}"
        raise _refused(tensor.name, what, RESAVE)


def _check_place(module: str, a: tensors.Tensor, b: tensors.Tensor, base: Base) -> None:
    if module not in base.linears:
        raise _refused(a.name, "is for a linear layer that this base does not have", _OTHER_BASE)
    if (a.shape[1], b.shape[0]) != base.linears[module]:
        wanted = " -> ".join(map(str, base.linears[module]))
        what = f"and its lora_B are for {a.shape[1]} -> {b.shape[0]}, and the base's layer is {wanted}"
        raise _refused(a.name, what, _OTHER_BASE)


def _of(pattern: Mapping[str, int], module: str, default: int) -> int:
    """A module's value, as PEFT takes it: of the first key that the name ends with, or with `^` is.

    PEFT reads the keys as regular expressions; `lora_config` admits names alone, which are looked up.
    """
    parts = module.split(".")
    ends = {".".join(parts[start:]) for start in range(len(parts))} | {f"^{module}"}
    return next((value for key, value in pattern.items() if key in ends), default)


def _refused(tensor: str, what: str, hint: str) -> ModelError:
    return ModelError(f"{adapters.WEIGHTS}: `{tensor[:200]}` {what}\nhint: {hint}")
