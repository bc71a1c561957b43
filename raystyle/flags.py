"""From a command line and files to a config: defaults < `--config` file < flags.

One scan splits the words; every value, from the command line or a file, then passes through one `convert`, which knows
the field's type. Ready-made parsers were tried: tyro refuses Hugging Face's `--streaming true`, and
transformers' `HfArgumentParser` costs 1.6 s of imports before the first word of help.
"""

import argparse
import dataclasses
import difflib
import functools
import json
import re
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

from raystyle import storage, training_arguments
from raystyle.config import ClusterConfig, CorpusConfig, TrainConfig
from raystyle.errors import ConfigError
from raystyle.values import as_path, as_type, members

C = TypeVar("C")
_FLAG = re.compile(r"^(--[A-Za-z]|-h$)")


def parse(config_class: type[C], argv: Sequence[str]) -> C:
    """The config that a command line asks for. Raises `ConfigError`; `--help` prints the flags and exits."""
    if "--help" in argv or "-h" in argv:
        _help(config_class).print_help()
        raise SystemExit(0)
    flags = _scan(config_class, argv)
    values = _from_file(config_class, flags.pop("config")) if "config" in flags else {}
    values |= {name: convert(config_class, name, value, from_text=True) for name, value in flags.items()}
    return build(config_class, values)


def _scan(config_class: Any, argv: Sequence[str]) -> dict[str, Any]:
    """Flag -> its word, or its list of words where it takes several; a boolean without a word is `true`.

    A flag is `--` and a letter, so that `-1` and a prompt that opens with dashes are values.
    """
    found: dict[str, Any] = {}
    position = 0
    while position < len(argv):
        word = argv[position]
        if not _FLAG.match(word):
            raise ConfigError(f"unexpected word `{word}`\nhint: every value follows its flag, as in `--seed 1`")
        name, is_joined, value = word[2:].partition("=")
        if name != "config":
            _check_known(config_class, name, "--")
        values = [value] if is_joined else []
        while not is_joined and position + 1 < len(argv) and not _FLAG.match(argv[position + 1]):
            values.append(argv[position := position + 1])
        position += 1
        many, lone = _arity(config_class, name)
        if not values and lone is None:
            raise ConfigError(f"`--{name}` has no value\nhint: write it behind the flag; `--help` shows what it takes")
        if len(values) > 1 and not many:
            raise ConfigError(
                f"`--{name}` takes one value, not {len(values)}: {values}\nhint: quote a value with spaces"
            )
        found[name] = values if many else values[0] if values else lone
    return found


def _arity(config_class: Any, name: str) -> tuple[bool, str | None]:
    """Whether a flag takes many words, and what it means without any (None: it must have one)."""
    if name == "config":
        return False, None
    if name not in fields(config_class):
        return False, "true" if "bool" in training_arguments.fields()[name] else None
    kind = members(_type_of(config_class, name))[0]
    return typing.get_origin(kind) is tuple, "true" if kind is bool else None


def build(config_class: type[C], values: Mapping[str, Any]) -> C:
    """A config from values that `convert` returned; missing ones take their defaults."""
    known = fields(config_class)
    missing = [f"`--{n}`" for n, f in known.items() if f.default is dataclasses.MISSING and n not in values]
    if missing:
        raise ConfigError(
            f"{' and '.join(missing)} must be given\nhint: on the command line, or in the `--config` file"
        )
    extra = {name: value for name, value in values.items() if name not in known}
    plain = {name: value for name, value in values.items() if name in known}
    if extra:
        plain["training_args"] = extra
    if "given" in {f.name for f in dataclasses.fields(config_class)}:  # type: ignore[arg-type]
        plain["given"] = frozenset(values)
    return config_class(**plain)


def to_dict(config: Any) -> dict[str, Any]:
    """The flat, JSON-ready form of a config, which is itself a valid `--config` file."""
    values = {f.name: getattr(config, f.name) for f in fields(type(config)).values()}
    values |= dict(getattr(config, "training_args", {}))
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def from_dict(config_class: type[C], values: Mapping[str, Any]) -> C:
    """The config that `to_dict` gave these values for."""
    return build(
        config_class, {name: convert(config_class, name, value, from_text=False) for name, value in values.items()}
    )


def fields(config_class: Any) -> dict[str, "dataclasses.Field[Any]"]:
    """A config's flags by name, its own before those it shares with other commands: the order of `--help`."""
    shown = [f for f in dataclasses.fields(config_class) if not f.metadata.get("hidden")]
    return {f.name: f for f in sorted(shown, key=lambda f: f.name not in config_class.__annotations__)}


