"""Text to kept lines and removals. Pure: the same text and rules give the same result anywhere.

Only lines that hold a literal of some rule are looked at closely. On those the rules are tried in order; the first that
applies drops the line or edits it, and then they are tried again on what is left, until none applies. Hence cleaning
cleaned text changes nothing, and because every edit is kept as a place in the decoded line, kept lines and removals
together are the input again (`restore`).
"""

from collections.abc import Iterable
from typing import NamedTuple

from raystyle.corpus.rules import Action, Rule, Rules
from raystyle.errors import ConfigError

# What every line goes through before any rule.
BLANK_LINE = "blank_line"
OUTER_WHITESPACE = "outer_whitespace"
LAYOUT_RULES = {
    BLANK_LINE: "Lines without text; paragraphs are separated by one line break.",
    OUTER_WHITESPACE: "Indents and trailing spaces; a paragraph starts with its first character.",
}
# Brackets and separators that a cut leaves behind are noise too; dots and dashes may be all that someone says.
_LEFTOVER = frozenset(
    " \u3000\t()[]{}<>（）【】〔〕［］《》〈〉「」『』|｜/／\\＼_*＊·•,，、:：;；.。~～=＝+#＃@＠$＄%％^＾&＆\"'“”‘’-－`"
)
_MAX_EDITS = 200


class Removal(NamedTuple):
    """What a rule took out of a line (or, for a rewrite, replaced): a row of `removed/`."""

    line_no: int
    action: Action
    rule: str
    text: str
    replacement: str
    char_start: int
    char_end: int


class Heading(NamedTuple):
    """A chapter's heading, which was dropped from the text; `before` is the index of the next kept line."""

    line_no: int
    title: str
    before: int


class Line(NamedTuple):
    line_no: int
    text: str


class Cleaned(NamedTuple):
    lines: list[Line]
    removals: list[Removal]
    headings: list[Heading]
    lines_in: int
    chars_in: int

    @property
    def text(self) -> str:
        return "\n".join(line.text for line in self.lines)


class _Edit(NamedTuple):
    start: int
    end: int
    replacement: str
    rule: str


def clean(text: str, rules: Rules, *, from_start: bool = True) -> Cleaned:
    """Apply rules to text with LF line ends. `from_start` is False where the text is not the beginning of a work."""
    kept: list[Line] = []
    removals: list[Removal] = []
    headings: list[Heading] = []
    source_lines = text.split("\n")
    for line_no, (line, candidate) in enumerate(zip(source_lines, rules.candidates(source_lines), strict=True), 1):
        body = line.strip()
        if not body:
            removals.append(Removal(line_no, "drop_line", BLANK_LINE, line, "", 0, len(line)))
        elif candidate or (from_start and not kept):
            result, edits = _sweep(line, rules, at_start=from_start and not kept)
            if isinstance(result, Rule):
                removals.append(Removal(line_no, "drop_line", result.name, line, "", 0, len(line)))
                if result.heading:
                    remaining = _apply(line, edits)[0].strip()
                    headings.append(Heading(line_no, result.title(remaining), len(kept)))
            else:
                removals += [_removal(line_no, line, edit) for edit in edits]
                kept.append(Line(line_no, result))
        else:
            if len(body) != len(line):
                removals += [_removal(line_no, line, edit) for edit in _whitespace(line)]
            kept.append(Line(line_no, body))
    return Cleaned(kept, removals, headings, len(source_lines), len(text) - len(source_lines) + 1)


def restore(lines: Iterable[Line], removals: Iterable[Removal]) -> str:
    """The decoded text that kept lines and removals came from."""
    by_line = {line.line_no: line.text for line in lines}
    edits: dict[int, list[Removal]] = {}
    for removal in removals:
        edits.setdefault(removal.line_no, []).append(removal)
    restored = []
    for line_no in sorted(by_line.keys() | edits.keys()):
        body, out, place, origin = by_line.get(line_no, ""), [], 0, 0
        for edit in sorted(edits.get(line_no, ()), key=lambda edit: edit.char_start):
            until = place + edit.char_start - origin
            out += [body[place:until], edit.text]
            place, origin = until + len(edit.replacement), edit.char_end
        restored.append("".join([*out, body[place:]]))
    return "\n".join(restored)


