"""Cleaning rules as data: read a YAML pack, check it, compile it.

A pack is a mapping:

    name: my_rules
    extends: zh_web_novel              # optional; rules of the same name are replaced, others come after
    fragments: {number: '[0-9一二三]'}  # optional; `%{number}` in a pattern stands for it
    rules:
      - name: chapter_heading
        why: one sentence for the report
        action: drop_line              # or cut_span, rewrite
        pattern: '^第%{number}章'       # Python `re`; sees a line without its outer whitespace
        unless: '。$'                   # optional; a line where this is found is left alone
        literals: [第]                 # a line with none of these is never looked at: what makes cleaning fast
        heading: true                  # optional, drop_line only; the group `title`, or the line, names the chapter
        at_start: true                 # optional; only before the first line that is kept
        replace: '…'                   # rewrite only: a template, or `table: {'&quot;': '"'}` by what was matched
        examples: {match: [第一章], keep: [第一章读完了。]}

The examples are the rule's tests: `load_rules` refuses a pack whose examples fail.
"""

import dataclasses
import difflib
import functools
import hashlib
import json
import re
from importlib import resources
from typing import Any, Literal, cast

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from raystyle import storage
from raystyle.errors import ConfigError

Action = Literal["drop_line", "cut_span", "rewrite"]
KEYS = {"name", "why", "action", "pattern", "unless", "literals", "heading", "at_start", "replace", "table", "examples"}
_FRAGMENT = re.compile(r"%\{(\w+)\}")


@dataclasses.dataclass(frozen=True)
class Rule:
    """One rule, compiled."""

    name: str
    why: str
    action: Action
    pattern: re.Pattern[str]
    literals: tuple[str, ...]
    unless: re.Pattern[str] | None = None
    heading: bool = False
    at_start: bool = False
    replace: str = ""
    table: tuple[tuple[str, str], ...] = ()
    match: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()

    @functools.cached_property
    def any_literal(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, self.literals)))

    @functools.cached_property
    def anchored(self) -> bool:
        return self.pattern.pattern.startswith("^")

    def spans(self, line: str) -> list[tuple[int, int, str]]:
        """Where the rule applies in a line: start, end, and what stands there afterwards."""
        # An anchored pattern mostly fails at its first character, sooner than the literals are through.
        first, second = (self.pattern, self.any_literal) if self.anchored else (self.any_literal, self.pattern)
        if not first.search(line) or not second.search(line):
            return []
        if self.unless and self.unless.search(line):
            return []
        if self.action == "drop_line":
            return [(0, len(line), "")]
        hits = [hit for hit in self.pattern.finditer(line) if hit.end() > hit.start()]
        spans = [(hit.start(), hit.end(), self._replacement(hit)) for hit in hits]
        return [span for span in spans if line[span[0] : span[1]] != span[2]]

    def title(self, line: str) -> str:
        """The chapter's name in a heading line."""
        hit = self.pattern.search(line)
        named = hit.groupdict().get("title") if hit else None
        return (named or line).strip()

    def _replacement(self, hit: re.Match[str]) -> str:
        if self.action != "rewrite":
            return ""
        return dict(self.table).get(hit.group(), hit.group()) if self.table else hit.expand(self.replace)


@dataclasses.dataclass(frozen=True)
class Rules:
    """A pack with all that it extends: its rules in order, and the RE2 pattern that finds lines worth a look."""

    name: str
    rules: tuple[Rule, ...]
    candidate: str

    def candidates(self, lines: list[str]) -> list[bool]:
        """Which lines hold a literal of any rule that applies anywhere: one pass of RE2's automaton, however many literals there are."""
        column = pa.array(lines, pa.large_string())
        return cast(list[bool], pc.match_substring_regex(column, self.candidate).to_pylist())

    @property
    def digest(self) -> str:
        """SHA-256 of what the rules do; not of their names for themselves, their reasons or their examples."""
        doing = [
            (
                r.name,
                r.action,
                r.pattern.pattern,
                r.unless and r.unless.pattern,
                r.literals,
                r.heading,
                r.at_start,
                r.replace,
            )
            for r in self.rules
        ]
        tables = [r.table for r in self.rules]
        return hashlib.sha256(json.dumps([doing, tables], ensure_ascii=False).encode()).hexdigest()


def pack_names() -> list[str]:
    """The packs that come with raystyle."""
    return sorted(path.name.removesuffix(".yaml") for path in _packs().iterdir() if path.name.endswith(".yaml"))


def load_rules(name: str) -> Rules:
    """The pack of that name, or the YAML file at that path. Raises `ConfigError` where it is not a sound pack."""
    rules = {rule.name: rule for rule in _load(name, ())}
    literals = sorted(
        {literal for rule in rules.values() if not rule.at_start for literal in rule.literals},
        key=lambda lit: (-len(lit), lit),
    )
    # A literal that contains another never has to be tried: the shorter one finds the line.
    shortest = [lit for lit in literals if not any(other != lit and other in lit for other in literals)]
    candidate = "|".join(_quoted(literal) for literal in shortest) or r"[^\x00-\x{10FFFF}]"
    label = storage.basename(name).removesuffix(".yaml").removesuffix(".yml")
    return Rules(label, tuple(rules.values()), candidate)


