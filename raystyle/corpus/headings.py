"""Which lines are headings where their shape alone does not tell: their numbers do.

Pure. A rule that knows a heading by its shape gives a strong candidate; `weak_candidates` gives those that only a
sequence can prove, such as `12、归途`, `（三）` or `第七回我…`.

L lines of the work.
"""

import bisect
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from raystyle.corpus.context import Layout, among


class Candidate(NamedTuple):
    """A line that may be a heading. Numbers are compared among candidates of one `unit`: 章, or what a bare number
    stands in, as （）. A strong one is a heading by its shape alone; a weak one only where its number fits."""

    line: int
    unit: str
    number: int | None
    strong: bool
    title: str = ""


_DIGITS = {
    digit: value
    for value, row in enumerate(
        ["〇零○", "一壹", "二贰貳两兩", "三叁參", "四肆", "五伍", "六陆陸", "七柒", "八捌", "九玖"]
    )
    for digit in row
}
_TENS = {"十": 10, "拾": 10, "百": 100, "佰": 100, "千": 1000, "仟": 1000}
_JOINED = {"廿": 20, "卅": 30}
_ROMAN = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100}
_ROMAN_FORM = re.compile(r"(?=.)C{0,3}(?:XC|XL|L?X{0,3})(?:IX|IV|V?I{0,3})")
# Full-width digits and letters, and the Roman numerals that are one character.
_NARROW = {0xFEE0 + i: i for i in range(0x30, 0x7B)} | {
    start + i: numeral
    for start in (0x2160, 0x2170)
    for i, numeral in enumerate(["I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX", "X", "XI", "XII"])
}


def parse_number(text: str) -> int | None:
    """A chapter's number in Han numerals (also 廿, 两, 壹贰叁, or digit by digit), Arabic or Roman ones of any width."""
    text = "".join(text.split()).translate(_NARROW)
    if re.fullmatch("[0-9]{1,9}", text):
        return int(text)
    if _ROMAN_FORM.fullmatch(text.upper()):
        values = [_ROMAN[letter] for letter in text.upper()]
        return sum(-a if a < b else a for a, b in zip(values, [*values[1:], 0], strict=True))
    if len(text) > 1 and all(digit in _DIGITS for digit in text):
        return int("".join(str(_DIGITS[digit]) for digit in text)) if len(text) < 10 else None
    total, digit, unit = 0, None, 10_000
    for letter in text:
        if letter in _DIGITS and (digit is None or digit == 0):
            digit = _DIGITS[letter]
        elif letter in _JOINED and digit in (None, 0) and unit > 10:
            total, digit, unit = total + _JOINED[letter], None, 10
        elif letter in _TENS and _TENS[letter] < unit and (digit or (digit is None and not total) or letter in "十拾"):
            unit = _TENS[letter]
            total, digit = total + (digit or 1) * unit, None
        else:
            return None
    return total + (digit or 0) if text else None


_UNITS = {"節": "节", "話": "话", "巻": "卷"}


def unit(name: str) -> str:
    """A unit by its simplified character."""
    return _UNITS.get(name, name)


