"""One text of a batch while its paragraphs are decided by their neighbours.

`drops` and `joins` do that step by step; what they share is here: which paragraphs the text has, what has become of its
headings, and what stands beside a paragraph. A paragraph is its number in the batch (`m`), for the functions of `headings`,
`repeats` and `context` its place in the text (`index`).

M paragraphs of the text; K those that are kept; N those put together where one goes on in the next; I those not blank.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from raystyle.corpus import context, headings, steps
from raystyle.corpus.batch import MIN_LINES, Batch
from raystyle.corpus.lines import Places


class Work:
    """The paragraphs `first` to `last` of a batch. `whole` is False for a piece of a work, whose neighbours tell nothing."""

    def __init__(self, batch: Batch, number: int, whole: bool) -> None:
        self.batch, self.number, self.whole = batch, number, whole
        self.first, self.last = batch.bounds[number : number + 2]
        self.long = whole and self.last - self.first >= MIN_LINES
        self.rule_M = batch.rule_M[self.first : self.last]  # a view: what is dropped here is dropped in the batch
        # Dropped headings, by paragraph; candidates that are none; and paragraphs that are one with the next or the last,
        # so no heading.
        self.headings: dict[int, headings.Candidate] = {}
        self.rejected: set[int] = set()
        self.halves: set[int] = set()
        # Kept paragraphs, and those of them that go on in the next.
        self.kept_K: Places = np.empty(0, np.int64)
        self.unbroken: set[int] = set()
        filled_M = batch.body.chars_I[self.first : self.last] > 0
        indented = np.count_nonzero(batch.layout_M.indent_L[self.first : self.last][filled_M])
        self._indented = bool(2 * indented >= np.count_nonzero(filled_M))

    def does(self, step: str) -> bool:
        """Whether a step is switched on."""
        return step not in self.batch.rules.off

    def drop(self, m: int | Places, step: str) -> None:
        """Drop paragraphs."""
        self.batch.rule_M[m] = self.batch.codes[step]

    def line(self, index: int) -> str:
        """The paragraph at a place of the text, as it is by now."""
        return self.batch.text(self.first + index)

    def layout(self, seen: Iterable[int]) -> context.Layout:
        """The paragraphs as they are by now; those that are dropped count as blank, but for headings, whose places `seen` names."""
        seen_M = self.rule_M < 0
        seen_M[list(seen)] = True
        layout = self.all()
        return layout._replace(chars_L=np.where(seen_M, layout.chars_L, 0))

    def all(self) -> context.Layout:
        """The paragraphs as they are by now, also those that are dropped."""
        return context.Layout(*(column[self.first : self.last] for column in self.batch.layout_M))

    def joined(self) -> tuple[Places, Places, context.Layout]:
        """Kept paragraphs, those that go on in the next as one: where among them each begins and ends, and their layout."""
        begins_N = np.flatnonzero(~np.append(False, np.isin(self.kept_K[:-1], list(self.unbroken))))
        ends_N = np.append(begins_N[1:], len(self.kept_K))
        chars_N = np.add.reduceat(self.batch.lengths(self.kept_K), begins_N, dtype=np.int32)
        first_N = self.batch.layout_M.first_L[self.kept_K[begins_N]]
        last_N = self.batch.layout_M.last_L[self.kept_K[ends_N - 1]]
        return begins_N, ends_N, context.Layout(chars_N, np.zeros_like(chars_N), first_N, last_N)

    def beside(self, begins_N: Places, ends_N: Places) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
        """What dropped the paragraphs above and below those of `joined`, blank lines aside; -1 where such is kept or nothing."""
        filled_I = np.flatnonzero(self.rule_M != self.batch.codes[steps.BLANK_LINE]) + self.first
        rule_I = np.concatenate([[-1], self.batch.rule_M[filled_I], [-1]]).astype(np.int16)
        place_K = np.searchsorted(filled_I, self.kept_K)
        return rule_I[place_K[begins_N]], rule_I[place_K[ends_N - 1] + 2]

    def go_on(self, before: int, after: int) -> bool:
        """Whether one paragraph is the first half, and another the second half, of a sentence."""
        indent = bool(self.batch.layout_M.indent_L[after]) if self._indented else None
        return context.continues(self.batch.text(before), self.batch.text(after), indent)
