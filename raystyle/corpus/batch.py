"""Texts on their way through cleaning, as one: what has become of each paragraph, and what each shows by itself.

What every line needs (cutting it, its outer whitespace, blank lines, whether it holds a literal of any rule) is done by
numpy for all lines together; Python sees only those that a rule may touch. A paragraph that a file breaks at a fixed
width is put together before rules see it. What a line's neighbours tell is asked later, of one text at a time (`work`).

L lines of all texts; M paragraphs (lines, or runs of wrapped lines); K some of them; R rules and steps.
"""

import bisect
import functools
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raystyle.corpus import context, headings, insets, noise, removals, steps
from raystyle.corpus.lines import Counts, Flags, Places, pieces_of, put_together, split_lines
from raystyle.corpus.rules import Expression, Rule, Rules
from raystyle.corpus.script import simplified_lines
from raystyle.corpus.sweep import Edit, Swept, difference, plain, sweep

# A work of fewer lines is not asked whether it is wrapped at a width, nor for what needs many chapters.
MIN_LINES = 40
# A table's pair is applied only in a work where the odd character stands at least so often, and more often than the usual one.
MIN_OUTNUMBERING = 5
# From this share of its places on behind one and the same character, if not one of these, an odd character is part of a name.
NAME_SHARE = 0.5
NO_NAME = "你您我咱他她它谁这那哪的地得了着过一不很太是在有和与又都也就还才却便被把给对向从再只没冷平浅浓看扯"
KEPT = -1
_INSET = Rule(steps.NOISE_INSET, steps.BUILT_IN[steps.NOISE_INSET][1], "cut_span", Expression("(?!)"), ())


