"""One value of a flag or a config file, as the type its field wants.

Words of a command line are read as that type; values of a file must have it already: `"2e-4"` in quotes is text.
"""

import math
import os
import re
import types
import typing
from typing import Any, Literal

from raystyle import storage
from raystyle.errors import ConfigError


def members(annotation: Any) -> tuple[Any, ...]:
    """`int | None` -> (int, NoneType); a plain type -> (type,)."""
    is_union = isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union
    return typing.get_args(annotation) if is_union else (annotation,)


def as_type(name: str, value: Any, kind: Any, from_text: bool) -> Any:
    """The value as `kind` (bool, int, float, str, a Literal, or a tuple of one of these). Raises `ConfigError`."""
    if typing.get_origin(kind) is tuple:
        item_kind = typing.get_args(kind)[0]
        if isinstance(value, item_kind) and not from_text:
            value = [value]
        if not isinstance(value, list | tuple):
            raise wrong(name, value, "a list")
        return tuple(as_type(name, item, item_kind, from_text) for item in value)
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        if value not in choices:
            raise wrong(name, value, "one of " + ", ".join(f"`{c}`" for c in choices))
        return value
    if kind is bool:
        words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if isinstance(value, str) and from_text and value.lower() in words:
            return words[value.lower()]
        if isinstance(value, bool):
            return value
        raise wrong(name, value, "`true` or `false`")
    if kind in (int, float):
        return _as_number(name, value, kind, from_text)
    if isinstance(value, str):
        return value
    raise wrong(name, value, "text")


def _as_number(name: str, value: Any, kind: type, from_text: bool) -> int | float:
    wanted = "a whole number" if kind is int else "a number"
    if isinstance(value, str) and from_text:
        try:
            value = float(value) if kind is float or not re.fullmatch(r"[-+]?\d+", value) else int(value)
        except ValueError:
            raise wrong(name, value, wanted) from None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise wrong(name, value, wanted)
    if kind is int and value != int(value):
        raise wrong(name, value, wanted)
    return int(value) if kind is int else float(value)


def wrong(name: str, value: Any, wanted: str) -> ConfigError:
    return ConfigError(f"`{name}` is {value!r}\nhint: it must be {wanted}")


# Where a field may be either a place or a name (of a hub model, a rule pack, a DeepSpeed preset), only what exists
# on disk or is written like a path is one.
_PLACE_OR_NAME = {"model_name_or_path", "tokenizer_name_or_path", "rules", "deepspeed"}

# Fields whose paths may have a name in front: AUTHOR=PATH.
_NAMED = {"reference_path", "contrast_path"}


def as_path(name: str, value: str) -> str:
    """An absolute path or URI, or a name left as it is. Raises `ConfigError` for a relative path in a submitted job."""
    if name in _NAMED and "=" in value.partition("/")[0]:
        label, _, path = value.partition("=")
        return f"{label}={as_path('path', path) if path else ''}"
    if storage.is_remote(value):
        return storage.absolute(value)
    looks_like_path = value.startswith(("/", "./", "../", "~", "file://"))
    if name in _PLACE_OR_NAME and not looks_like_path and not os.path.exists(value):
        return value
    is_relative = not value.startswith(("/", "~", "file://"))
    if is_relative and in_submitted_job():
        raise ConfigError(
            f"`{name}` is the relative path `{value}`, and a submitted job runs in a temporary copy of its working "
            "directory: what it wrote there would be lost\nhint: use an absolute path on storage that every node sees, "
            "or a URI such as s3://…"
        )
    return storage.absolute(value)


def in_submitted_job() -> bool:
    """Whether this process is the entrypoint of `ray job submit`, which sets this variable for it alone."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
