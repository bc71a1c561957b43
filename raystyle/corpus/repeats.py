"""What stands in a work more than once: tables of contents, headers and footers, and lines that keep coming back.

Pure: places in one work are returned, nothing is changed. Text is fetched only for lines that may be titles or stand
near a heading.

L lines of the work, N of them not blank, C chapters.
"""

import bisect
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from raystyle.corpus.context import Layout, among
from raystyle.corpus.headings import NUMERALS, Candidate

# A table of contents has so many lines; such a share of them comes again further down, with so much text behind each.
MIN_CONTENTS, MIN_CONTENTS_SHARE, MIN_TITLED = 4, 0.6, 100
# Two halves of seven characters behind 第一百二十回 are 22; longer lines are prose.
MAX_TITLE = 40
_prose_end, _speech = among("。，；：…、”’』」,;:"), among("“‘「『【—…\"'")
_SPACE = re.compile(r"[\s·•.．…_—\-]+")
_PAGE = re.compile(r"(?<=\S)(?:[\s.．…·]{2,}|\s|\s?[/／|｜]\s?)[（(]?[0-9０-９]{1,4}[)）]?$")
_PAGE_ENDS = frozenset("0123456789０１２３４５６７８９)）")
# The number in front of a title; a bare one only where a space parts it from the title.
_NUMBERED = re.compile(
    rf"^[☆★○◎◆■●·•*-]?\s*(?:第\s?[{NUMERALS}0-9０-９]{{1,8}}\s?[章回节節卷巻集部篇話话幕折]"
    rf"|[{NUMERALS}0-9０-９]{{1,8}}\s?[、．.]|[0-9０-９]{{1,4}}\s)"
)
_LINK = re.compile(r"^(?:[-*+•·]|[0-9]{1,4}[.)])?\s*\[([^\[\]]+)\]\([^()\s]*\)$")


def contents(layout: Layout, line: Callable[[int], str], accepted: Collection[int]) -> tuple[set[int], set[int]]:
    """The lines of tables of contents, and the later lines that they prove to be headings. `accepted` are known
    headings.

    A table is a block of at least MIN_CONTENTS lines that do not end or begin like prose or speech, blank ones aside,
    of which MIN_CONTENTS_SHARE are accepted headings or come again further down: as whole lines, in the same order,
    each with MIN_TITLED characters of text behind it. A refrain has no text behind it. A block's last heading is not
    part of the table, for the text under it may be its own; nor is a last line that is one of the titles before it.

    It is asked again without what was found and without the accepted headings, until nothing is found: so a work that
    has lost all these lines holds no table.
    """
    tables: set[int] = set()
    proved: set[int] = set()
    known = set(accepted)
    chars_L = layout.chars_L.copy()
    while True:
        found, titles = _tables(layout._replace(chars_L=chars_L), line, known)
        tables, proved = tables | found, proved | titles
        if not found and not known:
            return tables, proved - tables
        chars_L[[*known, *found, *titles]] = 0
        known = set()


def _tables(layout: Layout, line: Callable[[int], str], known: set[int]) -> tuple[set[int], set[int]]:
    place_N = np.flatnonzero(layout.chars_L)
    titled_N = (layout.chars_L[place_N] <= MAX_TITLE) & ~_prose_end(layout.last_L[place_N])
    titled_N &= ~_speech(layout.first_L[place_N])
    known_N = np.isin(place_N, list(known))
    titled_N |= known_N
    edges = np.flatnonzero(np.diff(titled_N, prepend=False, append=False))
    blocks = [(a, b) for a, b in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True) if b - a >= MIN_CONTENTS]
    if not blocks:
        return set(), set()
    later = _titles(layout, line, place_N[titled_N])
    tables: set[int] = set()
    proved: set[int] = set()
    for a, b in blocks:
        block = place_N[a:b].tolist()
        # The first chapter's title may follow the list at once; the text behind it tells that it is no line of the list.
        title = _plain(line(block[-1]))
        if block[-1] in known or (
            block[-1] in later.get(title, ()) and any(_plain(line(i)) == title for i in block[:-1])
        ):
            block.pop()
        heads, matches, last = [], {}, block[-1]
        for i in block:
            if i in known:
                heads.append(i)
                continue
            places = later.get(_plain(line(i)), [])
            at = bisect.bisect_right(places, last)
            if at < len(places):
                last = matches[i] = places[at]
        if len(heads) + len(matches) >= max(MIN_CONTENTS, MIN_CONTENTS_SHARE * len(block)):
            listed = sorted([*heads, *matches])
            tables |= {i for i in block if listed[0] <= i <= listed[-1]}
            proved |= set(matches.values()) - known
    return tables, proved