# What a weak heading may begin with, and how long it is at most.
NUMERALS = "〇零○一二两兩三四五六七八九十百千廿卅壹贰貳叁參肆伍陆陸柒捌玖拾佰"
WEAK_STARTS = (
    "第" + NUMERALS + "0123456789０１２３４５６７８９（(IVXⅠⅡⅢⅣⅤⅥⅦⅧⅨⅩ【[［〔「『<〈#＃§☆★Nn章回折节節其之案卷篇话話夜幕"
)
MAX_WEAK = 40
_NUMBER = rf"(?P<number>[{NUMERALS}]{{1,7}}|[0-9０-９]{{1,4}}|[IVX]{{1,6}}|[Ⅰ-Ⅻ])"
# A title goes on without the end of a sentence; the joined form may hold a comma, for its number speaks as well.
_TITLE = r"(?P<title>(?:[^。！？；…“”：:]|“[^“”。！？：，]{1,10}”){1,30}?)"
_WEAK = [
    re.compile(rf"第\s?{_NUMBER}\s?(?P<unit>[章回节節卷巻集部篇話话幕折])\s?(?P<title>[^。；…“”]{{0,36}}?)"),
    re.compile(rf"{_NUMBER}(?P<unit>)"),
    re.compile(rf"[（(]\s?{_NUMBER}\s?(?P<unit>[)）])\s?(?:{_TITLE})?"),
    re.compile(rf"{_NUMBER}\s?(?P<unit>[、．.])\s?{_TITLE}"),
    re.compile(rf"{_NUMBER}(?P<unit>[\s\u3000]){{1,4}}{_TITLE}"),
    # A number in other brackets: alone, or one of several digits as files are numbered; 【1】 and [1] begin notes and posts.
    re.compile(rf"(?P<unit>[【\[［〔「『<〈]){_NUMBER}[】\]］〕」』>〉]"),
    re.compile(rf"(?P<unit>[【\[［〔〈<「『])(?P<number>[0-9]{{2,4}}|[{NUMERALS}]{{1,4}})[】\]］〕〉>」』]\s?{_TITLE}"),
    re.compile(rf"{_NUMBER}(?P<unit>[)）])\s?(?:{_TITLE})?"),
    # No title begins with a digit: 12：30 is a time.
    re.compile(rf"{_NUMBER}\s?(?P<unit>[-–—·•：:/／|｜])\s?(?=[\u3400-\u9fffA-Za-z]){_TITLE}"),
    re.compile(rf"(?P<unit>[#＃§☆★]|[Nn][Oo][.．])\s?{_NUMBER}(?:[\s.．、：:]{{1,4}}{_TITLE})?"),
    re.compile(
        rf"(?P<unit>[章回折节節其]之?|[案卷篇话話夜幕]?之)(?P<number>[{NUMERALS}]{{1,7}})(?:[\s\u3000、．.·：:]{{1,4}}{_TITLE})?"
    ),
]
_TITLE_FIRST = re.compile(
    r"(?P<title>[^。！？；…“”，：:（(]{1,20}?)\s?[（(](?P<number>[〇零一二三四五六七八九十百0-9０-９]{1,5})[）)]"
)
# What a book numbers beside chapters, 第一封信 or 第二夜: only where a title stands apart.
_OWN_UNIT = re.compile(
    rf"第\s?{_NUMBER}\s?(?P<unit>[\u3400-\u9fff]{{1,3}})[\s\u3000]{{1,4}}(?P<title>[^，。！？；…“”：:]{{1,30}})"
)
_TITLED = " + title"
# Forms of one mark.
_FORMS = {
    "）": ")", "．": ".", "\u3000": " ", "［": "[", "〔": "[", "〈": "<", "–": "-", "—": "-", "•": "·", "：": ":", "／": "/", "｜": "|",
    "＃": "#", "★": "☆",
}  # fmt: skip
_ENDED = "。，；：…、,;:”』」"
_starts, _closes, _ends = among(WEAK_STARTS), among(")）"), among(_ENDED)
# A number alone in what is a mark of speech elsewhere.
_quotes, _unquotes = among("「『"), among("」』")
# A name in quotation marks at the end of a title, behind words of its own.
_NAMES = re.compile("[\u3400-\u9fff]“[^“”。！？：，]{1,10}”$")
_BRACKETED = re.compile(rf"[「『][{NUMERALS}0-9０-９]{{1,7}}[」』]")


def weak_candidate(line: int, text: str) -> Candidate | None:
    """The line (trimmed) as a heading that only a sequence can prove, if it has the shape of one."""
    if (
        not text
        or len(text) > MAX_WEAK
        or (text[-1] in _ENDED and not (_BRACKETED.fullmatch(text) or _NAMES.search(text)))
    ):
        return None
    for shape in _WEAK:
        hit = shape.fullmatch(text)
        if hit and (number := parse_number(hit["number"])) is not None:
            groups = hit.groupdict()
            unit = _UNITS.get(groups["unit"], groups["unit"])
            unit = _FORMS.get(unit, unit)
            return Candidate(line, unit, number, False, (groups.get("title") or "").strip())
    if own := own_unit(line, text):
        return own
    if (hit := _TITLE_FIRST.fullmatch(text)) and (number := parse_number(hit["number"])) is not None:
        return Candidate(line, "()" + hit["title"].strip(), number, False, text)
    return None


def own_unit(line: int, text: str) -> Candidate | None:
    """The line as a heading that a book numbers in a unit of its own, with a title apart."""
    hit = _OWN_UNIT.fullmatch(text)
    number = parse_number(hit["number"]) if hit else None
    return (
        Candidate(line, hit["unit"] + _TITLED, number, False, hit["title"].strip())
        if hit and number is not None
        else None
    )


