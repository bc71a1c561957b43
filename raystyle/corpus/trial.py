"""Rules for a person to read, and tried on a text: `raystyle rules`."""

from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

from raystyle.corpus.clean import clean
from raystyle.corpus.encodings import Unreadable
from raystyle.corpus.records import read_unit
from raystyle.corpus.rules import Rule, Rules
from raystyle.corpus.sources import Rejection, list_sources, plan_units
from raystyle.corpus.stages import place
from raystyle.corpus.steps import LAYOUT
from raystyle.errors import ConfigError

CONTEXT_CHARS = 20


class Hit(NamedTuple):
    """Where a rule applied: the line (from 1), what it took, what it put there, and what stands around it in the line.

    For what cannot be read, `rule` is the reason and `text` the detail.
    """

    source: str
    line_no: int
    rule: str
    action: str
    before: str
    text: str
    replacement: str
    after: str


def listing(rules: Rules, off: Iterable[Rule]) -> str:
    """One line a rule, in the order in which they are tried; then those that are off."""
    examples = sum(len(rule.match) + len(rule.keep) for rule in rules.rules)
    width = max(len(rule.name) for rule in [*rules.rules, *off])
    lines = [f"{rules.name}: {len(rules.rules)} rules; all {examples} examples hold"]
    lines += [f"  {rule.name:<{width}}  {rule.action:<9}  {rule.why}" for rule in rules.rules]
    lines += [f"  {rule.name:<{width}}  off        {rule.why}" for rule in off]
    return "\n".join(lines)


def explanation(rules: Rules, off: Iterable[Rule], name: str) -> str:
    """All there is to know about a rule, on or off. Raises `ConfigError` where there is none of that name."""
    off = list(off)
    rule = next((rule for rule in [*rules.rules, *off] if rule.name == name), None)
    if rule is None:
        raise ConfigError(f"no rule `{name}` in {rules.name}\nhint: `raystyle rules` lists them")
    fields = {
        "why": rule.why,
        "action": rule.action
        + (f", a {rule.heading} heading" if rule.heading else "")
        + (", off" if rule in off else ""),
        "pattern": " ".join(rule.written.split()),
        "unless": rule.unless.pattern if rule.unless else None,
        "up to": f"{rule.max_chars} characters" if rule.max_chars else None,
        "only": "above the first line that is kept" if rule.at_start else None,
        "replaces": ", ".join(f"{odd} by {usual}" for odd, usual in rule.table) or rule.replace or None,
        "looks at": "lines with " + (rule.characters.pattern if rule.characters else " or ".join(rule.literals)),
    }
    lines = [name, *(f"  {label:<9} {value}" for label, value in fields.items() if value)]
    lines += [f"  matches   {example}" for example in rule.match] + [f"  keeps     {example}" for example in rule.keep]
    return "\n".join(lines)


def hits(rules: Rules, paths: Collection[str], to_simplified: str, max_bytes: int) -> Iterator[Hit]:
    """Every removal in the texts at some paths, in order, and what cannot be read."""
    sources = list_sources(paths)[0] if paths else []
    for unit in plan_units(sources):
        reading = read_unit(unit, text_column="text", title_column=None, encoding=None, max_bytes=max_bytes)
        try:
            for text in reading.texts:
                if isinstance(text, Rejection):
                    yield Hit(text.source, 0, text.reason, "rejected", "", text.detail, "", "")
                    continue
                _, removed = clean(text.text, rules, to_simplified=to_simplified)
                lines = text.text.split("\n")
                for row in removed.to_pylist():
                    if row["rule"] in LAYOUT:  # that happens to every line of every file
                        continue
                    line, start, end = lines[row["line_no"] - 1], row["char_start"], row["char_end"]
                    before, after = line[max(0, start - CONTEXT_CHARS) : start], line[end : end + CONTEXT_CHARS]
                    yield Hit(
                        place(unit.source, text), row["line_no"], row["rule"], row["action"], before.lstrip(),
                        row["text"], row["replacement"], after.rstrip(),
                    )  # fmt: skip
        except Unreadable as refusal:
            yield Hit(unit.source.uri, 0, refusal.reason, "rejected", "", refusal.detail, "", "")


def shown(hit: Hit) -> str:
    """A hit as a line for a terminal: what went stands between brackets, what came instead behind an arrow."""
    text = hit.text.strip().replace("\n", "⏎") or "⏎"
    instead = f"→{hit.replacement}" if hit.replacement else ""
    return f"{hit.line_no:>7}  {hit.rule:<24} {hit.before}⟦{text}{instead}⟧{hit.after}"
