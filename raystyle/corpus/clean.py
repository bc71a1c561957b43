"""Texts to kept paragraphs and removals. Pure: the same text and rules give the same result anywhere.

Many texts are cleaned at once, as one string: what every line needs (cutting it, its outer whitespace, blank lines,
whether it holds a literal of any rule) is done by numpy for all lines together; Python sees only lines that a rule may
touch (`sweep`) and what needs a line's neighbours (`context`, `headings`). A paragraph that a file breaks at a fixed
width is put together before rules see it. Every removal is kept as a place in a decoded line, so kept paragraphs and
removals together are the input again (`restore`), and cleaning cleaned text changes nothing.

L lines of all texts; M paragraphs (lines, or runs of wrapped lines); K kept paragraphs of one text.
"""

import bisect
import functools
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raystyle.corpus import context, headings, noise, removals, repeats
from raystyle.corpus.lines import Counts, Flags, Places, pieces_of, put_together, split_lines
from raystyle.corpus.noise import NOISE_LINE
from raystyle.corpus.rules import Expression, Rule, Rules
from raystyle.corpus.script import simplified_lines
from raystyle.corpus.sweep import OUTER_WHITESPACE, Edit, Swept, difference, plain, sweep

# What every line goes through before any rule, and what its neighbours decide after them.
BLANK_LINE = "blank_line"
HARD_WRAP = "hard_wrap"
PAGE_BREAK = "page_break"
CONTENTS = "table_of_contents"
FURNITURE = "chapter_furniture"
RECURRING = "recurring_line"
PROVEN_HEADING = "title_in_contents"
NUMBERED_HEADING = "numbered_heading"
SIGNED_HEADING = "signed_heading"
LONE_NUMBER = "lone_number"
WORK_TITLE = "title_of_work"
RUNNING_HEAD = "running_head"
TO_SIMPLIFIED = "traditional_to_simplified"
BUILT_IN = {
    BLANK_LINE: ("drop_line", "Lines without text; paragraphs are separated by one line break."),
    OUTER_WHITESPACE: ("cut_span", "Indents and trailing spaces; a paragraph starts with its first character."),
    HARD_WRAP: ("rewrite", "Line breaks at a fixed width, inside a paragraph."),
    PAGE_BREAK: ("rewrite", "The line break in a sentence that a page marker had torn in halves."),
    CONTENTS: ("drop_line", "A list of headings that are repeated over their chapters."),
    PROVEN_HEADING: ("drop_line", "A heading without a number, which the table of contents names."),
    NUMBERED_HEADING: ("drop_line", "A heading that its number alone proves, among those of the chapters around it."),
    SIGNED_HEADING: ("drop_line", "A title behind a sign that stands before titles alone, all through the work."),
    LONE_NUMBER: (
        "drop_line",
        "A number alone on its line, a page's or a section's; not one of several, or counted down.",
    ),
    WORK_TITLE: ("drop_line", "The name of the work, above what else stands in front of it."),
    RUNNING_HEAD: (
        "drop_line",
        "The head of a page: the same line again and again, amid sentences, or the work's name.",
    ),
    NOISE_LINE: (
        "drop_line",
        "A line that reads like what authors, sites and readers write, not like the work: by a model.",
    ),
    FURNITURE: ("drop_line", "A line that stands at the same place in most chapters."),
    RECURRING: ("drop_line", "A line that one work repeats hundreds of times, and that is no speech or story."),
    TO_SIMPLIFIED: ("rewrite", "Traditional characters in a work that is otherwise simplified."),
}
# A work of fewer lines is not asked whether it is wrapped at a width, nor for what needs many chapters.
MIN_LINES = 40
# A table's pair is applied only in a work where the odd character stands at least so often, and more often than the usual one.
MIN_OUTNUMBERING = 5
# From this share of its places on behind one and the same character, if not one of these, an odd character is part of a name.
NAME_SHARE = 0.5
NO_NAME = "你您我咱他她它谁这那哪的地得了着过一不很太是在有和与又都也就还才却便被把给对向从再只没冷平浅浓看扯"
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
    for number, text in enumerate(texts):
        batch.rewrite_work(number, text, to_simplified)
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


