"""Removals as a table: one row for each dropped line, cut span and rewrite, in the order of their places.

Most of them are indents and blank lines, so the table is made of whole columns; only rules' edits come one by one.

L lines of all texts; R removals.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raystyle.corpus.lines import Counts, Flags, Lines, Pieces, Places, column
from raystyle.corpus.parts import REMOVED

# A text's number stands for its source until the source is known.
SCHEMA = pa.schema([("text_no", pa.int32()), *list(REMOVED)[1:]])
ACTIONS = ("drop_line", "cut_span", "rewrite")
DROP_LINE, CUT_SPAN, REWRITE = range(3)


class Edited(NamedTuple):
    """A span of a line (an index into all lines, and characters of the line as it was) that became `replacement`."""

    line: int
    start: int
    end: int
    text: str
    replacement: str
    rule: int


class _Columns(NamedTuple):
    line_R: Places
    action_R: NDArray[np.int8]
    rule_R: NDArray[np.int16]
    text: pa.Array
    replacement: pa.Array
    start_R: Counts
    end_R: Counts


def table(
    lines: Lines, dropped_L: NDArray[np.int16], joined_L: NDArray[np.int16], spaced_L: Flags,
    edits: Sequence[Edited], rules: Sequence[str], outer_whitespace: int,
) -> pa.Table:  # fmt: skip
    """The removals of all texts.

    `dropped_L` is the rule (an index into `rules`) that dropped a line, or -1; `joined_L` the one that took the line feed
    after it, for which a space stands where `spaced_L`.
    """
    kept_L = dropped_L < 0
    right_L = lines.left_L + lines.body.chars_I
    parts = [
        _whole(lines, np.flatnonzero(~kept_L), dropped_L),
        _whitespace(lines, np.flatnonzero(kept_L & (lines.left_L > 0)), outer_whitespace, at_left=True),
        _whitespace(lines, np.flatnonzero(kept_L & (right_L < lines.raw.chars_I)), outer_whitespace, at_left=False),
        _line_feeds(lines, np.flatnonzero(kept_L & (joined_L >= 0)), joined_L, spaced_L),
        _edits(edits),
    ]  # fmt: skip
    line_R, action_R, rule_R, start_R, end_R = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("line_R", "action_R", "rule_R", "start_R", "end_R")
    )
    texts, replacements = (
        pa.concat_arrays([getattr(part, name) for part in parts]) for name in ("text", "replacement")
    )
    # Each part is in order already, which a stable sort makes use of.
    order_R = np.argsort(line_R << 32 | start_R, kind="stable")
    take = pa.array(order_R)
    text_no_R = np.searchsorted(lines.bounds_D, line_R, "right") - 1
    line_no_R = line_R - lines.bounds_D[text_no_R] + 1
    columns = [
        pa.array(text_no_R[order_R], pa.int32()),
        pa.array(line_no_R[order_R]),
        pa.array(ACTIONS).take(pa.array(action_R[order_R])),
        pa.array(rules, pa.string()).take(pa.array(rule_R[order_R])),
        texts.take(take),
        replacements.take(take),
        pa.array(start_R[order_R], pa.int64()),
        pa.array(end_R[order_R], pa.int64()),
    ]
    return pa.table(columns, schema=SCHEMA)


def _whole(lines: Lines, line_R: Places, dropped_L: NDArray[np.int16]) -> _Columns:
    return _cut(lines, line_R, DROP_LINE, dropped_L[line_R], np.zeros(len(line_R), np.int32), lines.raw.chars_I[line_R])


def _whitespace(lines: Lines, line_R: Places, rule: int, *, at_left: bool) -> _Columns:
    """Spans of whitespace at one end."""
    left_R, rules_R = lines.left_L[line_R], np.full(len(line_R), rule, np.int16)
    if at_left:
        return _cut(lines, line_R, CUT_SPAN, rules_R, np.zeros_like(left_R), left_R)
    return _cut(lines, line_R, CUT_SPAN, rules_R, left_R + lines.body.chars_I[line_R], lines.raw.chars_I[line_R])


def _cut(
    lines: Lines, line_R: Places, action: int, rule_R: NDArray[np.int16], start_R: Counts, end_R: Counts
) -> _Columns:
    """Parts of lines that nothing stands for."""
    raw = lines.raw
    text = column(Pieces(raw.whole, raw.codes_C, raw.start_I[line_R] + start_R, end_R - start_R))
    return _columns(line_R, action, rule_R, text, start_R, end_R)


def _line_feeds(lines: Lines, line_R: Places, joined_L: NDArray[np.int16], spaced_L: Flags) -> _Columns:
    chars_R, text = lines.raw.chars_I[line_R], pa.repeat("\n", len(line_R))
    columns = _columns(line_R, REWRITE, joined_L[line_R], text, chars_R, chars_R + 1)
    return columns._replace(replacement=pa.array(np.where(spaced_L[line_R], " ", ""), pa.string()))


def _edits(edits: Sequence[Edited]) -> _Columns:
    line_R = np.array([edit.line for edit in edits], np.int64)
    rule_R = np.array([edit.rule for edit in edits], np.int16)
    start_R = np.array([edit.start for edit in edits], np.int32)
    end_R = np.array([edit.end for edit in edits], np.int32)
    action_R = np.array([REWRITE if edit.replacement else CUT_SPAN for edit in edits], np.int8)
    text = pa.array([edit.text for edit in edits], pa.string())
    replacement = pa.array([edit.replacement for edit in edits], pa.string())
    return _Columns(line_R, action_R, rule_R, text, replacement, start_R, end_R)


def _columns(
    line_R: Places, action: int, rule_R: NDArray[np.int16], text: pa.Array, start_R: Counts, end_R: Counts
) -> _Columns:
    action_R, replacement = np.full(len(line_R), action, np.int8), pa.repeat("", len(line_R))
    return _Columns(line_R, action_R, rule_R, text, replacement, start_R, end_R)
