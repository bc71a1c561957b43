"""What is dropped because of the lines around it: headings, lists of them, page furniture, and lines that read like noise.

Each function drops what it finds in one work, as it is by then; `clean.decide` calls them in their order, and again until
none finds more.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from raystyle.corpus import context, headings, noise, pages, repeats, steps
from raystyle.corpus.lines import Flags, Places, pieces_of
from raystyle.corpus.rules import Expression, Rule
from raystyle.corpus.work import Work

# A line that stands fewer times in a work is no candidate for what recurs; and a long one is a paragraph.
MIN_RECURRENCE, MAX_RECURRING_CHARS = 20, 80
# A title page has so many names at most: the work's, its series', its author's.
MAX_NAMES = 12


def drop_headings(work: Work) -> set[int]:
    """Drop the lines that are headings, weak ones only where they fit. Returns their places in the text."""
    batch, first = work.batch, work.first
    work.rejected = set()
    mine = {m - first: found for m, found in batch.candidates[work.number].items() if work.whole or found[1].strong}
    if not mine and not work.long:
        return set()
    layout = work.layout(mine)
    if work.long and work.does(steps.NUMBERED_HEADING):
        others_M = layout.chars_L.copy()
        others_M[[*mine, *(m - first for m in work.halves)]] = 0
        others = layout._replace(chars_L=others_M)
        for weak in headings.weak_candidates(others, work.line):
            mine[weak.line] = steps.NUMBERED_HEADING, weak
        for signed in headings.signed_titles(others, work.line):
            mine[signed.line] = steps.SIGNED_HEADING, signed
    found = {index: (rule, candidate._replace(line=index)) for index, (rule, candidate) in mine.items()}
    accepted = headings.accept([candidate for _, candidate in found.values()], layout.chars_L)
    for index in accepted:
        rule, candidate = found[index]
        work.drop(first + index, rule)
        work.headings[first + index] = candidate
    work.rejected = {first + index for index in found if work.rule_M[index] < 0}
    bare = [index for index in accepted if found[index][0] == steps.NUMBERED_HEADING and not found[index][1].title]
    for index in bare if work.does(steps.LONE_NUMBER) else ():
        if _stands_inside(work, first + index):
            del work.headings[first + index]
            work.drop(first + index, steps.LONE_NUMBER)
            accepted.remove(index)
    for index in sorted(accepted) if work.whole else ():
        _drop_repeated_title(work, first + index, found[index][1])
    return accepted


def _drop_repeated_title(work: Work, m: int, heading: headings.Candidate) -> None:
    """Drop the line below a heading that is its title, once more or for the first time."""
    rule_M = work.batch.rule_M
    below = next((b for b in range(m + 1, work.last) if rule_M[b] < 0 or b in work.headings), work.last)
    if below < work.last and below not in work.headings:
        text = work.batch.text(below)
        if headings.repeats_title(heading, text) or headings.completes(heading, text):
            rule_M[below] = rule_M[m]


def _stands_inside(work: Work, m: int) -> bool:
    """Whether a sentence runs through a line that is dropped."""
    rule_M, blank = work.batch.rule_M, work.batch.codes[steps.BLANK_LINE]
    before, after = m - 1, m + 1
    while before >= work.first and rule_M[before] == blank:
        before -= 1
    while after < work.last and rule_M[after] == blank:
        after += 1
    inside = before >= work.first and after < work.last and rule_M[before] < 0 > rule_M[after]
    return bool(inside and work.go_on(before, after))


def drop_by_place(work: Work, here: set[int]) -> None:
    """Drop tables of contents and what stands at the same place in most chapters. `here` are the headings' places."""
    layout, first = work.layout(here), work.first
    nothing: tuple[set[int], set[int]] = set(), set()
    listed, proven = repeats.contents(layout, work.line, here) if work.does(steps.CONTENTS) else nothing
    for index in listed:
        work.headings.pop(first + index, None)
        work.drop(first + index, steps.CONTENTS)
    for index in proven:
        work.headings[first + index] = headings.Candidate(index, "", None, True, work.line(index))
        work.drop(first + index, steps.PROVEN_HEADING)
    known = [work.headings[m] for m in sorted(work.headings)]
    for index in repeats.furniture(layout, work.line, known) if work.does(steps.FURNITURE) else ():
        if work.rule_M[index] < 0:
            work.drop(first + index, steps.FURNITURE)


