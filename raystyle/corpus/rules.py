r"""Cleaning rules as data: read YAML packs, check them, compile them.

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

import dataclasses
import difflib
import functools
import hashlib
import html
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import resources
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import yaml
from ahocorasick_rs import BytesAhoCorasick, Implementation
from numpy.typing import NDArray

from raystyle import storage
from raystyle.corpus import insets, noise
from raystyle.corpus.lines import Pieces
from raystyle.corpus.literals import Finder
from raystyle.corpus.steps import NOISE_INSET, NOISE_LINE, SWITCHABLE
from raystyle.errors import ConfigError

Action = Literal["drop_line", "cut_span", "rewrite"]
Heading = Literal["strong", "weak"]
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


@dataclasses.dataclass(frozen=True)
class Expression:
    """A regular expression, compiled when it is first used: those of the default pack would take a second at the start
    of every process."""

    pattern: str

    @functools.cached_property
    def compiled(self) -> re.Pattern[str]:
        return re.compile(self.pattern)

    @functools.cached_property
    def search(self) -> Callable[[str], re.Match[str] | None]:
        return self.compiled.search

    @functools.cached_property
    def finditer(self) -> Callable[[str], Iterator[re.Match[str]]]:
        return self.compiled.finditer

    def __reduce__(self) -> Any:
        return Expression, (self.pattern,)


@dataclasses.dataclass(frozen=True)
class Rule:
    """One rule."""

    name: str
    why: str
    action: Action
    pattern: Expression
    literals: tuple[str, ...]
    characters: Expression | None = None
    unless: Expression | None = None
    max_chars: int | None = None
    heading: Heading | None = None
    at_start: bool = False
    interrupts: bool = False
    replace: str = ""
    table: tuple[tuple[str, str], ...] = ()
    unescape: bool = False
    outnumbers: bool = False
    like_noise: bool = False
    enabled: bool = True
    written: str = ""
    match: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()

    def may_apply(self, line: str) -> bool:
        """Whether the line holds one of the rule's literals or characters."""
        return bool(self.characters.search(line)) if self.characters else any(lit in line for lit in self.literals)

    def spans(self, line: str) -> list[tuple[int, int, str]]:
        """Where the rule applies in a line: start, end, and what stands there afterwards. Literals are not asked for."""
        if self.max_chars is not None and len(line) > self.max_chars:
            return []
        if self.action == "drop_line":
            # In prose `unless` is what most often decides, and at its first words.
            spared = self.unless and self.unless.search(line)
            if spared or not self.pattern.search(line) or (self.like_noise and noise.is_prose(line)):
                return []
            return [(0, len(line), "")]
        hits = [hit for hit in self.pattern.finditer(line) if hit.end() > hit.start()]
        if self.like_noise:
            hits = [hit for hit in hits if noise.is_noise(hit.group())]
        if not hits or (self.unless and self.unless.search(line)):
            return []
        spans = [(hit.start(), hit.end(), self._replacement(hit)) for hit in hits]
        return [span for span in spans if line[span[0] : span[1]] != span[2]]

    def named(self, line: str) -> dict[str, str]:
        """What a heading says of itself: its `number` and `unit` where it has them, its `title`, else the line."""
        hit = self.pattern.search(line)
        groups = {name: text.strip() for name, text in (hit.groupdict() if hit else {}).items() if text}
        return {**groups, "title": groups.get("title") or line.strip()}

    def _replacement(self, hit: re.Match[str]) -> str:
        if self.action != "rewrite":
            return ""
        if self.unescape:
            return _character(hit.group())
        return self._table.get(hit.group(), hit.group()) if self.table else hit.expand(self.replace)

    @functools.cached_property
    def _table(self) -> dict[str, str]:
        return dict(self.table)


def _character(entity: str) -> str:
    """The character that an HTML entity stands for; the entity itself where that is none, or none that can be seen."""
    character = html.unescape(entity.replace("＆", "&").replace("；", ";"))
    return character if len(character) == 1 and character.isprintable() and character != "�" else entity


class _Literals(NamedTuple):
    """All literals of all rules: how they are found in a long text and in one line, and the rules that have each."""

    finder: Finder
    automaton: BytesAhoCorasick
    rules_of: list[list[int]]
    rules_LW: NDArray[np.uint64]  # the same as bits
    by_character: list[int]  # rules that have a class of characters, which the automaton does not know