def _is_name(before: Counter[str]) -> bool:
    """Whether a character mostly stands behind one and the same other, a surname perhaps. Behind punctuation and words such as
    他 any verb stands."""
    (most, times), *_ = before.most_common(1)
    return times > NAME_SHARE * before.total() and "\u3400" <= most <= "\u9fff" and most not in NO_NAME


class _Batch:
    """Texts on their way through cleaning: what has become of each paragraph so far."""

    def __init__(self, texts: Sequence[str], rules: Rules) -> None:
        self.rules = rules
        self.names = [*BUILT_IN, *(rule.name for rule in rules.rules)]
        self.codes = {name: code for code, name in enumerate(self.names)}
        self.interrupting = [self.codes[rule.name] for rule in rules.rules if rule.interrupts] + [
            self.codes[LONE_NUMBER],
            self.codes[RUNNING_HEAD],
            self.codes[NOISE_LINE],
        ]
        # By code; the last one stands for -1, what is kept.
        self.interrupts_R = np.isin(np.arange(len(self.names) + 1), self.interrupting)
        # What each of them makes of a line for those beside it; again the last one is what is kept.
        self.beside_R = np.full(len(self.names) + 1, noise.NOISE)
        self.beside_R[[self.codes[rule.name] for rule in rules.rules if rule.heading]] = noise.HEADING
        self.beside_R[[self.codes[NUMBERED_HEADING], self.codes[SIGNED_HEADING], self.codes[PROVEN_HEADING]]] = (
            noise.HEADING
        )
        self.beside_R[-1] = noise.TEXT
        self.lines = split_lines(texts)
        asked = MIN_LINES if HARD_WRAP not in rules.off else len(self.lines.left_L) + 1
        self.paragraphs = put_together(self.lines, context.hard_wraps, asked)
        self.body = self.paragraphs.body
        self.bounds: list[int] = self.paragraphs.bounds_D.tolist()
        self.layout_M = self.body.layout(self.lines.left_L[self.paragraphs.first_M])
        # The rule that dropped a paragraph, or -1.
        self.rule_M = np.where(self.body.chars_I == 0, self.codes[BLANK_LINE], -1).astype(np.int16)
        # Edited paragraphs: what they have become, and how.
        self.edited: dict[int, tuple[str, list[Edit]]] = {}
        self.edited_M = np.zeros(len(self.rule_M), bool)
        # Lines that rules take for headings, by text; and dropped headings, placed within the text that is being decided.
        self.candidates: list[dict[int, tuple[str, headings.Candidate]]] = [{} for _ in texts]
        self.headings: dict[int, headings.Candidate] = {}
        self.rejected: set[int] = set()  # candidates of that text that are none
        self.halves: set[int] = set()  # paragraphs of that text that are one with the next or the last, so no heading
        # Whether paragraphs are indented, by the first paragraph of their text.
        self.indents: dict[int, bool] = {}
        # The rule that took the line feed after a line, or -1.
        self.joined_L = np.where(self.paragraphs.wrapped_L, self.codes[HARD_WRAP], -1).astype(np.int16)

    def text(self, m: int) -> str:
        """A paragraph as it is by now."""
        return self.edited[m][0] if m in self.edited else self.body.text(m)

    def texts(self, paragraph_K: Places) -> list[str]:
        """Paragraphs as they are by now."""
        texts = self.body.texts(paragraph_K)
        for k in np.flatnonzero(self.edited_M[paragraph_K]).tolist():
            texts[k] = self.edited[int(paragraph_K[k])][0]
        return texts

    def lengths(self, paragraph_K: Places) -> Counts:
        """The characters of paragraphs as they are by now."""
        chars_K = self.body.chars_I[paragraph_K]
        for k in np.flatnonzero(self.edited_M[paragraph_K]).tolist():
            chars_K[k] = len(self.edited[int(paragraph_K[k])][0])
        return chars_K

    def _edit(self, m: int, text: str, edits: list[Edit]) -> None:
        self.edited[m], self.edited_M[m] = (text, edits), True

    def rewrite_work(self, number: int, text: str, to_simplified: str) -> None:
        """Rewrites that a work decides as a whole: odd characters that outnumber the usual ones, and its script."""
        first, last = self.bounds[number : number + 2]
        for rule in self.rules.rules:
            if not rule.outnumbers:
                continue
            # By the pattern, which knows words that are rightly written with an odd character.
            odd_ones = rule.pattern.finditer(text) if any(odd in text for odd, _ in rule.table) else ()
            # Each odd character's places, by the character before.
            places: dict[str, Counter[str]] = {}
            for hit in odd_ones:
                places.setdefault(hit.group(), Counter())[text[max(0, hit.start() - 1) : hit.start()]] += 1
            pairs = {
                odd: usual
                for odd, usual in rule.table
                if odd in places
                and places[odd].total() >= MIN_OUTNUMBERING
                and places[odd].total() > text.count(usual)
                and not _is_name(places[odd])
            }
            for m in range(first, last) if pairs else ():
                if any(odd in self.text(m) for odd in pairs):
                    wanted = rule.pattern.compiled.sub(lambda hit: pairs.get(hit.group(), hit.group()), self.text(m))  # noqa: B023
                    self._rewrite(m, wanted, rule.name)
        for index, line in simplified_lines(text, map(self.text, range(first, last)), to_simplified):
            self._rewrite(first + index, line, TO_SIMPLIFIED)

    def _rewrite(self, m: int, wanted: str, rule: str) -> None:
        self._edit(m, wanted, difference(self.body.text(m), wanted, rule))

    def sweep(self) -> None:
        """Every paragraph that a rule may touch, by itself."""
        candidates = self.rules.candidates(self.body)
        candidates |= {m: self.rules.of(self.text(m)) for m in self.edited}
        # A site's line stands in every chapter: what was decided of it once holds each time.
        known: dict[str, Swept] = {}
        places = np.array(sorted(candidates), np.int64)
        places = places[self.rule_M[places] < 0]
        # Lines with the same literals share one list of rules: those that a line alone decides, and the weak ones.
        kinds = {
            id(rules): (plain(rules), [rule for rule in rules if rule.heading == "weak"])
            for rules in candidates.values()
        }
        for m, text in zip(places.tolist(), self.texts(places), strict=True):
            applicable, weak = kinds[id(candidates[m])]
            if m in self.edited:
                swept = sweep(self.body.text(m), applicable, self.rules, self.edited[m][1])
            elif text in known:
                swept = known[text]
            else:
                swept = known[text] = sweep(text, applicable, self.rules)
            self._take(m, swept)
            if swept.dropped:
                continue
            if swept.text != text:
                text, weak = swept.text, self.rules.weak
            for rule in weak:
                if rule.spans(text) and rule.may_apply(text):
                    self._candidate(m, rule, text)
                    break

    def _take(self, m: int, swept: Swept) -> None:
        """Note what became of a paragraph."""
        if swept.dropped:
            self.rule_M[m] = self.codes[swept.dropped.name]
            if swept.dropped.heading:
                self._candidate(m, swept.dropped, swept.text)
        elif swept.edits:
            self._edit(m, swept.text, swept.edits)

    def _candidate(self, m: int, rule: Rule, text: str) -> None:
        named = rule.named(text)
        number = headings.parse_number(named["number"]) if "number" in named else None
        unit = headings.unit(named.get("unit", rule.name))
        candidate = headings.Candidate(m, unit, number, rule.heading == "strong", named["title"])
        if rule.heading == "weak" and (own := headings.own_unit(m, text)) and own.unit[:2] != f"{unit} ":
            candidate = own  # 第一封信　归途: the unit is 封信, not 封
        self.candidates[bisect.bisect_right(self.bounds, m) - 1][m] = rule.name, candidate

    def decide(self, number: int, whole: bool) -> Cleaned:
        """What a text's paragraphs decide together, and what is left of it."""
        first, last = self.bounds[number : number + 2]
        line_L = slice(*self.lines.bounds_D[number : number + 2].tolist())
        wrapped_L = self.joined_L[line_L].copy()
        self.headings, self.halves = {}, set()
        # Once lines that read like noise are gone, what stands at the text's top, or at one place of its chapters, may be seen;
        # and among headings' numbers, those between which another stood that was none.
        while True:
            accepted = self._headings(number, first, last, whole)
            recurring: list[tuple[str, int]] = []
            unmarked: list[str] = []
            if whole and last - first >= MIN_LINES:
                self._drop_by_place(first, last, accepted)
                recurring, unmarked = self._drop_recurring(first, last)
            if whole:
                self._drop_lone_numbers(first, last)
            titles = self._drop_top(number, first, last) if whole else []
            self._cut_running_heads(first, last, titles)
            # A page's head that goes lets halves of a sentence be joined, and longer paragraphs tell others.
            while True:
                self.joined_L[line_L] = wrapped_L
                kept_K = np.flatnonzero(self.rule_M[first:last] < 0) + first
                if whole and self._drop_running_heads(first, last, kept_K, set(), titles):
                    continue
                unbroken = self._mend_page_breaks(first, last)
                if whole and len(kept_K) >= MIN_LINES and HARD_WRAP not in self.rules.off:
                    self._mend_wraps(kept_K, unbroken)
                if not whole or not self._drop_running_heads(first, last, kept_K, unbroken, titles):
                    break
            noisy = whole and self._drop_noise(first, last, kept_K, unbroken)
            goes_on_K = np.isin(kept_K, list(unbroken))
            self.halves |= set(kept_K[goes_on_K | np.append(False, goes_on_K)[:-1]].tolist())
            if not noisy and not any(self.rule_M[m] >= 0 or m in self.halves for m in self.rejected):
                break
            mine = self.candidates[number]
            self.candidates[number] = {
                m: mine[m] for m in mine if m in self.headings or (self.rule_M[m] < 0 and m not in self.halves)
            }
        parts = self.texts(kept_K)
        for k in np.flatnonzero(goes_on_K)[::-1].tolist():
            parts[k] += parts.pop(k + 1)
        begins_K = ~np.append(False, goes_on_K)[:-1]
        return Cleaned(
            "\n".join(parts), self.paragraphs.first_M[kept_K][begins_K] - line_L.start + 1,
            self._chapters(kept_K, goes_on_K, line_L.start), recurring, unmarked, line_L.stop - line_L.start,
            int(self.lines.raw.chars_I[line_L].sum()), int(self.lines.body.chars_I[line_L].sum()),
        )  # fmt: skip

    def _chapters(self, kept_K: Places, goes_on_K: Flags, first_line: int) -> list[Heading]:
        """The headings of a text, and where in what is left of it their chapters begin."""
        titled = sorted(self.headings)
        if not titled:
            return []
        starts_K = np.cumsum(np.append(0, self.lengths(kept_K) + ~goes_on_K), dtype=np.int64)
        places = starts_K[np.searchsorted(kept_K, titled)].tolist()
        return [
            Heading(int(self.paragraphs.first_M[m]) - first_line + 1, self.headings[m].title or self.text(m), place)
            for m, place in zip(titled, places, strict=True)
        ]

    def _headings(self, number: int, first: int, last: int, whole: bool) -> set[int]:
        """Drop the lines that are headings, weak ones only where they fit; their places in the text."""
        self.rejected = set()
        mine = {m - first: found for m, found in self.candidates[number].items() if whole or found[1].strong}
        long = whole and last - first >= MIN_LINES
        if not mine and not long:
            return set()
        layout = self._layout(first, last, mine)
        if long and NUMBERED_HEADING not in self.rules.off:
            others_M = layout.chars_L.copy()
            others_M[[*mine, *(m - first for m in self.halves)]] = 0
            others = layout._replace(chars_L=others_M)
            for weak in headings.weak_candidates(others, lambda index: self.text(first + index)):
                mine[weak.line] = NUMBERED_HEADING, weak
            for signed in headings.signed_titles(others, lambda index: self.text(first + index)):
                mine[signed.line] = SIGNED_HEADING, signed
        found = {index: (rule, candidate._replace(line=index)) for index, (rule, candidate) in mine.items()}
        accepted = headings.accept([candidate for _, candidate in found.values()], layout.chars_L)
        for index in accepted:
            rule, candidate = found[index]
            self.rule_M[first + index] = self.codes[rule]
            self.headings[first + index] = candidate
        self.rejected = {first + index for index in found if self.rule_M[first + index] < 0}
        bare = [index for index in accepted if found[index][0] == NUMBERED_HEADING and not found[index][1].title]
        for index in bare if LONE_NUMBER not in self.rules.off else ():
            if self._stands_inside(first + index, first, last):
                del self.headings[first + index]
                self.rule_M[first + index] = self.codes[LONE_NUMBER]
                accepted.remove(index)
        for index in sorted(accepted) if whole else ():
            self._drop_repeated_title(first + index, last, found[index][1])
        return accepted

    def _drop_repeated_title(self, m: int, last: int, heading: headings.Candidate) -> None:
        """Drop the line below a heading that is its title, once more or for the first time."""
        below = next((b for b in range(m + 1, last) if self.rule_M[b] < 0 or b in self.headings), last)
        if below < last and below not in self.headings:
            text = self.text(below)
            if headings.repeats_title(heading, text) or headings.completes(heading, text):
                self.rule_M[below] = self.rule_M[m]

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
            filled_M = self.body.chars_I[first:last] > 0
            indented = np.count_nonzero(self.layout_M.indent_L[first:last][filled_M])
            self.indents[first] = bool(2 * indented >= np.count_nonzero(filled_M))
        indent = bool(self.layout_M.indent_L[after]) if self.indents[first] else None
        return context.continues(self.text(before), self.text(after), indent)

    def _layout(self, first: int, last: int, seen: Iterable[int]) -> context.Layout:
        """A text's paragraphs; those that are dropped count as blank, but for headings, which `seen` names."""
        chars_M = np.where(self.rule_M[first:last] < 0, self.body.chars_I[first:last], 0)
        places = list(seen)
        chars_M[places] = self.body.chars_I[first:last][places]
        return context.Layout(chars_M, *(column[first:last] for column in self.layout_M[1:]))

    def _drop_by_place(self, first: int, last: int, here: set[int]) -> None:
        """Drop tables of contents and what stands at the same place in most chapters. `here` are the headings' places."""
        layout = self._layout(first, last, here)

        def line(index: int) -> str:
            return self.text(first + index)

        listed, proven = (
            repeats.contents(layout, line, here) if CONTENTS not in self.rules.off else (set[int](), set[int]())
        )
        for index in listed:
            self.headings.pop(first + index, None)
            self.rule_M[first + index] = self.codes[CONTENTS]
        for index in proven:
            self.headings[first + index] = headings.Candidate(index, "", None, True, line(index))
            self.rule_M[first + index] = self.codes[PROVEN_HEADING]
        known = [self.headings[m] for m in sorted(self.headings)]
        for index in repeats.furniture(layout, line, known) if FURNITURE not in self.rules.off else ():
            if self.rule_M[first + index] < 0:
                self.rule_M[first + index] = self.codes[FURNITURE]

    def _drop_recurring(self, first: int, last: int) -> tuple[list[tuple[str, int]], list[str]]:
        """Drop lines that recur like boilerplate. Returns all that recur, with their counts, and the lines that would be
        boilerplate if other works had them too."""
        chars_M = self.body.chars_I[first:last]
        short_K = np.flatnonzero((self.rule_M[first:last] < 0) & (chars_M <= MAX_RECURRING_CHARS)) + first
        often_K = short_K[self._may_recur(short_K)]
        counts = Counter(self.texts(often_K))
        often = repeats.recurring((text, count) for text, count in counts.items() if count >= MIN_RECURRENCE)
        dropped = {found.text for found in often if found.drop and RECURRING not in self.rules.off}
        for m in often_K.tolist() if dropped else ():
            if self.text(m) in dropped:
                self.rule_M[m] = self.codes[RECURRING]
        untold_K = short_K[self.edited_M[short_K] | ~repeats.told(self.layout_M.last_L[short_K])]
        plain = (text for text in set(self.texts(untold_K)) if text not in dropped and text[-1] not in repeats.TOLD)
        unmarked = sorted(text for text in plain if repeats.is_boilerplate(text))
        return [(found.text, found.times) for found in often], unmarked

    def _may_recur(self, short_K: Places) -> Flags:
        """Which of some paragraphs have the same first, middle and last character as so many others that they may recur."""
        middle_K = self.body.codes_C[self.body.start_I[short_K] + self.body.chars_I[short_K] // 2].astype(np.int64)
        first_K, last_K = (column[short_K].astype(np.int64) for column in self.layout_M[2:])
        key_K = first_K << 42 | middle_K << 21 | last_K
        for k in np.flatnonzero(self.edited_M[short_K]).tolist():
            text = self.edited[int(short_K[k])][0]
            key_K[k] = ord(text[0]) << 42 | ord(text[len(text) // 2]) << 21 | ord(text[-1])
        _, inverse_K, counts = np.unique(key_K, return_inverse=True, return_counts=True)
        return counts[inverse_K] >= MIN_RECURRENCE

    def _drop_lone_numbers(self, first: int, last: int) -> None:
        """Drop lines that are a number and nothing else."""
        if LONE_NUMBER in self.rules.off:
            return
        layout = context.Layout(*(column[first:last] for column in (self.body.chars_I, *self.layout_M[1:])))
        found = context.lone_numbers(layout, lambda i: self.text(first + i), lambda i: self.rule_M[first + i] < 0)
        self.rule_M[[first + index for index in found]] = self.codes[LONE_NUMBER]

    def _drop_top(self, number: int, first: int, last: int) -> list[str]:
        """Rules for lines above the first one that is kept, a heading that opens the text, and the work's name. Returns
        the lines that may be that name."""
        titles: list[str] = []
        for m in range(first, last):
            if self.rule_M[m] >= 0:
                titles += filter(None, [context.named_work(self.body.text(m))])
                if self.rule_M[m] in (self.codes[NOISE_LINE], self.codes[WORK_TITLE]):
                    titles += filter(context.is_title, [context.without_part(self.body.text(m))])
                continue
            weak = self.candidates[number].get(m)
            if weak and headings.opens(weak[1], self.text(m)) and np.any(self.rule_M[m + 1 : last] < 0):
                self.rule_M[m] = self.codes[weak[0]]
                self.headings[m] = weak[1]._replace(line=m - first)
                continue
            at_start = [rule for rule in self.rules.of(self.text(m)) if rule.at_start]
            if at_start:
                edits = self.edited[m][1] if m in self.edited else []
                self._take(m, sweep(self.body.text(m), at_start, self.rules, edits))
            if self.rule_M[m] < 0 and WORK_TITLE not in self.rules.off and self._is_title(m, last):
                self.rule_M[m] = self.codes[WORK_TITLE]
                titles.append(context.without_part(self.text(m)))
            if self.rule_M[m] < 0:
                return titles
            titles += filter(None, [context.named_work(self.body.text(m))])
        return titles

    def _is_title(self, m: int, last: int) -> bool:
        """Whether one of the first lines is the work's name: next to it stands what was dropped, or one more such line and
        then that; and behind it there is text. More lines of that shape are verse."""
        seen = 0
        for below in range(m, last):
            if self.rule_M[below] == self.codes[BLANK_LINE]:
                continue
            if seen and self.rule_M[below] >= 0:
                return bool(np.any(self.rule_M[below + 1 : last] < 0))
            seen += 1
            if seen > 2 or not context.is_title(self.text(below)):
                return False
        return False

    def _cut_running_heads(self, first: int, last: int, titles: Sequence[str]) -> None:
        """Cut the heads of pages out of paragraphs that they stand in."""
        pattern = repeats.glued_heads(titles) if titles and RUNNING_HEAD not in self.rules.off else None
        if not pattern:
            return
        rule = Rule(RUNNING_HEAD, *BUILT_IN[RUNNING_HEAD][1:], "cut_span", Expression(pattern.pattern), ())
        kept_M = self.rule_M[first:last] < 0
        # They have the number of a page.
        asked_K = np.flatnonzero(kept_M & (self._numbered_M[first:last] | self.edited_M[first:last])) + first
        for m, text in zip(asked_K.tolist(), self.texts(asked_K), strict=True):
            if pattern.search(text):
                edits = self.edited[m][1] if m in self.edited else []
                self._take(m, sweep(self.body.text(m), [rule], self.rules, edits))

    def _drop_running_heads(
        self, first: int, last: int, kept_K: Places, unbroken: set[int], titles: Sequence[str]
    ) -> bool:
        """Drop the heads of pages among paragraphs as they are joined by now. Whether there were any."""
        if not len(kept_K) or RUNNING_HEAD in self.rules.off:
            return False
        whole_K, layout = self._joined(kept_K, unbroken)
        ends = [*whole_K[1:].tolist(), len(kept_K)]

        def pieces(index: int) -> Places:
            return kept_K[whole_K[index] : ends[index]]

        above_K, below_K = self._beside(first, last, kept_K)
        marked_N = (
            self.interrupts_R[above_K[whole_K]] | self.interrupts_R[below_K[np.append(whole_K[1:], len(kept_K)) - 1]]
        )
        heads = repeats.running_heads(layout, lambda index: "".join(self.texts(pieces(index))), titles, marked_N)
        for index in heads:
            self.rule_M[pieces(index)] = self.codes[RUNNING_HEAD]
        return bool(heads)

    def _drop_noise(self, first: int, last: int, kept_K: Places, unbroken: set[int]) -> bool:
        """Drop paragraphs, as they are joined by now, that read like noise. Whether there were any."""
        if not len(kept_K) or NOISE_LINE in self.rules.off:
            return False
        whole_K, layout = self._joined(kept_K, unbroken)
        ends = np.append(whole_K[1:], len(kept_K))
        # Most paragraphs are as they were, and all of those can be judged together.
        own_N = self._noise_M[kept_K[whole_K]]
        changed_N = np.flatnonzero((ends - whole_K > 1) | self.edited_M[kept_K[whole_K]])
        changed = ["".join(self.texts(kept_K[whole_K[n] : ends[n]])) for n in changed_N.tolist()]
        own_N[changed_N] = noise.load().scores(pieces_of(changed))
        above_K, below_K = self._beside(first, last, kept_K)
        above_N, below_N = self.beside_R[above_K[whole_K]], self.beside_R[below_K[ends - 1]]
        found = noise.noise_lines(noise.load(), own_N, layout.chars_L, above_N, below_N)
        for n in np.flatnonzero(found).tolist():
            self.rule_M[kept_K[whole_K[n] : ends[n]]] = self.codes[NOISE_LINE]
        return bool(found.any())

    def _beside(self, first: int, last: int, kept_K: Places) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
        """The rules that dropped what stands above and below kept paragraphs, blank lines aside; -1 where that is kept or
        nothing."""
        filled_I = np.flatnonzero(self.rule_M[first:last] != self.codes[BLANK_LINE]) + first
        rule_I = np.concatenate([[-1], self.rule_M[filled_I], [-1]]).astype(np.int16)
        place_K = np.searchsorted(filled_I, kept_K)
        return rule_I[place_K], rule_I[place_K + 2]

    @functools.cached_property
    def _noise_M(self) -> NDArray[np.float64]:
        """How much each paragraph read like noise before it was edited."""
        return noise.load().scores(self.body)

    @functools.cached_property
    def _numbered_M(self) -> Flags:
        """Which paragraphs held a digit before they were edited."""
        codes_C, numbered_M = self.body.codes_C, np.zeros(len(self.rule_M), bool)
        # Codes are unsigned: below the first digit they wrap round to large ones.
        digit_C = (codes_C - ord("0") < 10) | (codes_C - ord("０") < 10)
        numbered_M[np.searchsorted(self.body.start_I, np.flatnonzero(digit_C), "right") - 1] = True
        return numbered_M

    def _joined(self, kept_K: Places, unbroken: set[int]) -> tuple[Places, context.Layout]:
        """Kept paragraphs, those that go on in the next as one: where among them each begins, and their layout."""
        whole_K = np.flatnonzero(~np.append(False, np.isin(kept_K[:-1], list(unbroken))))
        chars = np.add.reduceat(self.lengths(kept_K), whole_K, dtype=np.int32)
        starts, ends = kept_K[whole_K], kept_K[np.append(whole_K[1:], len(kept_K)) - 1]
        first, last = self.layout_M.first_L[starts], self.layout_M.last_L[ends]
        return whole_K, context.Layout(chars, np.zeros_like(chars), first, last)

    def _mend_page_breaks(self, first: int, last: int) -> set[int]:
        """Paragraphs that go on behind a page marker: between the two stands nothing but such markers and blank lines."""
        unbroken: set[int] = set()
        if PAGE_BREAK in self.rules.off:
            return unbroken
        here_M = np.arange(first, last)
        solid_M = ~np.isin(self.rule_M[first:last], [self.codes[BLANK_LINE], *self.interrupting])
        before_M = np.maximum.accumulate(np.where(solid_M, here_M, first - 1))
        after_M = np.minimum.accumulate(np.where(solid_M, here_M, last)[::-1])[::-1]
        places_M = np.flatnonzero(self.interrupts_R[self.rule_M[first:last]])
        for before, after in dict.fromkeys(zip(before_M[places_M].tolist(), after_M[places_M].tolist(), strict=True)):
            if before < first or after >= last or self.rule_M[before] >= 0 or self.rule_M[after] >= 0:
                continue
            if self._go_on(before, after, first, last) and self._is_clean(before, after):
                unbroken.add(before)
                self.joined_L[self._last_line(before)] = self.codes[PAGE_BREAK]
        return unbroken

    def _mend_wraps(self, kept_K: Places, unbroken: set[int]) -> None:
        """Join what reads as broken at a width now that headings and noise between are gone: cleaning once more would."""
        while True:
            whole_K, layout = self._joined(kept_K, unbroken)
            starts, ends = kept_K[whole_K], kept_K[np.append(whole_K[1:], len(kept_K)) - 1]
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
        """Whether no rule would touch two halves put together, nor take them for a heading: else they had better stay apart."""
        whole = self.text(before) + self.text(after)
        if headings.weak_candidate(before, whole):
            return False
        return not any(rule.spans(whole) for rule in self.rules.of(whole) if not rule.at_start and not rule.outnumbers)

    def _last_line(self, m: int) -> int:
        """The last line of a paragraph that is not blank."""
        line = int(self.paragraphs.first_M[m + 1] if m + 1 < len(self.rule_M) else len(self.joined_L)) - 1
        while self.lines.body.chars_I[line] == 0:
            line -= 1
        return line

    def removed(self) -> pa.Table:
        """What was removed from all texts."""
        paragraph_L = np.repeat(
            np.arange(len(self.rule_M)), np.diff(np.append(self.paragraphs.first_M, len(self.joined_L)))
        )
        dropped_L = np.where(self.lines.body.chars_I > 0, self.rule_M[paragraph_L], self.codes[BLANK_LINE])
        spaced_L = self.paragraphs.spaced_L.copy()
        edits = []
        for m, (_, changes) in self.edited.items():
            if self.rule_M[m] < 0:
                edits += self._places(m, changes, spaced_L)
        return removals.table(
            self.lines, dropped_L, self.joined_L, spaced_L, edits, self.names, self.codes[OUTER_WHITESPACE]
        )

    def _places(self, m: int, changes: Sequence[Edit], spaced_L: NDArray[np.bool_]) -> list[removals.Edited]:
        """Edits of a paragraph as edits of its lines; one that reaches across line ends has a part in each."""
        edits = []
        whole, last = self.body.text(m), self._last_line(m) + 1
        for change in changes:
            place, replacement = 0, change.replacement
            for line in range(int(self.paragraphs.first_M[m]), last):
                end = place + int(self.lines.body.chars_I[line])
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