def drop_recurring(work: Work) -> tuple[list[tuple[str, int]], list[str]]:
    """Drop lines that recur like boilerplate. Returns all that recur, with their counts, and the lines that would be
    boilerplate if other works had them too."""
    batch = work.batch
    short_K = np.flatnonzero((work.rule_M < 0) & (work.all().chars_L <= MAX_RECURRING_CHARS)) + work.first
    often_K = short_K[_may_recur(work, short_K)]
    counts = Counter(batch.texts(often_K))
    often = repeats.recurring((text, count) for text, count in counts.items() if count >= MIN_RECURRENCE)
    dropped = {found.text for found in often if found.drop and work.does(steps.RECURRING)}
    for m in often_K.tolist() if dropped else ():
        if batch.text(m) in dropped:
            work.drop(m, steps.RECURRING)
    untold_K = short_K[~repeats.told(batch.layout_M.last_L[short_K])]
    plain = (text for text in set(batch.texts(untold_K)) if text not in dropped and text[-1] not in repeats.TOLD)
    unmarked = sorted(text for text in plain if repeats.is_boilerplate(text))
    return [(found.text, found.times) for found in often], unmarked


def _may_recur(work: Work, short_K: Places) -> Flags:
    """Which of some paragraphs have the same first, middle and last character as so many others that they may recur."""
    batch = work.batch
    middle_K = batch.body.codes_C[batch.body.start_I[short_K] + batch.body.chars_I[short_K] // 2].astype(np.int64)
    for k in np.flatnonzero(batch.edited_M[short_K]).tolist():
        text = batch.text(int(short_K[k]))
        middle_K[k] = ord(text[len(text) // 2])
    first_K, last_K = (column[short_K].astype(np.int64) for column in batch.layout_M[2:])
    key_K = first_K << 42 | middle_K << 21 | last_K
    _, inverse_K, counts = np.unique(key_K, return_inverse=True, return_counts=True)
    return counts[inverse_K] >= MIN_RECURRENCE


def drop_lone_numbers(work: Work) -> None:
    """Drop lines that are a number and nothing else."""
    if work.does(steps.LONE_NUMBER):
        found = pages.lone_numbers(work.all(), work.line, lambda index: bool(work.rule_M[index] < 0))
        for index in found:
            work.drop(work.first + index, steps.LONE_NUMBER)


def drop_top(work: Work) -> list[str]:
    """Drop what rules know above the first line that is kept, a heading that opens the text, and the work's name. Returns
    the lines that may be that name."""
    batch, rule_M = work.batch, work.batch.rule_M
    listed = {batch.codes[name] for name in (steps.CONTENTS, steps.PROVEN_HEADING)}
    nameless = batch.codes[steps.NOISE_LINE], batch.codes[steps.WORK_TITLE]
    titles: list[str] = []
    for m in range(work.first, work.last):
        if rule_M[m] >= 0:
            # A chapter's title is no work's name.
            if batch.beside_R[rule_M[m]] != noise.HEADING and rule_M[m] not in listed and len(titles) < MAX_NAMES:
                titles += context.names_in(batch.body.text(m))
            if rule_M[m] in nameless:
                titles += filter(context.is_title, [context.without_part(batch.body.text(m))])
            continue
        weak = batch.candidates[work.number].get(m)
        if weak and headings.opens(weak[1], batch.text(m)) and np.any(rule_M[m + 1 : work.last] < 0):
            work.drop(m, weak[0])
            work.headings[m] = weak[1]._replace(line=m - work.first)
            continue
        at_start = [rule for rule in batch.rules.of(batch.text(m)) if rule.at_start]
        if at_start:
            batch.sweep_again(m, at_start)
        if rule_M[m] < 0 and work.does(steps.WORK_TITLE) and _is_title(work, m):
            work.drop(m, steps.WORK_TITLE)
            titles.append(context.without_part(batch.text(m)))
        if rule_M[m] < 0:
            return titles
        titles += context.names_in(batch.body.text(m))
    return titles


def _is_title(work: Work, m: int) -> bool:
    """Whether one of the first lines is the work's name: next to it stands what was dropped, or one more such line and
    then that; and behind it there is text. More lines of that shape are verse."""
    rule_M, seen = work.batch.rule_M, 0
    for below in range(m, work.last):
        if rule_M[below] == work.batch.codes[steps.BLANK_LINE]:
            continue
        if seen and rule_M[below] >= 0:
            return bool(np.any(rule_M[below + 1 : work.last] < 0))
        seen += 1
        if seen > 2 or not context.is_title(work.batch.text(below)):
            return False
    return False


def cut_running_heads(work: Work, titles: Sequence[str]) -> None:
    """Cut the heads of pages out of paragraphs that they stand in."""
    pattern = pages.glued_heads(titles) if titles and work.does(steps.RUNNING_HEAD) else None
    if not pattern:
        return
    batch, why = work.batch, steps.BUILT_IN[steps.RUNNING_HEAD][1]
    rule = Rule(steps.RUNNING_HEAD, why, "cut_span", Expression(pattern.pattern), ())
    # They have the number of a page.
    of_text = slice(work.first, work.last)
    asked_K = np.flatnonzero((work.rule_M < 0) & (batch.numbered_M[of_text] | batch.edited_M[of_text])) + work.first
    for m, text in zip(asked_K.tolist(), batch.texts(asked_K), strict=True):
        if pattern.search(text):
            batch.sweep_again(m, [rule])


def drop_running_heads(work: Work, titles: Sequence[str]) -> bool:
    """Drop the heads of pages among paragraphs as they are joined by now. Whether there were any."""
    if not len(work.kept_K) or not work.does(steps.RUNNING_HEAD):
        return False
    batch = work.batch
    begins_N, ends_N, layout = work.joined()

    def parts(n: int) -> Places:
        return work.kept_K[begins_N[n] : ends_N[n]]

    above_N, below_N = work.beside(begins_N, ends_N)
    marked_N = batch.interrupts_R[above_N] | batch.interrupts_R[below_N]
    heads = pages.running_heads(layout, lambda n: "".join(batch.texts(parts(n))), titles, marked_N)
    for n in heads:
        work.drop(parts(n), steps.RUNNING_HEAD)
    return bool(heads)


def drop_noise(work: Work) -> bool:
    """Drop paragraphs, as they are joined by now, that read like noise. Whether there were any."""
    if not len(work.kept_K) or not work.does(steps.NOISE_LINE):
        return False
    batch = work.batch
    begins_N, ends_N, layout = work.joined()
    # Most paragraphs are as they were, and all of those can be judged together.
    own_N = batch.noise_M[work.kept_K[begins_N]]
    changed_N = np.flatnonzero((ends_N - begins_N > 1) | batch.edited_M[work.kept_K[begins_N]])
    changed = ["".join(batch.texts(work.kept_K[begins_N[n] : ends_N[n]])) for n in changed_N.tolist()]
    own_N[changed_N] = noise.load().scores(pieces_of(changed))
    above_N, below_N = (batch.beside_R[rule_N] for rule_N in work.beside(begins_N, ends_N))
    found = noise.noise_lines(noise.load(), own_N, layout.chars_L, above_N, below_N)
    for n in np.flatnonzero(found).tolist():
        work.drop(work.kept_K[begins_N[n] : ends_N[n]], steps.NOISE_LINE)
    return bool(found.any())