def split(cleaned: Cleaned, document_unit: str) -> list[tuple[str | None, str]]:
    """Documents as (title, text). `work`: one; `chapter`: each heading starts one, and text before the first is one.

    Headings with no text of their own (a table of contents) give none.
    """
    if document_unit == "work" or not cleaned.headings:
        return [(None, cleaned.text)] if cleaned.lines else []
    titles = [None, *(heading.title for heading in cleaned.headings)]
    starts = [0, *(heading.before for heading in cleaned.headings)]
    parts = []
    for title, start, end in zip(titles, starts, [*starts[1:], len(cleaned.lines)], strict=True):
        if end > start:
            parts.append((title, "\n".join(line.text for line in cleaned.lines[start:end])))
    return parts


def _sweep(line: str, rules: Rules, at_start: bool) -> tuple[Rule | str, list[_Edit]]:
    """The rule that drops a line, or what is left of it; and the edits that led there."""
    edits = _whitespace(line)
    shortest, idle = len(line) + 1, 0
    # What gets shorter comes to an end by itself, however often it is rewritten; only the rest is counted.
    while idle < _MAX_EDITS:
        body, origins = _apply(line, edits)
        shortest, idle = min(shortest, len(body)), idle + 1 if len(body) >= shortest else 0
        found = next(((r, s) for r in rules.rules if (at_start or not r.at_start) and (s := r.spans(body))), None)
        if found is None:
            return body, edits
        rule, spans = found
        if rule.action == "drop_line":
            return rule, edits
        for start, end, replacement in reversed(spans):
            edits = _edited(edits, body, origins, _Edit(start, end, replacement, rule.name))
        edits = _trimmed(line, edits)
        left = _apply(line, edits)[0].strip()
        if not left or (rule.action == "cut_span" and _LEFTOVER.issuperset(left)):
            return rule, edits
    raise ConfigError(f"rules `{rules.name}` keep rewriting the line `{line[:80]}`\nhint: check rule `{rule.name}`")


def _whitespace(line: str) -> list[_Edit]:
    left, right = len(line) - len(line.lstrip()), len(line.rstrip())
    edits = [_Edit(0, left, "", OUTER_WHITESPACE), _Edit(right, len(line), "", OUTER_WHITESPACE)]
    return [edit for edit in edits if edit.end > edit.start]


def _apply(line: str, edits: list[_Edit]) -> tuple[str, list[tuple[int, int]]]:
    """An edited line, and for each of its characters the part of the decoded line that it stands for."""
    out: list[str] = []
    origins: list[tuple[int, int]] = []
    place = 0
    for edit in edits:
        out += [line[place : edit.start], edit.replacement]
        origins += [(i, i + 1) for i in range(place, edit.start)]
        origins += [(edit.start, edit.end)] * len(edit.replacement)
        place = edit.end
    origins += [(i, i + 1) for i in range(place, len(line))]
    return "".join([*out, line[place:]]), origins


def _edited(edits: list[_Edit], body: str, origins: list[tuple[int, int]], new: _Edit) -> list[_Edit]:
    """Edits with one more, whose place is in the edited line; those it covers or touches inside become part of it."""
    first, last = new.start, new.end
    replaced = {(edit.start, edit.end) for edit in edits if edit.replacement}
    while first > 0 and origins[first] in replaced and origins[first - 1] == origins[first]:
        first -= 1
    while last < len(body) and origins[last - 1] in replaced and origins[last] == origins[last - 1]:
        last += 1
    start, end = origins[first][0], origins[last - 1][1]
    replacement = body[first : new.start] + new.replacement + body[new.end : last]
    merged = [edit for edit in edits if edit.end <= start or edit.start >= end]
    return sorted([*merged, _Edit(start, end, replacement, new.rule)])


def _trimmed(line: str, edits: list[_Edit]) -> list[_Edit]:
    """Edits that also take whitespace which a cut has brought to either end of the line."""
    body, origins = _apply(line, edits)
    left, right = len(body) - len(body.lstrip()), len(body.rstrip())
    for start, end in [(right, len(body)), (0, left)]:
        if end > start and body.strip():
            edits = _edited(edits, body, origins, _Edit(start, end, "", OUTER_WHITESPACE))
    return edits


def _removal(line_no: int, line: str, edit: _Edit) -> Removal:
    action: Action = "rewrite" if edit.replacement else "cut_span"
    return Removal(line_no, action, edit.rule, line[edit.start : edit.end], edit.replacement, edit.start, edit.end)