def _titles(layout: Layout, line: Callable[[int], str], places: NDArray[np.int64]) -> dict[str, list[int]]:
    """Where each title stands with text behind it, before anything else that could be a title."""
    text_L = np.concatenate([[0], np.cumsum(layout.chars_L, dtype=np.int64)])
    ends = np.append(places[1:], len(layout.chars_L))
    found: dict[str, list[int]] = {}
    for i in places[text_L[ends] - text_L[places + 1] >= MIN_TITLED].tolist():
        found.setdefault(_plain(line(i)), []).append(i)
    return found


def _plain(title: str) -> str:
    """A title as it is compared: without spaces, leaders, the link around it, the number of a page and of the chapter.

    The number goes first: the mark behind it (`1. `) is one of those that leaders are made of.
    """
    if title[-1:] in _PAGE_ENDS:
        title = _PAGE.sub("", _LINK.sub(r"\1", title))
    return _SPACE.sub("", _NUMBERED.sub("", title)) or _SPACE.sub("", title)


# A header or footer stands within so many lines of a heading, in so many chapters and in such a share of them.
REACH, MIN_CHAPTERS, MIN_CHAPTER_SHARE = 3, 8, 0.6
# Letters that are left when numbers, dates and the chapter's title are set aside; fewer are a date, an ornament or 诗曰.
MIN_LETTERS = 4
# Longer lines are paragraphs.
MAX_FURNITURE = 80
_NOT_HAN = re.compile(rf"[^\u3400-\u9fff]+|[{NUMERALS}年月日时分初万萬]+")
_NOT_LATIN = re.compile("[^a-z]+")
# Story, or what may be: it ends in a mark of speech or of a sentence, or in a colon that leads on; it is a panel; or a
# storyteller speaks.
TOLD = "。！？!?…”」』’\"'：:；;，,、—～~"
told = among(TOLD)
# What a header with a number that differs says, if it is none of the story: of a site, a file, an upload, a book.
_OF_A_BOOK = re.compile(
    r"书[屋院库坊城吧香馆斋盟]|小说|文学网?|论坛|书网|中文网|网[站址页]|本站|全本|本[章书]|正文|更新|字[数數]|首[发發]|手打|整理|扫描"
    r"|校[对對]|录入|制作|上[传傳]|下[载載]|[阅閱][读讀]|[连連][载載]|作者|[点點][击擊]|收藏|月票|推[荐薦]|[订訂][阅閱]|免[费費]|[全文]集|作品|[《》]"
    r"|第.{1,8}[页頁卷册冊]|(?i:www|https?:|\.(?:com|net|org|cn|cc|info)\b|\.txt|\.html?\b|\bpage\b)"
)
_COUNT = re.compile(rf"[0-9０-９]+|[{NUMERALS}]+")
# A running head: the number of the page stands apart.
_RUNNING = re.compile(r"(?:([0-9]{1,5})[\s·•|｜—–-]+[^0-9:：]+|[^0-9:：]+[\s·•|｜—–-]+([0-9]{1,5}))")
_STORY = re.compile("分解|话说|話說|却说|卻說|且说|且說|下回|欲知|正是|有[诗詩]|[诗詩词詞]曰|但[见見]")


def furniture(layout: Layout, line: Callable[[int], str], headings: Iterable[Candidate]) -> set[int]:
    """Headers and footers: lines within REACH of most headings of a kind, always at the same place with the same text.

    Texts are the same when their Han characters are, numbers, dates and the chapter's own title set aside; so a
    watermark is found in all its disguises. Where there are hardly any Han characters Latin letters count. What may be
    story proves nothing; neither does a line whose numbers differ (`距离高考还有99天`), unless it names a site, a file or a
    book, or has the number of a page at its end. Sections of chapters must not hide the chapters: headings are looked at all together, and
    unit by unit.
    """
    ordered = sorted(headings, key=lambda heading: heading.line)
    place_N = np.flatnonzero(layout.chars_L)
    kinds = {tuple(ordered)}
    for unit in {heading.unit for heading in ordered}:
        kinds.add(tuple(heading for heading in ordered if heading.unit == unit or heading.number is None))
    return set().union(*(_furniture(layout, line, kind, place_N) for kind in kinds if len(kind) >= MIN_CHAPTERS))