@dataclasses.dataclass(frozen=True)
class Rules:
    """Packs with all that they extend: their enabled rules, in order.

    I lines, N of them with a literal; H hits of literals; L literals; R rules, as bits of W words; T limits of length.
    """

    name: str
    rules: tuple[Rule, ...]
    off: frozenset[str] = frozenset()  # of SWITCHABLE

    def of(self, line: str) -> list[Rule]:
        """The rules that may apply to a line, by its literals, in their order; lengths are not asked."""
        literals = self._literals
        hits = literals.automaton.find_matches_as_indexes(line.encode("utf-8", "surrogatepass"), overlapping=True)
        found = {rule for hit in hits for rule in literals.rules_of[hit[0]]}
        for index in literals.by_character:
            if self.rules[index].may_apply(line):
                found.add(index)
        return [self.rules[index] for index in sorted(found)]

    def candidates(self, lines: Pieces) -> dict[int, list[Rule]]:
        """The rules that may apply to each of many lines, by their literals and their length, in their order; lines
        without any are left out. Asks all of them together."""
        hits = self._literals.finder.find(lines.codes_C)
        line_H = np.searchsorted(lines.start_I, hits.start_H, "right") - 1
        # Between the lines stands their outer whitespace.
        inside_H = (line_H >= 0) & (hits.end_H <= lines.start_I[line_H] + lines.chars_I[line_H])
        order_H = np.argsort(line_H[inside_H], kind="stable")
        line_H, literal_H = line_H[inside_H][order_H], hits.literal_H[inside_H][order_H]
        first_H = np.flatnonzero(np.diff(line_H, prepend=-1))
        if not len(first_H):
            return {}
        line_N, rules_NW = line_H[first_H], np.bitwise_or.reduceat(self._literals.rules_LW[literal_H], first_H)
        limits_T, short_TW = self._limits
        rules_NW &= short_TW[np.searchsorted(limits_T, lines.chars_I[line_N])]
        known: dict[bytes, list[Rule]] = {}
        found = {}
        for line, bits in zip(line_N.tolist(), map(bytes, rules_NW), strict=True):
            if bits not in known:
                known[bits] = [self.rules[index] for index in _numbers(bits)]
            if known[bits]:
                found[line] = known[bits]
        return found

    @functools.cached_property
    def weak(self) -> list[Rule]:
        """Rules that know a heading only by its number."""
        return [rule for rule in self.rules if rule.heading == "weak"]

    @functools.cached_property
    def _limits(self) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        """Limits of length, ascending, and the rules (as bits) for lines up to each of them; the last is for all others."""
        most = np.iinfo(np.int32).max
        limit_R = np.array([rule.max_chars or most for rule in self.rules], np.int64)
        limits_T = np.unique(np.append(limit_R, most))
        return limits_T, _bits([np.flatnonzero(limit_R >= limit).tolist() for limit in limits_T], len(self.rules))

    @functools.cached_property
    def _literals(self) -> _Literals:
        rules_of: dict[str, list[int]] = {}
        for index, rule in enumerate(self.rules):
            for literal in dict.fromkeys(rule.literals):
                rules_of.setdefault(literal, []).append(index)
        written = [literal.encode("utf-8", "surrogatepass") for literal in rules_of]
        for index, rule in enumerate(self.rules):
            for character in _members(rule.characters):
                rules_of.setdefault(character, []).append(index)
        automaton = BytesAhoCorasick(written, implementation=Implementation.DFA)
        indices = list(rules_of.values())
        by_character = [index for index, rule in enumerate(self.rules) if rule.characters]
        return _Literals(Finder(list(rules_of)), automaton, indices, _bits(indices, len(self.rules)), by_character)

    def __reduce__(self) -> Any:
        # What is made on first use cannot travel to another process; there it is made once, not for each task.
        return _made_once, (self.name, self.rules, self.off)

    @property
    def digest(self) -> str:
        """SHA-256 of what the rules do, and of the models of noise that are on; not of their reasons or examples."""
        doing = [
            [r.name, r.action, r.pattern.pattern, r.characters and r.characters.pattern, r.unless and r.unless.pattern, r.max_chars, r.literals, r.heading,
             r.at_start, r.interrupts, r.replace, r.table, r.unescape, r.outnumbers, r.like_noise]
            for r in self.rules
        ]  # fmt: skip
        judged = {NOISE_LINE, NOISE_INSET} - self.off or any(rule.like_noise for rule in self.rules)
        models = [noise.digest() if judged else None, None if NOISE_INSET in self.off else insets.digest()]
        return hashlib.sha256(json.dumps([doing, sorted(self.off), models], ensure_ascii=False).encode()).hexdigest()


@functools.lru_cache(maxsize=2)
def _made_once(name: str, rules: tuple[Rule, ...], off: frozenset[str]) -> Rules:
    return Rules(name, rules, off)


def _bits(sets: Sequence[Sequence[int]], size: int) -> NDArray[np.uint64]:
    """Sets of numbers below `size` as rows of bits."""
    table = np.zeros((len(sets), size // 64 + 1, 64), bool)
    for row, numbers in enumerate(sets):
        table.reshape(len(sets), -1)[row, numbers] = True
    return np.packbits(table, axis=-1, bitorder="little").view(np.uint64)[..., 0]


def _numbers(bits: bytes) -> list[int]:
    """A set of numbers that is a row of bits."""
    return np.flatnonzero(np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little")).tolist()


def _members(characters: Expression | None) -> list[str]:
    """The characters of a class."""
    if characters is None:
        return []
    return sorted(
        set("".join(characters.compiled.findall("".join(map(chr, [*range(0xD800), *range(0xE000, 0x30000)])))))
    )


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
            f"rules `{name}` are no pack\nhint: a mapping with a list called `rules`; see raystyle/corpus/rules.py"
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
