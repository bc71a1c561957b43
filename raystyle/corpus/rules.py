"""Cleaning rules: what each makes of a line, and which of many have anything to say about it.

A line is asked about a rule only if it holds one of the rule's literals or characters, and those are found in all lines at
once. `packs` reads rules from YAML and says what their keys mean.

N lines; R rules.
"""

import dataclasses
import functools
import hashlib
import html
import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from ahocorasick_rs import BytesAhoCorasick, Implementation
from numpy.typing import NDArray

from raystyle.corpus import insets, noise
from raystyle.corpus.lines import Pieces
from raystyle.corpus.literals import Finder
from raystyle.corpus.steps import NOISE_INSET, NOISE_LINE

Action = Literal["drop_line", "cut_span", "rewrite"]
Heading = Literal["strong", "weak"]


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
