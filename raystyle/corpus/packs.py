r"""Cleaning rules as data: read YAML packs, and check them.

A pack is a mapping:

    name: my_rules
    extends: zh_web_novel              # optional; rules of the same name are replaced, others come after
    fragments: {number: '[0-9一二三]'}  # optional; `%{number}` in a pattern stands for it
    rules:
      - name: chapter_heading
        why: one sentence for the report
        action: drop_line              # or cut_span, rewrite
        pattern: '^第(?P<number>%{number})(?P<unit>章)'  # Python `re`; sees a line without its outer whitespace
        unless: '。$'                   # optional; a line where this is found is left alone
        max_chars: 60                  # optional; longer lines are left alone, and never looked at
        literals: [第]                 # a line with none of these is never looked at: what makes cleaning fast
        characters: '[\ue000-\uf8ff]'  # or, instead of literals, a class of characters one of which it must hold
        heading: strong                # optional, drop_line only: the line is a chapter's heading by its shape alone;
                                       # weak: only if its number fits the headings around it (see headings.py).
                                       # Groups `number`, `unit` and `title` say what stands in it
        at_start: true                 # optional; only before the first line that is kept
        interrupts: true               # optional: a line that this rule takes whole may stand inside a sentence, whose
                                       # halves are then joined
        replace: '…'                   # rewrite only: a template, or `table: {'&quot;': '"'}` by what was matched
        unescape: true                 # rewrite only, instead: an HTML entity becomes the character that it stands for
        outnumbers: true               # with a table: only in a work where its hits outnumber the replacement
        like_noise: true               # cut_span: hits alone that the model of noise lines takes for noise (noise.py);
                                       # drop_line: not a line that it is sure is prose
        enabled: false                 # optional; off unless asked for by name
        examples: {match: [第一章], keep: [第一章读完了。]}

The examples are the rule's tests: `load_rules` refuses a pack whose examples fail (`check`).
"""

import difflib
import re
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import Any, cast

import yaml

from raystyle import storage
from raystyle.corpus.rules import Action, Expression, Rule, Rules
from raystyle.corpus.steps import SWITCHABLE
from raystyle.errors import ConfigError

KEYS = {
    "name", "why", "action", "pattern", "unless", "max_chars", "literals", "characters", "heading", "at_start", "replace", "table",
    "unescape", "interrupts", "outnumbers", "like_noise", "enabled", "examples",
}  # fmt: skip
TYPES: dict[str, type] = {
    **dict.fromkeys(("name", "why", "action", "pattern", "unless", "characters", "replace"), str),
    **dict.fromkeys(("table", "examples"), dict),
    **dict.fromkeys(("at_start", "unescape", "interrupts", "outnumbers", "like_noise", "enabled"), bool),
    "literals": list, "max_chars": int,
}  # fmt: skip
_FRAGMENT = re.compile(r"%\{(\w+)\}")


def pack_names() -> list[str]:
    """The packs that come with raystyle."""
    return sorted(path.name.removesuffix(".yaml") for path in _packs().iterdir() if path.name.endswith(".yaml"))


def load_rules(names: str | Sequence[str], enable: Sequence[str] = (), disable: Sequence[str] = ()) -> Rules:
    """Packs by name or by the path of a YAML file, later ones adding to or replacing rules of earlier ones.

    `enable` and `disable` switch single rules, `disable` what is SWITCHABLE too. Raises `ConfigError` where a pack is not sound or a name is unknown.
    """
    names = [names] if isinstance(names, str) else names
    rules = {rule.name: rule for name in names for rule in _load(name, ())}
    for wanted in [*enable, *(name for name in disable if name not in SWITCHABLE)]:
        if wanted not in rules:
            near = difflib.get_close_matches(wanted, [*rules, *SWITCHABLE], 1)
            raise ConfigError(
                f"no rule named `{wanted}` in {', '.join(names)}\nhint: "
                + (f"did you mean `{near[0]}`?" if near else "`raystyle rules` lists them")
            )
    chosen = [rule for rule in rules.values() if (rule.enabled or rule.name in enable) and rule.name not in disable]
    label = "+".join(storage.basename(name).removesuffix(".yaml").removesuffix(".yml") for name in names)
    return Rules(label, tuple(chosen), frozenset(disable).intersection(SWITCHABLE))


