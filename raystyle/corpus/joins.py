"""Halves of sentences that are put together once what stood between them is gone."""

import numpy as np

from raystyle.corpus import context, headings, insets, steps
from raystyle.corpus.work import Work


def mend_page_breaks(work: Work) -> None:
    """Join paragraphs that go on behind a page marker: between the two stands nothing but such markers and blank lines."""
    batch, first, last = work.batch, work.first, work.last
    work.unbroken = set()
    if not work.does(steps.PAGE_BREAK):
        return
    here_M = np.arange(first, last)
    solid_M = ~batch.interrupts_R[work.rule_M] & (work.rule_M != batch.codes[steps.BLANK_LINE])
    before_M = np.maximum.accumulate(np.where(solid_M, here_M, first - 1))
    after_M = np.minimum.accumulate(np.where(solid_M, here_M, last)[::-1])[::-1]
    places_M = np.flatnonzero(batch.interrupts_R[work.rule_M])
    for before, after in dict.fromkeys(zip(before_M[places_M].tolist(), after_M[places_M].tolist(), strict=True)):
        if before < first or after >= last or batch.rule_M[before] >= 0 or batch.rule_M[after] >= 0:
            continue
        if work.go_on(before, after) and _is_clean(work, before, after):
            _join(work, before, steps.PAGE_BREAK)


def mend_wraps(work: Work) -> None:
    """Join what reads as broken at a width now that headings and noise between are gone: cleaning once more would."""
    while True:
        begins_N, ends_N, layout = work.joined()
        starts, ends = work.kept_K[begins_N], work.kept_K[ends_N - 1]
        # Never across a heading: what stands behind it is another chapter.
        joins = [
            int(ends[n])
            for n in np.flatnonzero(context.hard_wraps(layout)[:-1])
            if not any(m in work.headings for m in range(ends[n], starts[n + 1]))
            and _is_clean(work, int(ends[n]), int(starts[n + 1]))
        ]
        if not joins:
            return
        for m in joins:
            _join(work, m, steps.HARD_WRAP)


def _join(work: Work, m: int, step: str) -> None:
    """Let a paragraph go on in the next."""
    work.unbroken.add(m)
    work.batch.joined_L[work.batch.last_line(m)] = work.batch.codes[step]


def _is_clean(work: Work, before: int, after: int) -> bool:
    """Whether no rule would touch two halves put together, nor the model cut into them, and they are no heading: else they had
    better stay apart."""
    whole = work.batch.text(before) + work.batch.text(after)
    if headings.weak_candidate(before, whole) or (work.does(steps.NOISE_INSET) and insets.inset(whole)):
        return False
    rules = work.batch.rules.of(whole)
    return not any(rule.spans(whole) for rule in rules if not rule.at_start and not rule.outnumbers)
