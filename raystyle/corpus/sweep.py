"""One line under the rules: which rule drops it, or what is left of it and by which edits.

The rules are tried in order; the first that applies drops the line or edits it, and then they are tried again on what is
left, until none applies: hence sweeping what was swept changes nothing. Every edit is kept as a place in the line as it
was, so it can be undone.
"""

import bisect
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from raystyle.corpus.rules import Rule, Rules
from raystyle.corpus.steps import OUTER_WHITESPACE
from raystyle.errors import ConfigError

# Brackets and separators that a cut leaves behind are noise too; dots and dashes may be all that someone says.
_LEFTOVER = frozenset(
    " \u3000\t()[]{}<>（）【】〔〕［］《》〈〉「」『』|｜/／\\＼_*＊·•,，、:：;；.。~～=＝+#＃@＠$＄%％^＾&＆\"'“”‘’-－`"
)
_MAX_EDITS = 200
# What is nested is taken one layer at a time, each in as long as the whole line takes. Nothing that anyone wrote has so many.
_MAX_LAYERS = 500


class Edit(NamedTuple):
    """The characters `start` to `end` of the line as it was became `replacement`."""

    start: int
    end: int
    replacement: str
    rule: str


class Swept(NamedTuple):
    """What is left of a line, and the edits that led there; `dropped` names the rule that took all of it."""

    text: str
    edits: list[Edit]
    dropped: Rule | None


# A rule, and where it applies in a line.
Found = tuple[Rule, list[tuple[int, int, str]]]


def sweep(
    line: str, rules: Sequence[Rule], all_rules: Rules, edits: Iterable[Edit] = (), found: Found | None = None
) -> Swept:
    """Apply rules to a line without outer whitespace.

    `rules` are those that may apply to it as it is; what an edit leaves is tried against `all_rules` again, but for those
    that wait for a context (`at_start`, weak headings). `edits` have been made before; `found` is what applies first.
    """
    edits = list(edits)
    body = text_of(line, edits)
    shortest, idle, layers = len(body) + 1, 0, 0
    # What gets shorter comes to an end by itself, however often it is rewritten; only the rest is counted.
    while idle < _MAX_EDITS:
        shortest, idle = min(shortest, len(body)), idle + 1 if len(body) >= shortest else 0
        found = found or next(((rule, spans) for rule in rules if (spans := rule.spans(body))), None)
        if found is None:
            return Swept(body, edits, None)
        rule, spans = found
        found = None
        layers += 1
        if rule.action == "drop_line" or layers > _MAX_LAYERS:
            return Swept(body, edits, rule)
        if edits:
            edits = _with(edits, body, _origins(line, edits), [Edit(*span, rule.name) for span in spans])
        else:
            edits = [Edit(*span, rule.name) for span in spans]
        body = text_of(line, edits)
        left = body.strip()
        if not left or (rule.action == "cut_span" and _LEFTOVER.issuperset(left)):
            return Swept(left, edits, rule)
        if len(left) != len(body):
            edits, body = _trimmed(line, edits, body), left
        rules = plain(all_rules.of(body))
    raise ConfigError(f"rules `{all_rules.name}` keep rewriting the line `{line[:80]}`\nhint: check rule `{rule.name}`")


def plain(rules: Iterable[Rule]) -> list[Rule]:
    """Rules that a line alone decides."""
    return [rule for rule in rules if not rule.at_start and not rule.outnumbers and rule.heading != "weak"]


def text_of(line: str, edits: Iterable[Edit]) -> str:
    """An edited line."""
    out, place = [], 0
    for edit in edits:
        out += [line[place : edit.start], edit.replacement]
        place = edit.end
    return "".join([*out, line[place:]])


def _origins(line: str, edits: Iterable[Edit]) -> list[tuple[int, int]]:
    """For each character of an edited line the part of the line as it was that it stands for."""
    origins: list[tuple[int, int]] = []
    place = 0
    for edit in edits:
        origins += [(i, i + 1) for i in range(place, edit.start)]
        origins += [(edit.start, edit.end)] * len(edit.replacement)
        place = edit.end
    return origins + [(i, i + 1) for i in range(place, len(line))]


def difference(line: str, wanted: str, rule: str) -> list[Edit]:
    """The one edit, as short as can be, that makes `wanted` of a line."""
    if line == wanted:
        return []
    start, shorter = 0, min(len(line), len(wanted))
    while start < shorter and line[start] == wanted[start]:
        start += 1
    end = 0
    while end < shorter - start and line[-1 - end] == wanted[-1 - end]:
        end += 1
    return [Edit(start, len(line) - end, wanted[start : len(wanted) - end], rule)]


def _with(edits: list[Edit], body: str, origins: list[tuple[int, int]], news: list[Edit]) -> list[Edit]:
    """Edits with more of them, whose places are in the edited line: all at once, but for those that touch a replacement."""
    replaced = {(edit.start, edit.end) for edit in edits if edit.replacement}
    touching = [new for new in news if origins[new.start] in replaced or origins[new.end - 1] in replaced]
    apart = [new for new in news if new not in touching] if touching else news
    placed = [new._replace(start=origins[new.start][0], end=origins[new.end - 1][1]) for new in apart]
    starts = [edit.start for edit in placed]

    def covered(edit: Edit) -> bool:
        before = bisect.bisect_right(starts, edit.start) - 1
        return before >= 0 and edit.start < placed[before].end

    edits = sorted([*(edit for edit in edits if not covered(edit)), *placed])
    for new in reversed(touching):
        edits = _edited(edits, body, origins, new)
    return edits


def _edited(edits: list[Edit], body: str, origins: list[tuple[int, int]], new: Edit) -> list[Edit]:
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
    return sorted([*merged, Edit(start, end, replacement, new.rule)])


def _trimmed(line: str, edits: list[Edit], body: str) -> list[Edit]:
    """Edits that also take whitespace which a cut has brought to either end of the line."""
    origins = _origins(line, edits)
    left, right = len(body) - len(body.lstrip()), len(body.rstrip())
    for start, end in [(right, len(body)), (0, left)]:
        if end > start:
            edits = _edited(edits, body, origins, Edit(start, end, "", OUTER_WHITESPACE))
    return edits