def switched_off(names: Sequence[str], chosen: Rules) -> list[Rule]:
    """The rules of packs that are not among the chosen ones."""
    known = {rule.name for rule in chosen.rules}
    return [
        rule
        for rule in {rule.name: rule for name in names for rule in _load(name, ())}.values()
        if rule.name not in known
    ]


def _packs() -> Any:
    return resources.files("raystyle.corpus") / "rules"


def _load(name: str, extended_by: tuple[str, ...]) -> list[Rule]:
    if name in extended_by:
        raise ConfigError(f"rules `{name}` extend themselves: {' -> '.join([*extended_by, name])}")
    if name in pack_names():
        text = (_packs() / f"{name}.yaml").read_text(encoding="utf-8")
    elif name.endswith((".yaml", ".yml")):
        text = storage.read_bytes(name).decode("utf-8-sig", "replace")
    else:
        raise ConfigError(
            f"no rules named `{name}`\nhint: use {' or '.join(pack_names())}, or a path that ends in .yaml"
        )
    try:
        pack = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise ConfigError(f"rules `{name}` are not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(pack, dict) or not isinstance(pack.get("rules"), list):
        raise ConfigError(
            f"rules `{name}` are no pack\nhint: a mapping with a list called `rules`; see raystyle/corpus/packs.py"
        )
    where = f"rules `{name}`"
    _refuse_unknown(pack, {"name", "extends", "fragments", "rules"}, name)
    _expect(pack, {"name": str, "extends": str, "fragments": dict}, where)
    names = [raw.get("name") for raw in pack["rules"] if isinstance(raw, dict)]
    if twice := next((rule for index, rule in enumerate(names) if rule in names[:index]), None):
        raise ConfigError(f"{where}: two rules are called `{twice}`")
    base = _load(pack["extends"], (*extended_by, name)) if "extends" in pack else []
    fragments = {str(key): str(value) for key, value in (pack.get("fragments") or {}).items()}
    own = [_compile(raw, fragments, name) for raw in pack["rules"]]
    # Packs that come with raystyle are checked by its tests.
    if name not in pack_names():
        check(own, name)
    return base + own


def _expect(mapping: dict[str, Any], types: dict[str, type], where: str) -> None:
    for key, kind in types.items():
        if key in mapping and not isinstance(mapping[key], kind):
            wanted = {str: "text (in quotes, if it looks like a number)", list: "a list", dict: "a mapping", bool: "true or false", int: "a number"}  # fmt: skip
            raise ConfigError(f"{where}: `{key}` is {mapping[key]!r}\nhint: it must be {wanted[kind]}")


def _refuse_unknown(mapping: dict[str, Any], known: set[str], where: str) -> None:
    for key in mapping:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            raise ConfigError(
                f"{where}: unknown key `{key}`\nhint: " + (f"did you mean `{near[0]}`?" if near else str(sorted(known)))
            )


def _compile(raw: Any, fragments: dict[str, str], pack: str) -> Rule:
    where = f"rule `{raw.get('name')}` of `{pack}`" if isinstance(raw, dict) else f"a rule of `{pack}`"
    if not isinstance(raw, dict) or not {"name", "why", "action", "pattern"} <= set(raw):
        raise ConfigError(f"{where} lacks name, why, action or pattern")
    _refuse_unknown(raw, KEYS, where)
    _expect(raw, TYPES, where)
    if raw["action"] not in ("drop_line", "cut_span", "rewrite"):
        raise ConfigError(f"{where}: action is `{raw['action']}`\nhint: use drop_line, cut_span or rewrite")
    if "heading" in raw and (raw["action"] != "drop_line" or raw["heading"] not in ("strong", "weak")):
        raise ConfigError(
            f"{where}: a heading is a whole line\nhint: `action: drop_line` and `heading: strong` or `weak`"
        )
    if raw.get("interrupts") and raw["action"] == "rewrite":
        raise ConfigError(f"{where}: `interrupts` goes with `action: drop_line` or `cut_span`")
    if raw.get("outnumbers") and not raw.get("table"):
        raise ConfigError(f"{where}: `outnumbers` goes with a `table`")
    if raw.get("like_noise") and raw["action"] == "rewrite":
        raise ConfigError(f"{where}: `like_noise` goes with `action: drop_line` or `cut_span`")
    max_chars = raw.get("max_chars")
    if max_chars is not None and (not isinstance(max_chars, int) or max_chars < 1):
        raise ConfigError(f"{where}: `max_chars` is {max_chars!r}\nhint: a number of characters")
    if (raw["action"] == "rewrite") != any(key in raw for key in ("replace", "table", "unescape")):
        raise ConfigError(f"{where}: `replace`, `table` or `unescape` goes with `action: rewrite`, and only with it")
    literals = raw.get("literals", [])
    if not all(isinstance(literal, str) and literal for literal in literals) or bool(literals) == ("characters" in raw):
        raise ConfigError(
            f"{where}: `literals` must be strings, one of which stands in every line that the pattern matches\n"
            "hint: or give `characters`, a class such as '[\\ue000-\\uf8ff]'"
        )
    examples = raw.get("examples") or {}
    _refuse_unknown(examples, {"match", "keep"}, where)
    _expect(examples, {"match": list, "keep": list}, where)
    if not all(isinstance(example, str) for kind in examples.values() for example in kind):
        raise ConfigError(f"{where}: its examples must be text\nhint: put numbers in quotes")
    return Rule(
        name=str(raw["name"]),
        why=str(raw["why"]),
        action=cast(Action, raw["action"]),
        pattern=_regex(raw["pattern"], fragments, where),
        literals=tuple(literals),
        characters=_regex(raw["characters"], {}, where) if "characters" in raw else None,
        unless=_regex(raw["unless"], fragments, where) if "unless" in raw else None,
        max_chars=max_chars,
        heading=raw.get("heading"),
        at_start=bool(raw.get("at_start")),
        interrupts=bool(raw.get("interrupts")),
        replace=str(raw.get("replace", "")),
        table=tuple((str(key), str(value)) for key, value in (raw.get("table") or {}).items()),
        unescape=bool(raw.get("unescape")),
        outnumbers=bool(raw.get("outnumbers")),
        like_noise=bool(raw.get("like_noise")),
        enabled=bool(raw.get("enabled", True)),
        written=str(raw["pattern"]),
        match=tuple(examples.get("match", ())),
        keep=tuple(examples.get("keep", ())),
    )


def _regex(pattern: str, fragments: dict[str, str], where: str) -> Expression:
    def fragment(hit: re.Match[str]) -> str:
        if hit.group(1) not in fragments:
            raise ConfigError(f"{where}: no fragment `{hit.group(1)}`\nhint: there are {sorted(fragments)}")
        return fragments[hit.group(1)]

    for _ in range(5):  # fragments may hold fragments
        pattern = _FRAGMENT.sub(fragment, pattern)
    return Expression(pattern)


def check(rules: Iterable[Rule], pack: str) -> None:
    """Raises `ConfigError` where a rule's expressions are none, or an example of it fails."""
    for rule in rules:
        for expression in filter(None, (rule.pattern, rule.characters, rule.unless)):
            try:
                expression.compiled  # noqa: B018
            except re.error as error:
                raise ConfigError(
                    f"rule `{rule.name}` of `{pack}`: `{expression.pattern}` is no regular expression: {error}"
                ) from error
        _check(rule, pack)


def _check(rule: Rule, pack: str) -> None:
    where = f"rule `{rule.name}` of `{pack}`"
    if not rule.match:
        raise ConfigError(f"{where} has no example that matches\nhint: add `examples: {{match: [...]}}`")
    for example in rule.match:
        line = example.strip()
        if not rule.may_apply(line):
            raise ConfigError(f"{where}: none of its literals stands in its example `{example}`")
        try:
            spans = rule.spans(line)
        except (re.error, IndexError) as error:
            raise ConfigError(f"{where}: its `replace` is no template for its pattern: {error}") from error
        if not spans:
            raise ConfigError(f"{where} does not match its example `{example}`")
        rewritten = line
        for start, end, replacement in reversed(spans):
            rewritten = rewritten[:start] + replacement + rewritten[end:]
        if rule.action == "rewrite" and rule.spans(rewritten):
            raise ConfigError(f"{where} would rewrite `{example}` again and again")
    for example in rule.keep:
        if rule.may_apply(example) and rule.spans(example.strip()):
            raise ConfigError(f"{where} matches `{example}`, which it must keep")