class Batch:
    """What has become of each paragraph of some texts so far."""

    def __init__(self, texts: Sequence[str], rules: Rules) -> None:
        self.rules = rules
        self.names = [*steps.BUILT_IN, *(rule.name for rule in rules.rules)]
        self.codes = {name: code for code, name in enumerate(self.names)}
        # Which may stand inside a sentence. By code; the last one stands for KEPT.
        self.interrupts_R = np.zeros(len(self.names) + 1, bool)
        self.interrupts_R[[self.codes[rule.name] for rule in rules.rules if rule.interrupts]] = True
        own = [steps.LONE_NUMBER, steps.RUNNING_HEAD, steps.NOISE_LINE]
        self.interrupts_R[[self.codes[name] for name in own]] = True
        # What each of them makes of a line for those beside it; again the last one is what is kept.
        self.beside_R = np.full(len(self.names) + 1, noise.NOISE)
        own = [steps.NUMBERED_HEADING, steps.SIGNED_HEADING, steps.PROVEN_HEADING]
        named = [*(rule.name for rule in rules.rules if rule.heading), *own]
        self.beside_R[[self.codes[name] for name in named]] = noise.HEADING
        self.beside_R[KEPT] = noise.TEXT
        self.lines = split_lines(texts)
        asked = MIN_LINES if steps.HARD_WRAP not in rules.off else len(self.lines.left_L) + 1
        self.paragraphs = put_together(self.lines, context.hard_wraps, asked)
        self.body = self.paragraphs.body
        self.bounds: list[int] = self.paragraphs.bounds_D.tolist()
        # Paragraphs as they are by now, but for their indents.
        layout = self.body.layout(self.lines.left_L[self.paragraphs.first_M])
        self.layout_M = layout._replace(chars_L=layout.chars_L.copy())
        # What dropped a paragraph, or KEPT.
        self.rule_M = np.where(self.body.chars_I == 0, self.codes[steps.BLANK_LINE], KEPT).astype(np.int16)
        # Edited paragraphs: what they have become, and how.
        self.edited: dict[int, tuple[str, list[Edit]]] = {}
        self.edited_M = np.zeros(len(self.rule_M), bool)
        # Lines that rules take for headings, by text.
        self.candidates: list[dict[int, tuple[str, headings.Candidate]]] = [{} for _ in texts]
        # What took the line feed after a line, or KEPT.
        self.joined_L = np.where(self.paragraphs.wrapped_L, self.codes[steps.HARD_WRAP], KEPT).astype(np.int16)

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
        return self.layout_M.chars_L[paragraph_K]

    def rewrite(self, number: int, text: str, to_simplified: str) -> None:
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
            self._rewrite(first + index, line, steps.TO_SIMPLIFIED)

    def _rewrite(self, m: int, wanted: str, rule: str) -> None:
        self._edit(m, wanted, difference(self.body.text(m), wanted, rule))

    def _edit(self, m: int, text: str, edits: list[Edit]) -> None:
        self.edited[m], self.edited_M[m] = (text, edits), True
        self.layout_M.chars_L[m] = len(text)
        self.layout_M.first_L[m], self.layout_M.last_L[m] = (ord(text[0]), ord(text[-1])) if text else (0, 0)

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
            if not swept.dropped:
                self._find_heading(m, swept.text, weak if swept.text == text else self.rules.weak)
        self._cut_insets(np.flatnonzero(self.rule_M < 0))

    def sweep_again(self, m: int, rules: Sequence[Rule]) -> None:
        """A paragraph under rules that had to wait for its neighbours."""
        edits = self.edited[m][1] if m in self.edited else []
        self._take(m, sweep(self.body.text(m), rules, self.rules, edits))
        self._cut_insets(np.array([m]))

    def _cut_insets(self, paragraph_K: Places) -> None:
        """Cut noise out of sentences, and sweep what is left, until there is no more."""
        while steps.NOISE_INSET not in self.rules.off and len(paragraph_K):
            paragraph_K = paragraph_K[self.rule_M[paragraph_K] < 0]
            as_were_K = paragraph_K[~self.edited_M[paragraph_K]]
            edited = paragraph_K[self.edited_M[paragraph_K]].tolist()
            changed = pieces_of([self.edited[m][0] for m in edited])
            found = insets.find(insets.load(), self.body, as_were_K[self._odd_M[as_were_K]])
            found |= {
                edited[n]: span
                for n, span in insets.find(insets.load(), changed, np.flatnonzero(insets.odd(changed))).items()
            }
            # Where what is left reads like noise, too, all of it is.
            left = [text[:first] + text[last:] for m, (first, last) in found.items() if (text := self.text(m))]
            noisy_N = noise.load().scores(pieces_of(left)) > 0
            places = [m for m, noisy in zip(found, noisy_N.tolist(), strict=True) if not noisy]
            for m in places:
                edits = self.edited[m][1] if m in self.edited else []
                swept = sweep(self.body.text(m), (), self.rules, edits, (_INSET, [(*found[m], "")]))
                self.candidates[self._number(m)].pop(m, None)
                self._take(m, swept)
                if not swept.dropped:
                    self._find_heading(m, swept.text, self.rules.weak)
            paragraph_K = np.array(places, np.int64)

    @functools.cached_property
    def _odd_M(self) -> Flags:
        """Which paragraphs had a character that prose hardly has before they were edited."""
        return insets.odd(self.body)

    def _find_heading(self, m: int, text: str, weak: Sequence[Rule]) -> None:
        """Note a paragraph that one of the rules which know a heading only by its number takes for one."""
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
        self.candidates[self._number(m)][m] = rule.name, candidate

    def _number(self, m: int) -> int:
        """The text that a paragraph is of."""
        return bisect.bisect_right(self.bounds, m) - 1

    @functools.cached_property
    def noise_M(self) -> NDArray[np.float64]:
        """How much each paragraph read like noise before it was edited."""
        return noise.load().scores(self.body)

    @functools.cached_property
    def numbered_M(self) -> Flags:
        """Which paragraphs held a digit before they were edited."""
        codes_C, numbered_M = self.body.codes_C, np.zeros(len(self.rule_M), bool)
        # Codes are unsigned: below the first digit they wrap round to large ones.
        digit_C = (codes_C - ord("0") < 10) | (codes_C - ord("０") < 10)
        numbered_M[np.searchsorted(self.body.start_I, np.flatnonzero(digit_C), "right") - 1] = True
        return numbered_M

    def last_line(self, m: int) -> int:
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
        blank, outer = self.codes[steps.BLANK_LINE], self.codes[steps.OUTER_WHITESPACE]
        dropped_L = np.where(self.lines.body.chars_I > 0, self.rule_M[paragraph_L], blank)
        spaced_L = self.paragraphs.spaced_L.copy()
        edits = []
        for m, (_, changes) in self.edited.items():
            if self.rule_M[m] < 0:
                edits += self._places(m, changes, spaced_L)
        return removals.table(self.lines, dropped_L, self.joined_L, spaced_L, edits, self.names, outer)

    def _places(self, m: int, changes: Sequence[Edit], spaced_L: Flags) -> list[removals.Edited]:
        """Edits of a paragraph as edits of its lines; one that reaches across line ends has a part in each."""
        edits = []
        whole, last = self.body.text(m), self.last_line(m) + 1
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


def _is_name(before: Counter[str]) -> bool:
    """Whether a character mostly stands behind one and the same other, a surname perhaps. Behind punctuation and words such as
    他 any verb stands."""
    (most, times), *_ = before.most_common(1)
    return times > NAME_SHARE * before.total() and "\u3400" <= most <= "\u9fff" and most not in NO_NAME