def _furniture(
    layout: Layout, line: Callable[[int], str], kind: Sequence[Candidate], place_N: NDArray[np.int64]
) -> set[int]:
    start_C = np.searchsorted(place_N, [heading.line for heading in kind])
    end_C = np.append(start_C[1:], len(place_N))
    # A heading that is still a line of the layout is not its chapter's text.
    start_C += place_N[np.minimum(start_C, len(place_N) - 1)] == [heading.line for heading in kind]
    needed = max(MIN_CHAPTERS, MIN_CHAPTER_SHARE * int((end_C > start_C).sum()))
    near: list[tuple[int, str]] = []
    proved: set[str] = set()
    for slot in [*range(REACH), *range(-REACH, 0)]:
        index_C = (start_C if slot >= 0 else end_C) + slot
        inside_C = (start_C <= index_C) & (index_C < end_C)
        titles = [heading.title for heading, inside in zip(kind, inside_C, strict=True) if inside]
        place_C = place_N[index_C[inside_C]]
        short_C = layout.chars_L[place_C] <= MAX_FURNITURE
        near += [(i, title) for i, title, short in zip(place_C.tolist(), titles, short_C, strict=True) if short]
        plain_C = short_C & ~told(layout.last_L[place_C]) & ~_speech(layout.first_L[place_C])
        if plain_C.sum() >= needed:
            texts = [
                (line(i).strip(), title)
                for i, title, plain in zip(place_C.tolist(), titles, plain_C, strict=True)
                if plain
            ]
            keys: dict[str, list[tuple[str, str]]] = {}
            for text, title in texts:
                for key in _folded(text, title) if not _STORY.search(text) else ():
                    keys.setdefault(key, []).append((text, title))
            proved |= {
                key for key, of_it in keys.items() if len(of_it) >= needed and _stays_the_same(key, of_it, needed)
            }
    return {i for i, title in near if not proved.isdisjoint(_folded(line(i).strip(), title))} if proved else set()


def _stays_the_same(key: str, texts: Sequence[tuple[str, str]], needed: float) -> bool:
    """Whether texts that are the same but for numbers are no story: most have the same numbers, or say what they are."""
    counts = Counter(tuple(_COUNT.findall(text.replace(title, " ") if title else text)) for text, title in texts)
    if counts.most_common(1)[0][1] >= needed or _OF_A_BOOK.search(key):
        return True
    if sum(bool(_OF_A_BOOK.search(text)) for text, _ in texts) >= needed:
        return True
    pages = [int(hit[1] or hit[2]) for text, _ in texts if (hit := _RUNNING.fullmatch(text))]
    return len(pages) >= needed and pages == sorted(pages)


def _folded(text: str, title: str) -> set[str]:
    """What stays the same of a header from chapter to chapter: as it is, for a title may also be part of a site's name,
    and with the chapter's title set aside. Nothing where next to nothing is left."""
    keys = set()
    for part in {text, text.replace(title, " ") if title else text}:
        han = _NOT_HAN.sub("", part)
        latin = "" if len(han) >= MIN_LETTERS else _NOT_LATIN.sub("", part.lower())
        if len(han) + len(latin) >= MIN_LETTERS:
            keys.add(han + latin)
    return keys


class Recurring(NamedTuple):
    """A line that stands again and again in a work; `drop` where it can only be boilerplate."""

    text: str
    times: int
    drop: bool


# A refrain, a cry or an ornament comes back some dozens of times in a long novel; a banner once a chapter or page.
MIN_RECURRING_DROP = 100
# Shorter lines are what people say, or ornaments.
MIN_RECURRING_LETTERS = 8
# Built of fewer different letters, a line is a laugh.
MIN_RECURRING_DIFFERENT = 4
_LETTER, _SPOKEN = re.compile(r"[\u3400-\u9fffA-Za-z0-9]"), re.compile(r"[“”「」『』‘’【】\"]")


def recurring(lines: Iterable[tuple[str, int]]) -> list[Recurring]:
    """Lines (text, how often) that recur, most frequent first; `drop` where no rule needs to name them.

    Dropped is what stands there MIN_RECURRING_DROP times, has MIN_RECURRING_LETTERS letters, and cannot be speech or
    story: no quotation marks or panels, no mark of a sentence at its end, none of a storyteller's words, no mere cry.
    """
    rows = [
        Recurring(text, count, count >= MIN_RECURRING_DROP and is_boilerplate(text.strip())) for text, count in lines
    ]
    return sorted(rows, key=lambda row: (-row.times, row.text))


def is_boilerplate(text: str) -> bool:
    letters = _LETTER.findall(text)
    enough = len(letters) >= MIN_RECURRING_LETTERS and len(set(letters)) >= MIN_RECURRING_DIFFERENT
    return enough and not _SPOKEN.search(text) and not _STORY.search(text) and text[-1] not in TOLD
