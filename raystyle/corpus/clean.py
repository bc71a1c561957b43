"""Texts to kept paragraphs and removals. Pure: the same text and rules give the same result anywhere.

Many texts are cleaned at once: first by what a line alone shows (`batch`), then each by what its lines show together
(`decide`, with `drops` and `joins`). Every removal is kept as a place in a decoded line, so kept paragraphs and removals
together are the input again (`restore`), and cleaning cleaned text changes nothing.

L lines of all texts; K kept paragraphs of one text.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raystyle.corpus import drops, joins, steps
from raystyle.corpus.batch import MIN_LINES, Batch
from raystyle.corpus.lines import Flags
from raystyle.corpus.rules import Rules
from raystyle.corpus.work import Work


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
    batch = Batch(texts, rules)
    for number, text in enumerate(texts):
        batch.rewrite(number, text, to_simplified)
    batch.sweep()
    return [decide(Work(batch, number, whole)) for number in range(len(texts))], batch.removed()


def decide(work: Work) -> Cleaned:
    """What a text's paragraphs decide together, and what is left of it."""
    batch = work.batch
    line_L = slice(*batch.lines.bounds_D[work.number : work.number + 2].tolist())
    wrapped_L = batch.joined_L[line_L].copy()
    # Once lines that read like noise are gone, what stands at the text's top, or at one place of its chapters, may be seen;
    # and among headings' numbers, those between which another stood that was none.
    while True:
        accepted = drops.drop_headings(work)
        recurring: list[tuple[str, int]] = []
        unmarked: list[str] = []
        titles: list[str] = []
        if work.long:
            drops.drop_by_place(work, accepted)
            recurring, unmarked = drops.drop_recurring(work)
        if work.whole:
            drops.drop_lone_numbers(work)
            titles = drops.drop_top(work)
            drops.cut_running_heads(work, titles)
        # A page's head that goes lets halves of a sentence be joined, and longer paragraphs tell others.
        while True:
            batch.joined_L[line_L], work.unbroken = wrapped_L, set()
            work.kept_K = np.flatnonzero(work.rule_M < 0) + work.first
            if work.whole and drops.drop_running_heads(work, titles):
                continue
            joins.mend_page_breaks(work)
            if work.whole and len(work.kept_K) >= MIN_LINES and work.does(steps.HARD_WRAP):
                joins.mend_wraps(work)
            if not work.whole or not drops.drop_running_heads(work, titles):
                break
        noisy = work.whole and drops.drop_noise(work)
        goes_on_K = np.isin(work.kept_K, list(work.unbroken))
        work.halves |= set(work.kept_K[goes_on_K | np.append(False, goes_on_K)[:-1]].tolist())
        if not noisy and not any(batch.rule_M[m] >= 0 or m in work.halves for m in work.rejected):
            return _cleaned(work, goes_on_K, line_L, recurring, unmarked)
        mine = batch.candidates[work.number]
        batch.candidates[work.number] = {
            m: mine[m] for m in mine if m in work.headings or (batch.rule_M[m] < 0 and m not in work.halves)
        }


def _cleaned(
    work: Work, goes_on_K: Flags, line_L: slice, recurring: list[tuple[str, int]], unmarked: list[str]
) -> Cleaned:
    """What is left of a text whose every paragraph is decided."""
    batch = work.batch
    parts = batch.texts(work.kept_K)
    for k in np.flatnonzero(goes_on_K)[::-1].tolist():
        parts[k] += parts.pop(k + 1)
    begins_K = ~np.append(False, goes_on_K)[:-1]
    return Cleaned(
        "\n".join(parts), batch.paragraphs.first_M[work.kept_K][begins_K] - line_L.start + 1,
        _chapters(work, goes_on_K, line_L.start), recurring, unmarked, line_L.stop - line_L.start,
        int(batch.lines.raw.chars_I[line_L].sum()), int(batch.lines.body.chars_I[line_L].sum()),
    )  # fmt: skip


def _chapters(work: Work, goes_on_K: Flags, first_line: int) -> list[Heading]:
    """The headings of a text, and where in what is left of it their chapters begin."""
    batch, titled = work.batch, sorted(work.headings)
    if not titled:
        return []
    starts_K = np.cumsum(np.append(0, batch.lengths(work.kept_K) + ~goes_on_K), dtype=np.int64)
    places = starts_K[np.searchsorted(work.kept_K, titled)].tolist()
    return [
        Heading(int(batch.paragraphs.first_M[m]) - first_line + 1, work.headings[m].title or batch.text(m), place)
        for m, place in zip(titled, places, strict=True)
    ]


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
