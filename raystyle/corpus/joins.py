"""Halves of sentences that are put together once what stood between them is gone."""

import numpy as np

from raystyle.corpus import context, headings, insets, noise, steps
from raystyle.corpus.lines import pieces_of
from raystyle.corpus.work import Work

# Halves that would be a longer paragraph than anyone writes stay apart.
MAX_JOINED = 20_000


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
        if work.go_on(before, after) and (whole := _clean_whole(work, before, after)) and not _is_noise(work, whole):
            _join(work, before, steps.PAGE_BREAK)


def mend_wraps(work: Work) -> None:
    """Join what reads as broken at a width now that headings and noise between are gone: cleaning once more would."""
    while True:
        begins_N, ends_N, layout = work.joined()
        starts, ends = work.kept_K[begins_N], work.kept_K[ends_N - 1]
        # Never across a heading: what stands behind it is another chapter.
        joined = False
        for n in np.flatnonzero(context.hard_wraps(layout)[:-1]):
            before, after = int(ends[n]), int(starts[n + 1])
            if not any(m in work.headings for m in range(before, after)) and _clean_whole(work, before, after):
                _join(work, before, steps.HARD_WRAP)
                joined = True
        if not joined:
            return


def _join(work: Work, m: int, step: str) -> None:
    """Let a paragraph go on in the next."""
    work.unbroken.add(m)
    work.batch.joined_L[work.batch.last_line(m)] = work.batch.codes[step]


def _clean_whole(work: Work, before: int, after: int) -> str | None:
    """Two halves put together, with what is joined to them already; None if a rule would touch that, or the model cut into it,
    or it is a heading: then they had better stay apart."""
    first = last = int(np.searchsorted(work.kept_K, before))
    while first and int(work.kept_K[first - 1]) in work.unbroken:
        first -= 1
    last += 1
    while int(work.kept_K[last]) in work.unbroken:
        last += 1
    whole = "".join(work.batch.texts(work.kept_K[first : last + 1]))
    if len(whole) > MAX_JOINED:
        return None
    if headings.weak_candidate(before, whole) or (work.does(steps.NOISE_INSET) and insets.inset(whole)):
        return None
    rules = work.batch.rules.of(whole)
    touched = any(rule.spans(whole) for rule in rules if not rule.at_start and not rule.outnumbers)
    return None if touched else whole


def _is_noise(work: Work, whole: str) -> bool:
    """Whether halves would go as noise together. A note of somebody's may end where prose begins: each is judged by itself."""
    return work.does(steps.NOISE_LINE) and bool(noise.load().scores(pieces_of([whole]))[0] > 0)