def weak_candidates(layout: Layout, line: Callable[[int], str]) -> list[Candidate]:
    """All weak candidates of a work; text is fetched only for short lines that begin (or, for `title(3)`, end) like
    one."""
    short = np.flatnonzero((layout.chars_L > 0) & (layout.chars_L <= MAX_WEAK))
    first, last = layout.first_L[short], layout.last_L[short]
    open_ended = ~_ends(last) | (last == ord("”"))
    short = short[((_starts(first) | _closes(last)) & open_ended) | (_quotes(first) & _unquotes(last))]
    found = (weak_candidate(i, line(i)) for i in short.tolist())
    return [candidate for candidate in found if candidate]


# A sign that stands in front of titles and nothing else: so many, of which most are so many characters apart.
_SIGNED = re.compile(
    r"(?P<sign>[○◎●◇◆□■△▲▽▼☆★※❖✿❀♦]|(?=《[^》]+》$)《)\s?(?P<title>[\u3400-\u9fff][\u3400-\u9fff·、\s\u3000]{0,13})》?"
)
MIN_SIGNED, MIN_SIGNED_APART, SIGNED_SHARE = 3, 200, 0.8
_signs = among("○◎●◇◆□■△▲▽▼☆★※❖✿❀♦《")


def signed_titles(layout: Layout, line: Callable[[int], str]) -> list[Candidate]:
    """Titles with one and the same sign in front of each, as `○书教下`."""
    short = np.flatnonzero((layout.chars_L > 1) & (layout.chars_L <= 16) & _signs(layout.first_L))
    text_L = np.concatenate([[0], np.cumsum(layout.chars_L, dtype=np.int64)])
    rows: dict[str, list[Candidate]] = {}
    for i in short.tolist():
        if hit := _SIGNED.fullmatch(line(i)):
            rows.setdefault(hit["sign"], []).append(Candidate(i, hit["sign"], None, True, hit["title"].strip()))
    found = []
    for row in rows.values():
        apart = [text_L[b.line] - text_L[a.line + 1] >= MIN_SIGNED_APART for a, b in pairwise(row)]
        if len(row) >= MIN_SIGNED and sum(apart) >= SIGNED_SHARE * len(apart):
            found += row
    return found


# A chapter has text: fewer characters between two numbers are a list's item.
MIN_BETWEEN = 200
# So many numbers in a row prove each other without one strong heading, or at the open end of strong ones; fewer do
# where strong ones stand on both sides.
MIN_CHAIN, MIN_CHAIN_BETWEEN = 5, 3
# What says that it is a chapter needs a shorter row, and so does a unit of the book's own with a title apart.
MIN_CHAIN_NAMED = {"章": 3, "回": 3}
MIN_CHAIN_TITLED = 3
# Far apart, and with no other of their unit between, fewer do: lists stand together. Two do if they are the first.
MIN_APART = 600
MIN_FIRST_APART = 1500
# One number in a row may be missing.
MAX_STEP = 2
# Headings above which numbers may start again at one.
_LEVEL = {"集": 3, "部": 3, "卷": 2, "篇": 2, "幕": 2, "章": 1, "回": 1, "话": 1, "折": 1, "节": 0}