def _quoted(literal: str) -> str:
    """A literal for RE2, which refuses Python's escapes of characters beyond ASCII."""
    return re.sub(r"[\x00-\x2f:-@\[-`{-\x7f]", lambda hit: f"\\x{ord(hit.group()):02x}", literal)


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
        pack = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"rules `{name}` are not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(pack, dict) or not isinstance(pack.get("rules"), list):
        raise ConfigError(
            f"rules `{name}` are no pack\nhint: a mapping with a list called `rules`; see raystyle/corpus/rules.py"
        )
    _refuse_unknown(pack, {"name", "extends", "fragments", "rules"}, name)
    base = _load(pack["extends"], (*extended_by, name)) if "extends" in pack else []
    fragments = {str(key): str(value) for key, value in (pack.get("fragments") or {}).items()}
    own = [_compile(raw, fragments, name) for raw in pack["rules"]]
    for rule in own:
        _check(rule, name)
    return base + own


def _refuse_unknown(mapping: dict[str, Any], known: set[str], where: str) -> None:
    for key in mapping:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            raise ConfigError(
                f"{where}: unknown key `{key}`\nhint: " + (f"did you mean `{near[0]}`?" if near else str(sorted(known)))
            )


def _compile(raw: Any, fragments: dict[str, str], pack: str) -> Rule:
    where = f"rule `{raw.get('name')}` of `{pack}`" if isinstance(raw, dict) else f"a rule of `{pack}`"
    if not isinstance(raw, dict) or not {"name", "why", "action", "pattern", "literals"} <= set(raw):
        raise ConfigError(f"{where} lacks name, why, action, pattern or literals")
    _refuse_unknown(raw, KEYS, where)
    if raw["action"] not in ("drop_line", "cut_span", "rewrite"):
        raise ConfigError(f"{where}: action is `{raw['action']}`\nhint: use drop_line, cut_span or rewrite")
    if raw.get("heading") and raw["action"] != "drop_line":
        raise ConfigError(f"{where}: a heading is a whole line\nhint: use `action: drop_line`")
    if (raw["action"] == "rewrite") != ("replace" in raw or "table" in raw):
        raise ConfigError(f"{where}: `replace` or `table` goes with `action: rewrite`, and only with it")
    if not raw["literals"] or not all(isinstance(literal, str) and literal for literal in raw["literals"]):
        raise ConfigError(
            f"{where}: `literals` must be strings, one of which stands in every line that the pattern matches"
        )
    examples = raw.get("examples") or {}
    return Rule(
        name=str(raw["name"]),
        why=str(raw["why"]),
        action=cast(Action, raw["action"]),
        pattern=_regex(raw["pattern"], fragments, where),
        literals=tuple(raw["literals"]),
        unless=_regex(raw["unless"], fragments, where) if "unless" in raw else None,
        heading=bool(raw.get("heading")),
        at_start=bool(raw.get("at_start")),
        replace=str(raw.get("replace", "")),
        table=tuple((str(key), str(value)) for key, value in (raw.get("table") or {}).items()),
        match=tuple(examples.get("match", ())),
        keep=tuple(examples.get("keep", ())),
    )


def _regex(pattern: str, fragments: dict[str, str], where: str) -> re.Pattern[str]:
    def fragment(hit: re.Match[str]) -> str:
        if hit.group(1) not in fragments:
            raise ConfigError(f"{where}: no fragment `{hit.group(1)}`\nhint: there are {sorted(fragments)}")
        return fragments[hit.group(1)]

    for _ in range(5):  # fragments may hold fragments
        pattern = _FRAGMENT.sub(fragment, pattern)
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"{where}: `{pattern}` is no regular expression: {error}") from error


def _check(rule: Rule, pack: str) -> None:
    where = f"rule `{rule.name}` of `{pack}`"
    if not rule.match:
        raise ConfigError(f"{where} has no example that matches\nhint: add `examples: {{match: [...]}}`")
    for example in rule.match:
        line = example.strip()
        if not any(literal in line for literal in rule.literals):
            raise ConfigError(f"{where}: none of its literals stands in its example `{example}`")
        spans = rule.spans(line)
        if not spans:
            raise ConfigError(f"{where} does not match its example `{example}`")
        rewritten = line
        for start, end, replacement in reversed(spans):
            rewritten = rewritten[:start] + replacement + rewritten[end:]
        if rule.action == "rewrite" and rule.spans(rewritten):
            raise ConfigError(f"{where} would rewrite `{example}` again and again")
    for example in rule.keep:
        if rule.spans(example.strip()):
            raise ConfigError(f"{where} matches `{example}`, which it must keep")