def _help(config_class: Any) -> argparse.ArgumentParser:
    """argparse lays out the help; the words are scanned by `_scan`, for argparse takes `--prompt -x` for two flags."""
    parser = argparse.ArgumentParser(
        prog=f"raystyle {verb(config_class)}",
        usage=f"raystyle {verb(config_class)} [--config FILE] [--flag value …]",
        description=" ".join((config_class.__doc__ or "").split()),
        formatter_class=functools.partial(argparse.HelpFormatter, max_help_position=34, width=118),
    )
    parser.add_argument("--config", metavar="FILE", help="JSON or YAML file of these flags; the command line wins")
    groups: dict[str, Any] = {}
    for name, field in fields(config_class).items():
        title = _group_of(config_class, name)
        groups[title] = group = groups.get(title) or parser.add_argument_group(title)
        text = field.metadata["help"].replace("%", "%%") + _default_note(field)
        group.add_argument(f"--{name}", metavar=_metavar(_type_of(config_class, name)), help=text)
    return parser


def verb(config_class: Any) -> str:
    """The command that a config belongs to: `TrainConfig` is `train`'s."""
    return str(config_class.__name__).removesuffix("Config").lower()


def _group_of(config_class: Any, name: str) -> str:
    if name in {f.name for f in dataclasses.fields(ClusterConfig)}:
        return "where it runs"
    if config_class is TrainConfig and name in {f.name for f in dataclasses.fields(CorpusConfig)}:
        return "raw text, prepared first"
    return "flags"


def _default_note(field: "dataclasses.Field[Any]") -> str:
    if field.default is dataclasses.MISSING:
        return " (required)"
    value = " ".join(field.default) if isinstance(field.default, tuple) else field.default
    return "" if value is None or value is False else f" (default: {str(value).lower() if value is True else value})"


def _type_of(config_class: Any, name: str) -> Any:
    return typing.get_type_hints(config_class)[name]


def _metavar(annotation: Any) -> str:
    kind = members(annotation)[0]
    if typing.get_origin(kind) is tuple:
        return "WORD …"
    if typing.get_origin(kind) is Literal:
        return "|".join(typing.get_args(kind))
    return {bool: "[true|false]", int: "N", float: "X"}.get(kind, "TEXT")


def _check_known(config_class: Any, name: str, prefix: str = "") -> None:
    known = fields(config_class)
    if name in known:
        return
    others = training_arguments.fields() if config_class is TrainConfig else {}
    if config_class is TrainConfig and name in training_arguments.OWNED:
        raise ConfigError(f"`{prefix}{name}` is not yours to set: {training_arguments.OWNED[name]}")
    if name not in others:
        names = [*known, *(set(others) - set(training_arguments.OWNED)), "config"]
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
        way_out = f"did you mean `{prefix}{near[0]}`?" if near else f"`raystyle {verb(config_class)} --help` lists them"
        raise ConfigError(f"unknown setting `{prefix}{name}`\nhint: {way_out}")


def _from_file(config_class: Any, path: str) -> dict[str, Any]:
    try:
        text = storage.read_bytes(storage.absolute(path)).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"config file `{path}` is not UTF-8 text: {error.reason} at byte {error.start}") from error
    try:
        values = json.loads(text) if path.endswith(".json") else _read_yaml(text)
    except ValueError as error:
        raise ConfigError(f"config file `{path}` cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(
            f"config file `{path}` holds a {type(values).__name__}\nhint: it must be a mapping of flags to values"
        )
    converted = {}
    for name, value in values.items():
        try:
            _check_known(config_class, str(name))
            converted[str(name)] = convert(config_class, str(name), value, from_text=False)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error
    return converted


def _read_yaml(text: str) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """YAML 1.2's numbers: PyYAML, following YAML 1.1, would read `5e-5` as a string."""

    number = re.compile(r"^[-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?$")
    Loader.yaml_implicit_resolvers = {
        first: [(tag, regexp) for tag, regexp in resolvers if tag != "tag:yaml.org,2002:float"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789."))
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def convert(config_class: Any, name: str, value: Any, *, from_text: bool) -> Any:
    """A value as its field's type: words of a command line are read, values of a file must have the type already.

    Paths come back absolute. Raises `ConfigError` naming the field, the value and the type.
    """
    known = fields(config_class)
    if name not in known:
        _check_known(config_class, name)
        return training_arguments.convert(name, value, from_text)
    kinds = members(_type_of(config_class, name))
    if isinstance(value, str) and from_text and value.lower() in ("none", "null") and type(None) in kinds:
        return None
    if value is None and type(None) in kinds:
        return None
    converted = as_type(name, value, kinds[0], from_text)
    if known[name].metadata.get("path") and converted is not None:
        if isinstance(converted, tuple):
            return tuple(as_path(name, item) for item in converted)
        return as_path(name, converted)
    return converted