def accept(candidates: Iterable[Candidate], chars_L: NDArray[np.int32]) -> set[int]:
    """The lines of all strong candidates, and of the weak ones whose number fits.

    A weak one is accepted where any of these holds; a chain is a row of candidates of one unit, each number one more
    than the last (one may be missing), with at least MIN_BETWEEN characters of text for each step.
    1. It is in a chain of MIN_CHAIN weak candidates (for some units MIN_CHAIN_NAMED).
    2. Its number lies between those of the strong headings of its unit before and behind it (a heading of a higher unit
       starts numbers anew), and it is in a chain with strong ones: on both sides, or behind it where it is the first,
       or in a chain of MIN_CHAIN.
    3. It repeats number and title of the strong heading before it.
    4. It is one of three that follow each other number by number, with at least MIN_APART characters between, and of their
       unit nothing between but what is accepted; or one of the first two, MIN_FIRST_APART characters apart. Asked until
       there are no more.

    What is rejected stays rejected when the accepted lines and any that are no candidates are gone, so that cleaning twice
    is cleaning once. Proof for 1 to 3: then no strong heading is left and only 1 can accept. It asks for the existence of a chain, and a
    chain of what is left is one of the whole: the same candidates in the same order, and what was taken out only makes
    the text between them shorter. In the same way, while all strong headings are there, taking out weak candidates or
    other lines accepts nothing new: 2 and 3 look at numbers and at strong headings, and for a chain. And 4 accepts the more,
    the more is accepted and the more text there is; of those that are left it was asked last.
    """
    ordered = sorted(candidates, key=lambda candidate: candidate.line)
    accepted = {candidate.line for candidate in ordered if candidate.strong}
    ordered = [candidate for candidate in ordered if candidate.strong or candidate.line not in accepted]
    text_L = np.concatenate([[0], np.cumsum(chars_L, dtype=np.int64)])
    units: dict[str, list[Candidate]] = {}
    for candidate in ordered:
        if candidate.number is not None:
            units.setdefault(candidate.unit, []).append(candidate)
    strong = [candidate for candidate in ordered if candidate.strong]
    for unit, row in units.items():
        weak = [candidate for candidate in row if not candidate.strong]
        if not weak:
            continue
        needed = MIN_CHAIN_TITLED if unit.endswith(_TITLED) else MIN_CHAIN_NAMED.get(unit, MIN_CHAIN)
        accepted |= {c.line for c, links in zip(weak, _links(weak, text_L), strict=True) if links.length >= needed}
        if len(weak) == len(row):
            continue
        fits, repeats = _between(unit, row, strong)
        accepted |= repeats
        fitting = [candidate for candidate in row if candidate.strong or candidate.line in fits]
        for candidate, links in zip(fitting, _links(fitting, text_L), strict=True):
            if links.strong_before and links.strong_behind:
                proved = links.length >= MIN_CHAIN_BETWEEN
            elif candidate.number in (0, 1):
                proved = links.strong_behind
            else:
                proved = links.length >= MIN_CHAIN and (links.strong_before or links.strong_behind)
            if proved:
                accepted.add(candidate.line)
    for row in units.values():
        accepted |= _apart([candidate for candidate in row if not candidate.strong], accepted, text_L)
    return accepted


def _apart(row: list[Candidate], accepted: set[int], text_L: NDArray[np.int64]) -> set[int]:
    """The lines of weak candidates of one unit that follow each other far apart, number by number, all others of their unit
    between them being `accepted` or found before."""
    places: dict[int, list[int]] = {}
    for i, candidate in enumerate(row):
        places.setdefault(candidate.number or 0, []).append(i)
    found = {i for i, candidate in enumerate(row) if candidate.line in accepted}

    def between(a: int, b: int) -> int:
        return int(text_L[row[b].line] - text_L[row[a].line + 1])

    while True:
        free = [i for i in range(len(row)) if i not in found]

        def follow(i: int, way: int, chars: int) -> set[int]:
            """Those that may stand next to one of a row, in front of it (`way` -1) or behind it (1): the nearest that is
            accepted, which leaves most room for the next, and the one that is not."""
            at = bisect.bisect_right(free, i) if way > 0 else bisect.bisect_left(free, i) - 1  # noqa: B023
            last = free[at] if 0 <= at < len(free) else len(row) - 1 if way > 0 else 0  # noqa: B023
            wanted = places.get((row[i].number or 0) + way, [])
            low, high = (i + 1, last) if way > 0 else (last, i - 1)
            near = wanted[bisect.bisect_left(wanted, low) : bisect.bisect_right(wanted, high)]
            far = [j for j in near if between(min(i, j), max(i, j)) >= chars]
            return {far[0 if way > 0 else -1], *({last} & set(far))} if far else set()

        lines: set[int] = set()
        for u in free:
            before = follow(u, -1, MIN_APART)
            for a in {u, *before, *(a for b in before for a in follow(b, -1, MIN_APART))}:
                rows = [{a, b, c} for b in follow(a, 1, MIN_APART) for c in follow(b, 1, MIN_APART)]
                lines |= set().union(*rows)
            for a in (a for a in (u, *follow(u, -1, MIN_FIRST_APART)) if row[a].number == 1):
                lines |= {line for b in follow(a, 1, MIN_FIRST_APART) for line in (a, b)}
        if lines <= found:
            return {row[i].line for i in found}
        found |= lines


class _Links(NamedTuple):
    """The longest chain through a candidate, and whether one through it meets a strong heading before and behind it."""

    length: int
    strong_before: bool
    strong_behind: bool


