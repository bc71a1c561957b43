"""Texts to kept paragraphs and removals. Pure: the same text and rules give the same result anywhere.

Many texts are cleaned at once, as one Arrow column of lines: what every line needs (cutting it, its outer whitespace,
blank lines, whether it holds a literal of any rule) is done by Arrow and numpy; Python sees only lines that a rule may
touch (`sweep`) and what needs a line's neighbours (`context`, `headings`). A paragraph that a file breaks at a fixed
width is put together before rules see it. Every removal is kept as a place in a decoded line, so kept paragraphs and
removals together are the input again (`restore`), and cleaning cleaned text changes nothing.

L lines of all texts; M paragraphs (lines, or runs of wrapped lines); K kept paragraphs of one text.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raystyle.corpus import context, headings, removals, repeats
from raystyle.corpus.lines import layout_of, put_together, split_lines
from raystyle.corpus.rules import Rule, Rules
from raystyle.corpus.script import simplified_lines
from raystyle.corpus.sweep import OUTER_WHITESPACE, Edit, Swept, difference, plain, sweep

Places = NDArray[np.int64]
# What every line goes through before any rule, and what its neighbours decide after them.
BLANK_LINE = "blank_line"
HARD_WRAP = "hard_wrap"
PAGE_BREAK = "page_break"
CONTENTS = "table_of_contents"
FURNITURE = "chapter_furniture"
RECURRING = "recurring_line"
PROVEN_HEADING = "title_in_contents"
NUMBERED_HEADING = "numbered_heading"
PAGE_NUMBER = "number_inside_sentence"
TO_SIMPLIFIED = "traditional_to_simplified"
BUILT_IN = {
    BLANK_LINE: ("drop_line", "Lines without text; paragraphs are separated by one line break."),
    OUTER_WHITESPACE: ("cut_span", "Indents and trailing spaces; a paragraph starts with its first character."),
    HARD_WRAP: ("rewrite", "Line breaks at a fixed width, inside a paragraph."),
    PAGE_BREAK: ("rewrite", "The line break in a sentence that a page marker had torn in halves."),
    CONTENTS: ("drop_line", "A list of headings that are repeated over their chapters."),
    PROVEN_HEADING: ("drop_line", "A heading without a number, which the table of contents names."),
    NUMBERED_HEADING: ("drop_line", "A heading that its number alone proves, among those of the chapters around it."),
    PAGE_NUMBER: ("drop_line", "A number alone that stands inside a sentence, as the pages of a book do."),
    FURNITURE: ("drop_line", "A line that stands at the same place in most chapters."),
    RECURRING: ("drop_line", "A line that one work repeats hundreds of times, and that is no speech or story."),
    TO_SIMPLIFIED: ("rewrite", "Traditional characters in a work that is otherwise simplified."),
}
# A work of fewer lines is not asked whether it is wrapped at a width, nor for what needs many chapters.
MIN_LINES = 40
# A table's pair is applied only in a work where the odd character stands at least so often, and more often than the usual one.
MIN_OUTNUMBERING = 5
# A line that stands fewer times in a work is no candidate for what recurs; and a long one is a paragraph.
MIN_RECURRENCE, MAX_RECURRING_CHARS = 20, 80


class Heading(NamedTuple):
    """A chapter's heading, which was dropped; the chapter begins at character `start` of the cleaned text."""

    line_no: int
    title: str
    start: int


class Cleaned(NamedTuple):
    """One text, cleaned. `line_nos_K` are the lines (from 1) at which its paragraphs begin.

    `recurring` are lines that stand often in it, with their counts; `unmarked`, lines that read like no story, which are
    boilerplate if other works have them too. Characters do not count line breaks; `solid_in` leaves out outer whitespace.
    """

    text: str
    line_nos_K: NDArray[np.int64]
    headings: list[Heading]
    recurring: list[tuple[str, int]]
    unmarked: list[str]
    lines_in: int
    chars_in: int
    solid_in: int


