"""What the pages of a printed book leave in a text: their numbers, alone on a line, and their running heads.

Pure: everything here looks at one work and returns places in it; nothing is changed.

L lines of the work, N of them not blank.
"""

import re
from collections.abc import Callable, Collection, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from raystyle.corpus.context import LONE_NUMBER, ORNAMENT, Flags, Layout, among, continues
from raystyle.corpus.headings import NUMERALS, parse_number
from raystyle.corpus.repeats import told

# One of fewer pages may be a score, or a day.
MIN_PAGES = 32
_NO_PAGE = re.compile(r"(?!.*[0-9０-９])|(?:1[5-9]|20)[0-9]{2}$|([0-9])\1\1+$|23{2,3}$|520$|1314$|(?:.*[oOlIZBS]){3}")
MAX_LONE_NUMBER = 20
_number_starts = among(
    f" \u3000·•・‧.．—–―－-~～_=＿|｜▏▕丨/／\\＼[［〔〈<（(*＊0123456789０１２３４５６７８９oOlIZ{ORNAMENT}"
)
# Numbers that go down within so many lines that are not blank are counted down.
COUNTDOWN = 12
UNREAD = -1


class Number(NamedTuple):
    """The number that is all of a line, UNREAD where it was misread; and of how many pages, where the line says so."""

    page: int
    pages: int | None = None


def lone_number(text: str) -> Number | None:
    """The number that is all of a line; None if the line is no such number."""
    hit = LONE_NUMBER.fullmatch(text)
    if not hit:
        return None
    if hit["pages"]:
        page, pages = int(hit["page"]), int(hit["pages"])
        return Number(page, pages) if page <= pages >= MIN_PAGES else None
    if hit["numeral"]:
        return Number(parse_number(hit["numeral"]) or UNREAD)
    number = "".join((hit["number"] or hit["framed"]).split())
    if _NO_PAGE.match(number):
        return None
    return Number(int(number) if number.isdecimal() else UNREAD)


def lone_numbers(layout: Layout, line: Callable[[int], str], left: Callable[[int], bool]) -> set[int]:
    """Lines that are a number and nothing else: of a page, or of a section. `layout` holds also what was dropped; `left`
    says which lines are not. Numbers side by side, or that go down, are somebody's list or count, and stay; so does one of
    many (45/100) that no higher one of as many follows or precedes.

    What stays does so again when others are gone: numbers that keep each other are next to each other among all lines, or
    among the numbers, and stay so.
    """
    place_N = np.flatnonzero(layout.chars_L)
    may_N = (layout.chars_L[place_N] <= MAX_LONE_NUMBER) & _number_starts(layout.first_L[place_N])
    numbers = {
        n: number
        for n in np.flatnonzero(may_N).tolist()
        if left(int(place_N[n])) and (number := lone_number(line(int(place_N[n])))) is not None
    }
    of_pages: dict[int, list[int]] = {}
    for number in numbers.values():
        if number.pages:
            of_pages.setdefault(number.pages, []).append(number.page)
    rising = {pages for pages, found in of_pages.items() if len(found) > 1 and all(a < b for a, b in pairwise(found))}
    pages = {n: number.page for n, number in numbers.items() if number.pages is None or number.pages in rising}
    kept: set[int] = set()
    ordered = list(pages)
    for a, b in pairwise(ordered):
        if b == a + 1 or (b - a <= COUNTDOWN and pages[a] == pages[b] + 1 > 0):
            kept |= {a, b}
    return {int(place_N[n]) for n in ordered if n not in kept}


_quoted = among("“‘「『【—…\"'")
# A running head comes again on each page, and pages end amid sentences; nothing of a story does that so often.
# With the number of a page, each higher than the last, fewer are enough.
MIN_INSIDE, MIN_RISING, MIN_HEAD_LETTERS, MAX_HEAD = 3, 2, 3, 40
_NO_HEAD = re.compile(r"[。！？!?；;，,：:…“”‘’「」『』、]")
_NOT_LETTERS = re.compile(r"[^\u3400-\u9fffA-Za-z]+")