def _links(row: Sequence[Candidate], text_L: NDArray[np.int64]) -> list[_Links]:
    starts = [int(text_L[candidate.line]) for candidate in row]
    ends = [int(text_L[candidate.line + 1]) for candidate in row]
    numbers = [candidate.number or 0 for candidate in row]
    before = _reach(numbers, starts, ends, [candidate.strong for candidate in row])
    # The same from behind: numbers and places turned round.
    behind = _reach(
        [-number for number in numbers[::-1]],
        [-end for end in ends[::-1]],
        [-start for start in starts[::-1]],
        [candidate.strong for candidate in row[::-1]],
    )[::-1]
    return [_Links(a + b - 1, strong_a, strong_b) for (a, strong_a), (b, strong_b) in zip(before, behind, strict=True)]


def _reach(numbers: list[int], starts: list[int], ends: list[int], strong: list[bool]) -> list[tuple[int, bool]]:
    """For each the longest chain that ends in it, and whether one that ends in it has a strong heading before it."""
    # For each number what stands so far: where it ends, and the best of all up to there.
    seen: dict[int, tuple[list[int], list[tuple[int, bool]]]] = {}
    reached = []
    for number, start, end, is_strong in zip(numbers, starts, ends, strong, strict=True):
        length, meets = 0, False
        for step in range(1, MAX_STEP + 1):
            places, best = seen.get(number - step, ([], []))
            if at := bisect.bisect_right(places, start - step * MIN_BETWEEN):
                length, meets = max(length, best[at - 1][0]), meets or best[at - 1][1]
        reached.append((length + 1, meets))
        places, best = seen.setdefault(number, ([], []))
        last = best[-1] if best else (0, False)
        places.append(end)
        best.append((max(last[0], length + 1), last[1] or meets or is_strong))
    return reached


def _between(unit: str, row: list[Candidate], strong: list[Candidate]) -> tuple[set[int], set[int]]:
    """Lines of weak candidates whose number fits between the strong headings around them, and of those that repeat
    one."""
    level = _LEVEL.get(unit, 0)
    walls = [c for c in strong if c.unit == unit or _LEVEL.get(c.unit, -1) > level]
    places = [wall.line for wall in walls]
    fits, repeats = set(), set()
    for candidate in row:
        if candidate.strong or candidate.number is None:
            continue
        at = bisect.bisect_left(places, candidate.line)
        before, behind = walls[at - 1] if at else None, walls[at] if at < len(walls) else None
        low = before.number if before and before.unit == unit and before.number is not None else -1
        # Behind it the numbers go on, or start again at one.
        high = behind.number if behind and behind.unit == unit and behind.number not in (None, 0, 1) else None
        if low < candidate.number and (high is None or candidate.number < high):
            fits.add(candidate.line)
        if before and candidate.number == low and candidate.title and _solid(candidate.title) == _solid(before.title):
            repeats.add(candidate.line)
    return fits, repeats


# A text's first line may be a heading that is one piece with its title, if it says what it is and ends no sentence.
_OPENS = re.compile(r"[^，。！？；：…“”]+")
_OPENING_UNITS = frozenset("章回话")


def opens(candidate: Candidate, text: str) -> bool:
    """Whether a weak candidate that is the first line of a text is its heading, without any other to prove it."""
    return candidate.unit in _OPENING_UNITS and bool(_OPENS.fullmatch(text))


# A chapter's title in two halves, as novels of old have it below the number.
_BARE = re.compile(rf"第?(?:{_NUMBER})?[章回节節卷折]?")
_COUPLET = re.compile(r"([\u3400-\u9fff]{4,11})(?:\u3000{1,4}|\s{1,6})([\u3400-\u9fff]{4,11})")


def completes(candidate: Candidate, text: str) -> bool:
    """Whether the first line of a chapter is the couplet that its heading, a number alone, has for a title."""
    halves = _COUPLET.fullmatch(text)
    return bool(halves and len(halves[1]) == len(halves[2]) and _BARE.fullmatch(_solid(candidate.title)))


def repeats_title(candidate: Candidate, text: str) -> bool:
    """Whether the first line of a chapter is nothing but the title that stands in its heading."""
    return len(candidate.title) > 1 and text[-1:] not in _ENDED and _solid(text) == _solid(candidate.title)


def _solid(title: str) -> str:
    return "".join(title.split())