def clean(text: str, rules: Rules, *, whole: bool = True, to_simplified: str = "never") -> tuple[Cleaned, pa.Table]:
    """One text; see `clean_all`."""
    (cleaned,), removals = clean_all([text], rules, whole=whole, to_simplified=to_simplified)
    return cleaned, removals.drop_columns("text_no")


def clean_all(
    texts: Sequence[str], rules: Rules, *, whole: bool = True, to_simplified: str = "never"
) -> tuple[list[Cleaned], pa.Table]:
    """Apply rules to texts with LF line ends.

    `whole` is False where they are pieces of works: then only what a line alone can tell applies. Returns what is left of each text, and the removals
    of all as a table: `text_no` and the columns of `parts.REMOVED` but its source.
    """
    batch = _Batch(texts, rules)
    for number in range(len(texts)):
        batch.rewrite_work(number, to_simplified)
    batch.sweep()
    return [batch.decide(number, whole) for number in range(len(texts))], batch.removed()


def restore(cleaned: Cleaned, removed: pa.Table) -> str:
    """The decoded text that a cleaned text and its removals came from."""
    by_line: dict[int, list[dict[str, Any]]] = {}
    for removal in removed.to_pylist():
        by_line.setdefault(removal["line_no"], []).append(removal)
    paragraphs = dict(zip(cleaned.line_nos_K.tolist(), cleaned.text.split("\n"), strict=True)) if cleaned.text else {}
    restored, body = [], ""
    for line_no in range(1, cleaned.lines_in + 1):
        body += paragraphs.get(line_no, "")
        out, origin, goes_on = [], 0, False
        for removal in by_line.get(line_no, ()):
            kept = removal["char_start"] - origin
            goes_on = removal["text"] == "\n"
            out += [body[:kept], "" if goes_on else removal["text"]]
            body, origin = body[kept + len(removal["replacement"]) :], removal["char_end"]
        if not goes_on and not (by_line.get(line_no) and by_line[line_no][0]["action"] == "drop_line"):
            out.append(body)
            body = ""
        restored.append("".join(out))
    return "\n".join(restored)


def split(cleaned: Cleaned, document_unit: str) -> list[tuple[str | None, str]]:
    """Documents as (title, text). `work`: one; `chapter`: each heading starts one, and text before the first is one.

    Headings with no text of their own (a table of contents) give none.
    """
    if document_unit == "work" or not cleaned.headings:
        return [(None, cleaned.text)] if cleaned.text else []
    return [(title, cleaned.text[start:end].rstrip("\n")) for title, start, end in chapters(cleaned)]


def chapters(cleaned: Cleaned) -> list[tuple[str | None, int, int]]:
    """The title of each chapter with text, and the characters where it starts and ends; the text before the first heading is one."""
    titles = [None, *(heading.title for heading in cleaned.headings)]
    starts = [0, *(heading.start for heading in cleaned.headings), len(cleaned.text)]
    return [(title, start, end) for title, start, end in zip(titles, starts, starts[1:], strict=False) if end > start]