def running_heads(
    layout: Layout, line: Callable[[int], str], titles: Sequence[str] = (), marked_L: Flags | None = None
) -> set[int]:
    """Lines that a scanned book has at the head of its pages: without any mark of a sentence, the same but for numbers, and
    MIN_INSIDE times amid a sentence. `titles` may be the work's name: one line that has it in front or at its end, parted
    from the rest by the number of a page, wide space or an ornament, is enough, and so is the name alone amid one sentence,
    beside the mark of a page (`marked_L`), or set with spaces between its characters.
    """
    place_N = np.flatnonzero(layout.chars_L)
    plain_N = (layout.chars_L[place_N] <= MAX_HEAD) & ~told(layout.last_L[place_N]) & ~_quoted(layout.first_L[place_N])
    found: set[int] = set()
    places: dict[str, list[int]] = {}
    known = [title for title in titles if len(_NOT_LETTERS.sub("", title)) >= MIN_HEAD_LETTERS]
    names = {_NOT_LETTERS.sub("", title) for title in known}
    named = "|".join(map(_spaced, known)) or "(?!)"
    headed = re.compile(rf"(?:{named}){_APART}.{{0,24}}|.{{0,24}}{_APART}(?:{named})|(?=.*[\s\u3000])(?:{named})")
    for n in np.flatnonzero(plain_N).tolist():
        text = line(int(place_N[n]))
        if _NO_HEAD.search(text):
            continue
        if headed.fullmatch(text):
            found.add(int(place_N[n]))
        key = _NOT_LETTERS.sub("", text)
        if key in names and marked_L is not None and marked_L[place_N[n]]:
            found.add(int(place_N[n]))
        if len(key) >= MIN_HEAD_LETTERS:
            places.setdefault(key, []).append(n)
    for key, of_it in places.items():
        needed, mine = 1 if key in names else MIN_INSIDE, set(of_it)
        if len(of_it) >= MIN_RISING and needed > MIN_RISING and _rising([line(int(place_N[n])) for n in of_it]):
            needed = MIN_RISING
        if len(of_it) >= needed and sum(_is_inside(n, mine, place_N, line) for n in of_it) >= needed:
            found |= {int(place_N[n]) for n in of_it}
    return found


# The number at the end of a running head, or in front of it.
_PAGE = re.compile(
    rf"(?:^|.*[^0-9０-９{NUMERALS}])([0-9０-９]{{1,4}}|[{NUMERALS}]{{1,4}})$"
    rf"|([0-9０-９]{{1,4}}|[{NUMERALS}]{{1,4}})[\s\u3000·•|｜／/].*"
)


def _rising(heads: Sequence[str]) -> bool:
    """Whether running heads have the numbers of pages, each higher than the last."""
    hits = [hit for head in heads if (hit := _PAGE.fullmatch(head))]
    pages = [number for hit in hits if (number := parse_number(hit[1] or hit[2])) is not None]
    return len(pages) == len(heads) and all(a < b for a, b in pairwise(pages))


def glued_heads(titles: Sequence[str]) -> re.Pattern[str] | None:
    """What a work's name and the number of a page look like inside a line, where two pages were put together: with a space or
    an ornament between, or the number in front. Short names may be those of people, who have ages and counts."""
    known = [title for title in titles if len(_NOT_LETTERS.sub("", title)) >= MIN_HEAD_LETTERS]
    long = [title for title in known if len(_NOT_LETTERS.sub("", title)) > MIN_HEAD_LETTERS]
    behind = rf"(?:{'|'.join(map(_spaced, known))})[\s\u3000]*[\s\u3000·•|｜◎/／][\s\u3000]*[0-9０-９]{{1,4}}"
    before = rf"(?<![0-9０-９])[0-9０-９]{{1,4}}[\s\u3000·•|｜]*(?:{'|'.join(map(_spaced, long)) or '(?!)'})"
    no_count = rf"(?![0-9０-９.％%{COUNTED}])"
    return re.compile(f"(?<![《〈「『“])(?:{behind}{no_count}|{before}(?![》〉」』”]))") if known else None


# What is counted behind a number.
COUNTED = "个個岁歲年月日号號点點分回章卷册冊集部页頁人名次天块塊元米里种種"
_APART = (
    r"(?:[\s\u3000]{2,}|[\s\u3000]*[◎·•|｜/／◆—–-][\s\u3000]*|[\s\u3000]*(?=[0-9０-９]{1,4}$)|(?<=[0-9０-９])[\s\u3000]*"
    rf"|[\s\u3000]+(?=[{NUMERALS}]{{1,4}}$))"
)


def _spaced(title: str) -> str:
    """A pattern for a title with or without spaces between its characters."""
    return r"[\s\u3000]{0,3}".join(map(re.escape, "".join(title.split())))


def _is_inside(n: int, mine: Collection[int], place_N: NDArray[np.int64], line: Callable[[int], str]) -> bool:
    """Whether a sentence runs through a line, and through the number of a page beside it. Indents are not asked: cleaned
    text has none."""
    before, after = n - 1, n + 1
    while before >= 0 and (before in mine or _NUMBER_ALONE.fullmatch(line(int(place_N[before])))):
        before -= 1
    while after < len(place_N) and (after in mine or _NUMBER_ALONE.fullmatch(line(int(place_N[after])))):
        after += 1
    if before < 0 or after >= len(place_N):
        return False
    return continues(line(int(place_N[before])), line(int(place_N[after])), None)


_NUMBER_ALONE = re.compile(r"[\s·•—–\-(（\[〔第]{0,3}[0-9０-９]{1,5}[\s·•—–\-)）\]〕页頁]{0,3}")