class _Batch:
    """Texts on their way through cleaning: what has become of each paragraph so far."""

    def __init__(self, texts: Sequence[str], rules: Rules) -> None:
        self.texts, self.rules = texts, rules
        self.names = [*BUILT_IN, *(rule.name for rule in rules.rules)]
        self.codes = {name: code for code, name in enumerate(self.names)}
        self.interrupting = [self.codes[rule.name] for rule in rules.rules if rule.interrupts] + [
            self.codes[PAGE_NUMBER]
        ]
        # By code; the last one stands for -1, what is kept.
        self.interrupts_R = np.isin(np.arange(len(self.names) + 1), self.interrupting)
        self.lines = split_lines(texts)
        asked = MIN_LINES if HARD_WRAP not in rules.off else len(self.lines.raw) + 1
        self.paragraphs = put_together(self.lines, context.hard_wraps, asked)
        self.layout_M = layout_of(
            self.paragraphs.body, self.paragraphs.chars_M, self.lines.left_L[self.paragraphs.first_M]
        )
        self.text_M: list[str] = self.paragraphs.body.to_pylist()
        # The rule that dropped a paragraph, or -1.
        self.rule_M = np.where(self.paragraphs.chars_M == 0, self.codes[BLANK_LINE], -1).astype(np.int16)
        # Of edited paragraphs: the text as it was, and how it became what it is.
        self.edited: dict[int, tuple[str, list[Edit]]] = {}
        # Dropped headings, placed within their text.
        self.headings: dict[int, headings.Candidate] = {}
        self.candidates: dict[int, tuple[str, headings.Candidate]] = {}
        # Whether paragraphs are indented, by the first paragraph of their text.
        self.indents: dict[int, bool] = {}
        # The rule that took the line feed after a line, or -1.
        self.joined_L = np.where(self.paragraphs.wrapped_L, self.codes[HARD_WRAP], -1).astype(np.int16)

    def rewrite_work(self, number: int, to_simplified: str) -> None:
        """Rewrites that a work decides as a whole: odd characters that outnumber the usual ones, and its script."""
        text, first = self.texts[number], self.paragraphs.bounds_D[number]
        last = self.paragraphs.bounds_D[number + 1]
        for rule in self.rules.rules:
            if not rule.outnumbers:
                continue
            pairs: dict[str, str | int | None] = {
                odd: usual
                for odd, usual in rule.table
                if odd in text and (count := text.count(odd)) >= MIN_OUTNUMBERING and count > text.count(usual)
            }
            for m in range(first, last) if pairs else ():
                if any(odd in self.text_M[m] for odd in pairs):
                    self._rewrite(m, self.text_M[m].translate(str.maketrans(pairs)), rule.name)
        for index, line in simplified_lines(text, self.text_M[first:last], to_simplified):
            self._rewrite(first + index, line, TO_SIMPLIFIED)

    def _rewrite(self, m: int, wanted: str, rule: str) -> None:
        line = self.edited.get(m, (self.text_M[m], []))[0]
        self.text_M[m], self.edited[m] = wanted, (line, difference(line, wanted, rule))

    def sweep(self) -> None:
        """Every paragraph that a rule may touch, by itself."""
        candidates = self.rules.candidates(self.paragraphs.body, self.paragraphs.chars_M)
        candidates |= {m: self.rules.of(self.text_M[m]) for m in self.edited}
        # A site's line stands in every chapter: what was decided of it once holds each time.
        known: dict[str, Swept] = {}
        for m, found in sorted(candidates.items()):
            if self.rule_M[m] >= 0:
                continue
            if applicable := plain(found):
                before = self.text_M[m]
                if m in self.edited:
                    self._take(m, sweep(self.edited[m][0], applicable, self.rules, self.edited[m][1]))
                else:
                    if before not in known:
                        known[before] = sweep(before, applicable, self.rules)
                    self._take(m, known[before])
                if self.text_M[m] != before:
                    found = self.rules.of(self.text_M[m])
            if self.rule_M[m] < 0:
                weak = (rule for rule in found if rule.heading == "weak" and rule.spans(self.text_M[m]))
                if rule := next(weak, None):
                    self._candidate(m, rule, self.text_M[m])

    def _take(self, m: int, swept: Swept) -> None:
        """Note what became of a paragraph."""
        if swept.dropped:
            self.rule_M[m] = self.codes[swept.dropped.name]
            if swept.dropped.heading:
                self._candidate(m, swept.dropped, swept.text)
        elif swept.edits:
            line = self.edited[m][0] if m in self.edited else self.text_M[m]
            self.text_M[m], self.edited[m] = swept.text, (line, swept.edits)

    def _candidate(self, m: int, rule: Rule, text: str) -> None:
        named = rule.named(text)
        number = headings.parse_number(named["number"]) if "number" in named else None
        unit = headings.unit(named.get("unit", rule.name))
        self.candidates[m] = (rule.name, headings.Candidate(m, unit, number, rule.heading == "strong", named["title"]))

    def decide(self, number: int, whole: bool) -> Cleaned:
        """What a text's paragraphs decide together, and what is left of it."""
        first, last = (int(bound) for bound in self.paragraphs.bounds_D[number : number + 2])
        accepted = self._headings(first, last, whole)
        recurring: list[tuple[str, int]] = []
        unmarked: list[str] = []
        if whole and last - first >= MIN_LINES:
            self._drop_by_place(first, last, accepted)
            recurring, unmarked = self._drop_recurring(first, last)
        if whole:
            self._drop_top(first, last)
        kept_K = np.flatnonzero(self.rule_M[first:last] < 0) + first
        unbroken = self._mend_page_breaks(first, last)
        if whole and len(kept_K) >= MIN_LINES and HARD_WRAP not in self.rules.off:
            self._mend_wraps(kept_K, unbroken)
        parts = [self.text_M[m] for m in kept_K.tolist()]
        ends = ["" if m in unbroken else "\n" for m in kept_K.tolist()] if unbroken else ["\n"] * len(parts)
        joined = "".join(chain.from_iterable(zip(parts, ends, strict=True))) if unbroken else "\n".join(parts)
        text = joined.removesuffix("\n")
        line_L = slice(*self.lines.bounds_D[number : number + 2].tolist())
        begins_K = np.array([True, *map(bool, ends[:-1])][: len(parts)], bool)
        return Cleaned(
            text, self.paragraphs.first_M[kept_K][begins_K] - line_L.start + 1,
            self._chapters(first, last, kept_K, parts, ends, line_L.start), recurring, unmarked, line_L.stop - line_L.start,
            int(self.lines.raw_chars_L[line_L].sum()), int(self.lines.chars_L[line_L].sum()),
        )  # fmt: skip

    def _chapters(
        self, first: int, last: int, kept_K: Places, parts: list[str], ends: list[str], first_line: int
    ) -> list[Heading]:
        """The headings of a text, and where in what is left of it their chapters begin."""
        titled = [m for m in range(first, last) if m in self.headings] if self.headings else []
        if not titled:
            return []
        starts_K = np.cumsum([0, *(len(part) + len(end) for part, end in zip(parts, ends, strict=True))])
        places = starts_K[np.searchsorted(kept_K, titled)].tolist()
        return [
            Heading(int(self.paragraphs.first_M[m]) - first_line + 1, self.headings[m].title or self.text_M[m], place)
            for m, place in zip(titled, places, strict=True)
        ]

    def _headings(self, first: int, last: int, whole: bool) -> set[int]:
        """Drop the lines that are headings, weak ones only where they fit; their places in the text."""
        mine = (
            {m - first: self.candidates[m] for m in range(first, last) if m in self.candidates}
            if self.candidates
            else {}
        )
        long = whole and last - first >= MIN_LINES
        if not mine and not long:
            return set()
        layout = self._layout(first, last, mine)
        if long and NUMBERED_HEADING not in self.rules.off:
            for weak in headings.weak_candidates(layout, lambda index: self.text_M[first + index]):
                mine.setdefault(weak.line, (NUMBERED_HEADING, weak))
        found = {index: (rule, candidate._replace(line=index)) for index, (rule, candidate) in mine.items()}
        accepted = headings.accept([candidate for _, candidate in found.values()], layout.chars_L)
        for index in accepted:
            rule, candidate = found[index]
            self.rule_M[first + index] = self.codes[rule]
            self.headings[first + index] = candidate
        bare = [index for index in accepted if found[index][0] == NUMBERED_HEADING and not found[index][1].title]
        for index in bare:
            if self._stands_inside(first + index, first, last):
                del self.headings[first + index]
                self.rule_M[first + index] = self.codes[PAGE_NUMBER]
                accepted.remove(index)
        return accepted

    def _stands_inside(self, m: int, first: int, last: int) -> bool:
        """Whether a sentence runs through a line that is dropped."""
        before, after = self._around(m, first, last, {self.codes[BLANK_LINE]})
        return before >= first and after < last and self.rule_M[before] < 0 > self.rule_M[after] and self._go_on(before, after, first, last)  # fmt: skip

    def _around(self, m: int, first: int, last: int, passed: set[int]) -> tuple[int, int]:
        """The paragraphs before and after one, but for those that certain rules dropped; outside the text if there is none."""
        before, after = m - 1, m + 1
        while before >= first and self.rule_M[before] in passed:
            before -= 1
        while after < last and self.rule_M[after] in passed:
            after += 1
        return before, after

    def _go_on(self, before: int, after: int, first: int, last: int) -> bool:
        """Whether one paragraph is the first half, and another the second half, of a sentence."""
        if first not in self.indents:
            filled_M = self.paragraphs.chars_M[first:last] > 0
            indented = np.count_nonzero(self.layout_M.indent_L[first:last][filled_M])
            self.indents[first] = bool(2 * indented >= np.count_nonzero(filled_M))
        indent = bool(self.layout_M.indent_L[after]) if self.indents[first] else None
        return context.continues(self.text_M[before], self.text_M[after], indent)

    def _layout(self, first: int, last: int, seen: Iterable[int]) -> context.Layout:
        """A text's paragraphs; those that are dropped count as blank, but for headings, which `seen` names."""
        chars_M = np.where(self.rule_M[first:last] < 0, self.paragraphs.chars_M[first:last], 0)
        places = list(seen)
        chars_M[places] = self.paragraphs.chars_M[first:last][places]
        return context.Layout(chars_M, *(column[first:last] for column in self.layout_M[1:]))

    def _drop_by_place(self, first: int, last: int, here: set[int]) -> None:
        """Drop tables of contents and what stands at the same place in most chapters. `here` are the headings' places."""
        layout = self._layout(first, last, here)

        def line(index: int) -> str:
            return self.text_M[first + index]

        listed, proven = (
            repeats.contents(layout, line, here) if CONTENTS not in self.rules.off else (set[int](), set[int]())
        )
        for index in listed:
            self.headings.pop(first + index, None)
            self.rule_M[first + index] = self.codes[CONTENTS]
        for index in proven:
            self.headings[first + index] = headings.Candidate(index, "", None, True, line(index))
            self.rule_M[first + index] = self.codes[PROVEN_HEADING]
        known = [self.headings[m] for m in range(first, last) if m in self.headings] if self.headings else []
        for index in repeats.furniture(layout, line, known) if FURNITURE not in self.rules.off else ():
            if self.rule_M[first + index] < 0:
                self.rule_M[first + index] = self.codes[FURNITURE]

    def _drop_recurring(self, first: int, last: int) -> tuple[list[tuple[str, int]], list[str]]:
        """Drop lines that recur like boilerplate. Returns all that recur, with their counts, and the lines that would be
        boilerplate if other works had them too."""
        chars_M = self.paragraphs.chars_M[first:last]
        short = np.flatnonzero((self.rule_M[first:last] < 0) & (chars_M <= MAX_RECURRING_CHARS))
        counts = Counter([self.text_M[first + index] for index in short.tolist()])
        often = repeats.recurring((text, count) for text, count in counts.items() if count >= MIN_RECURRENCE)
        dropped = {found.text for found in often if found.drop and RECURRING not in self.rules.off}
        for index in short.tolist() if dropped else ():
            if self.text_M[first + index] in dropped:
                self.rule_M[first + index] = self.codes[RECURRING]
        plain = (text for text in counts if text[-1] not in repeats.TOLD and text not in dropped)
        unmarked = sorted(text for text in plain if repeats.is_boilerplate(text))
        return [(found.text, found.times) for found in often], unmarked

    def _drop_top(self, first: int, last: int) -> None:
        """Rules for lines above the first one that is kept."""
        for m in range(first, last):
            if self.rule_M[m] >= 0:
                continue
            at_start = [rule for rule in self.rules.of(self.text_M[m]) if rule.at_start]
            if at_start:
                line, edits = self.edited.get(m, (self.text_M[m], []))
                self._take(m, sweep(line, at_start, self.rules, edits))
            if self.rule_M[m] < 0:
                return

    def _mend_page_breaks(self, first: int, last: int) -> set[int]:
        """Paragraphs that go on behind a page marker: between the two stands nothing but such markers and blank lines."""
        unbroken: set[int] = set()
        passed = {self.codes[BLANK_LINE], *self.interrupting}
        if PAGE_BREAK in self.rules.off:
            return unbroken
        for m in np.flatnonzero(self.interrupts_R[self.rule_M[first:last]]) + first:
            before, after = self._around(int(m), first, last, passed)
            if before < first or after >= last or self.rule_M[before] >= 0 or self.rule_M[after] >= 0:
                continue
            if before not in unbroken and self._go_on(before, after, first, last) and self._is_clean(before, after):
                unbroken.add(before)
                self.joined_L[self._last_line(before)] = self.codes[PAGE_BREAK]
        return unbroken

    def _mend_wraps(self, kept_K: Places, unbroken: set[int]) -> None:
        """Join what reads as broken at a width now that headings and noise between are gone: cleaning once more would."""
        while True:
            whole_K = np.flatnonzero([m not in unbroken for m in [-1, *kept_K[:-1].tolist()]])
            starts = kept_K[whole_K]
            chars = np.add.reduceat([len(self.text_M[m]) for m in kept_K.tolist()], whole_K).astype(np.int32)
            ends = kept_K[np.append(whole_K[1:], len(kept_K)) - 1]
            layout = context.Layout(
                chars, np.zeros_like(chars), self.layout_M.first_L[starts], self.layout_M.last_L[ends]
            )
            broken_K = np.flatnonzero(context.hard_wraps(layout)[:-1])
            # Never across a heading: what stands behind it is another chapter.
            joins = [
                int(ends[k])
                for k in broken_K
                if not any(m in self.headings for m in range(ends[k], starts[k + 1]))
                and self._is_clean(int(ends[k]), int(starts[k + 1]))
            ]
            if not joins:
                return
            for m in joins:
                unbroken.add(m)
                self.joined_L[self._last_line(m)] = self.codes[HARD_WRAP]

    def _is_clean(self, before: int, after: int) -> bool:
        """Whether no rule would touch two halves put together: then they had better stay apart."""
        whole = self.text_M[before] + self.text_M[after]
        return not any(rule.spans(whole) for rule in plain(self.rules.of(whole)))

    def _last_line(self, m: int) -> int:
        """The last line of a paragraph that is not blank."""
        line = int(self.paragraphs.first_M[m + 1] if m + 1 < len(self.text_M) else len(self.joined_L)) - 1
        while self.lines.chars_L[line] == 0:
            line -= 1
        return line

    def removed(self) -> pa.Table:
        """What was removed from all texts."""
        paragraph_L = np.repeat(
            np.arange(len(self.text_M)), np.diff(np.append(self.paragraphs.first_M, len(self.joined_L)))
        )
        dropped_L = np.where(self.lines.chars_L > 0, self.rule_M[paragraph_L], self.codes[BLANK_LINE])
        spaced_L = self.paragraphs.spaced_L.copy()
        edits = []
        for m, (whole, changes) in self.edited.items():
            if self.rule_M[m] < 0:
                edits += self._places(m, whole, changes, spaced_L)
        return removals.table(
            self.lines, dropped_L, self.joined_L, spaced_L, edits, self.names, self.codes[OUTER_WHITESPACE]
        )

    def _places(
        self, m: int, whole: str, changes: Sequence[Edit], spaced_L: NDArray[np.bool_]
    ) -> list[removals.Edited]:
        """Edits of a paragraph as edits of its lines; one that reaches across line ends has a part in each."""
        edits = []
        last = self._last_line(m) + 1
        for change in changes:
            place, replacement = 0, change.replacement
            for line in range(int(self.paragraphs.first_M[m]), last):
                end = place + int(self.lines.chars_L[line])
                start, stop = max(change.start, place), min(change.end, end)
                if start < stop:
                    left = int(self.lines.left_L[line]) - place
                    text = whole[start:stop]
                    edits.append(
                        removals.Edited(line, start + left, stop + left, text, replacement, self.codes[change.rule])
                    )
                    replacement = ""
                place = end
                if self.paragraphs.spaced_L[line]:
                    if change.start <= place < change.end:  # the space for the line feed was cut as well
                        spaced_L[line] = False
                    place += 1
        return edits
