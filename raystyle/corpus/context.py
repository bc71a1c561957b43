"""What only a line's neighbours can tell: lines that were broken at a width, and sentences torn by the mark of a page.

Pure: everything here looks at one work and returns places in it; nothing is changed. What is asked of every line is
asked of `Layout`'s arrays. `headings` and `repeats` look at a work in the same way.

L lines of the work, N of them not blank, S stretches of these, W widths and I indents counted in a stretch.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Flags = NDArray[np.bool_]
Counts = NDArray[np.int64]
Codes = NDArray[np.int32]


class Layout(NamedTuple):
    """The lines of one work as numbers. A line that rules dropped may be given as blank: then nobody sees it."""

    chars_L: NDArray[np.int32]  # characters without outer whitespace; 0: blank
    indent_L: NDArray[np.int32]  # whitespace characters before the first one
    first_L: NDArray[np.int32]  # code point of the first character that is not whitespace; 0: blank
    last_L: NDArray[np.int32]  # code point of the last one; 0: blank


SENTENCE_ENDS = "。！？!?…．.」』”’\"'）)】〕]》>—～~"
CLAUSE_ENDS = "，,、；;：:"
OPENERS = "“‘「『《〈（(【〔[\"'—"
CLOSERS = "，。、；：！？…”’」』》〉）】〕,;:!?)]"

# Lines judged together. A collection may change its width from one file to the next; 128 lines are some 15 paragraphs.
STRETCH = 128
# Narrower than this and regular lines are verse (two halves of seven characters with their marks are 16); wider is no
# width.
MIN_WIDTH, MAX_WIDTH = 20, 120
# Marks may not begin a line and half-width signs take half a place: a full line has from 2 less to 4 more than the
# most usual.
UNDER, OVER = 2, 4
# Full lines in a stretch that is wrapped: fewer are an accident, and a text of short paragraphs still reaches a third.
MIN_FULL, MIN_FULL_SHARE = 20, 0.3
# The edge is sharp: hardly a line goes beyond it, and there are twice as many full lines as nearly full ones.
MAX_BEYOND, MIN_DROP = 0.1, 2
# Full lines that end in a mark, and in that of a sentence. A width falls on one by chance: about one in four, marks
# being pulled in. A list's or a table's lines never end in one, those of verse and speech always do.
MIN_MARKED, MAX_MARKED, MAX_ENDED = 0.05, 0.65, 0.5
# Lines that go on from another are this share at least, and carry the smallest indent.
MIN_FLUSH = 0.15
# A blank line behind most full lines parts no paragraphs: the text is double-spaced.
MAX_PARTED = 0.5


def among(characters: str) -> Callable[[Codes], Flags]:
    """A question for a layout's code points: which are one of these characters (below U+FFFF)?"""
    table = np.zeros(0x10000, bool)
    table[[ord(character) for character in characters]] = True
    return lambda codes: table[np.minimum(codes, 0xFFFF)]


_ends_sentence, _ends_clause = among(SENTENCE_ENDS), among(CLAUSE_ENDS)
_opens, _closes = among(OPENERS), among(CLOSERS)


def hard_wraps(layout: Layout) -> Flags:
    """Which lines (L) were broken at a width, so that they go on in the next line that is not blank.

    A stretch is wrapped where its line lengths have a sharp edge of lines that mostly end in the middle of a sentence.
    In it a full line goes on, unless the next one starts a paragraph: it is deeper indented, or behind a blank line. A
    mark that nearly every line carries (an indent, a blank line) marks nothing. Where paragraphs carry no mark at all,
    a full line that ends a sentence goes on too, unless a quotation opens in the next. A short line without a mark at
    its end is nobody's last line: it is a heading, a page number or verse.

    After joining, most lines are longer than any width, so that joined text is not joined again.
    """
    place_N = np.flatnonzero(layout.chars_L)
    goes_on_L = np.zeros(len(layout.chars_L), bool)
    if len(place_N) >= MIN_FULL:
        # A first line's two characters of indent are part of its width, whether two wide spaces or four narrow ones;
        # but what is wrapped without them, as the text will be read next time, is wrapped now.
        chars_N = layout.chars_L[place_N]
        extents = [chars_N + np.minimum(layout.indent_L[place_N], 2), chars_N]
        # Each stretch also overlaps its neighbours by half: where a width changes, one of them sees little of the
        # other.
        for shift in (0, STRETCH // 2):
            stretches = max((len(place_N) + shift) // STRETCH, 1)
            stretch_N = np.minimum((np.arange(len(place_N)) + shift) // STRETCH, stretches - 1)
            for extent_N in extents:
                goes_on_L[place_N] |= _wrapped(layout, place_N, extent_N, stretch_N)
    return goes_on_L


def _wrapped(layout: Layout, place_N: Counts, extent_N: Codes, stretch_N: Counts) -> Flags:
    """Which lines that are not blank go on in the next of them, each stretch judged for itself."""
    lines_S = np.bincount(stretch_N)
    width_S, wrapped_S = _edges(extent_N, stretch_N, lines_S)
    if not wrapped_S.any():
        return np.zeros(len(place_N), bool)
    full_N = wrapped_S[stretch_N] & (extent_N >= width_S[stretch_N] - UNDER)

    def in_stretch(flags_N: Flags) -> Counts:
        return np.bincount(stretch_N[flags_N], minlength=len(lines_S))

    full_S = in_stretch(full_N)
    first_N, last_N = layout.first_L[place_N], layout.last_L[place_N]
    ended_N = _ends_sentence(last_N)
    marked_N = ended_N | _ends_clause(last_N)
    broken_S = in_stretch(full_N & ended_N) <= MAX_ENDED * full_S
    marked_S = in_stretch(full_N & marked_N)
    broken_S &= (marked_S >= MIN_MARKED * full_S) & (marked_S <= MAX_MARKED * full_S)

    blank_N = np.diff(place_N, append=place_N[-1] + 1) > 1
    blank_N &= (in_stretch(full_N & blank_N) <= MAX_PARTED * full_S)[stretch_N]
    indent_N = layout.indent_L[place_N]
    indents_SI = np.bincount(stretch_N * 16 + np.minimum(indent_N, 15), minlength=len(lines_S) * 16)
    flush_S = (indents_SI.reshape(-1, 16).cumsum(1) >= MIN_FLUSH * lines_S[:, None]).argmax(1)
    indented_N = indent_N > flush_S[stretch_N]
    bare_S = in_stretch(indented_N | blank_N) == 0

    goes_on_N = full_N & broken_S[stretch_N] & ~blank_N
    goes_on_N[:-1] &= ~indented_N[1:] & (full_N | marked_N | _closes(first_N))[1:]
    goes_on_N[:-1] &= ~(bare_S[stretch_N] & ended_N)[:-1] | ~_opens(first_N)[1:]
    goes_on_N[-1] = False
    return goes_on_N


def _edges(extent_N: NDArray[np.int32], stretch_N: Counts, lines_S: Counts) -> tuple[Counts, Flags]:
    """The most usual length of a line in each stretch, and whether it is the edge of a page."""
    size = MAX_WIDTH + OVER + 2
    lengths_SW = np.bincount(stretch_N * size + np.minimum(extent_N, size - 1), minlength=len(lines_S) * size)
    lengths_SW = lengths_SW.reshape(len(lines_S), size)
    width_S = MIN_WIDTH + lengths_SW[:, MIN_WIDTH : MAX_WIDTH + 1].argmax(1)
    up_to_SW = lengths_SW.cumsum(1)
    row_S = np.arange(len(lines_S))
    under_S = up_to_SW[row_S, width_S - UNDER - 1]
    full_S = up_to_SW[row_S, width_S + OVER] - under_S
    nearly_S = under_S - up_to_SW[row_S, width_S - 2 * UNDER - OVER - 2]
    beyond_S = lines_S - under_S - full_S
    wrapped_S = (full_S >= np.maximum(MIN_FULL, MIN_FULL_SHARE * lines_S)) & (beyond_S <= MAX_BEYOND * lines_S)
    return width_S, wrapped_S & (full_S >= MIN_DROP * nearly_S)


# A name of a work: a few words without any mark of a sentence; and what somebody is told in front of one.
_TITLE = re.compile(r"[^。！？!?；;，,：:…“”‘’「」『』、]{1,24}")
_DEDICATION = re.compile(r"(?:谨以|謹以|谨|謹)?(?:此书|此書)?[献獻]给|[献獻]給|[纪紀]念|^[致給给]")


def is_title(text: str) -> bool:
    """Whether a line has the shape of a work's name, spaces between its characters not counted. A number alone has not: it may
    keep another that counts down with it."""
    shaped = _TITLE.fullmatch("".join(text.split()))
    return bool(shaped) and not _DEDICATION.match(text) and not LONE_NUMBER.fullmatch(text)


_NAMED = re.compile(
    r"[书書]\s*名\s*[:：]\s*《?([^《》:：]{2,24}?)》?$|《([^《》]{2,24})》|^([^。，/／《》]{2,24}?)\s?[/／][^/／。]{2,20}[著编編译譯]"
    r"|^([\u3400-\u9fff](?:[\s\u3000]{1,4}[\u3400-\u9fff]){2,9})$"
)
_PART = re.compile(r"[\s\u3000]*[（(][上中下全一二三四五六七八九十]{1,2}[册冊卷集部]?[）)]$")


def named_work(text: str) -> str:
    """The name that a line of front matter gives the work, if it gives one."""
    hit = _NAMED.search(text)
    return "".join(next(filter(None, hit.groups())).split()) if hit else ""


# What parts a work's name from the rest of a title page's line; and what such a line names that is no work.
_PARTED = re.compile(r"[\s\u3000]+|[·•／/|｜《》【】（）()\[\]〈〉,，、;；．.]+|[—–-]{1,2}")
_NAME = re.compile(r"[\u3400-\u9fff]{3,12}")
_NO_NAMES = re.compile(r"[。！？!?；;，,：:…“”‘’「」『』]|主角|配角|人物|[标標][签籤]|[关關][键鍵]")


def names_in(text: str) -> list[str]:
    """The names that a line of front matter may give the work: the one that it says is its name; without a mark of a sentence,
    each of its parts."""
    parts = [] if _NO_NAMES.search(text) else _PARTED.split(text)
    return [*filter(None, [named_work(text)]), *filter(_NAME.fullmatch, parts)]


def without_part(title: str) -> str:
    """A work's name without the part of it that a volume has: （上）."""
    return _PART.sub("", title)


_STARTS_HEADING = re.compile(r"第[\s\d〇零一二两三四五六七八九十百千]{1,9}[章回节節卷集部篇話话]|[☆★○◎◆■●]|[-=*_]{3}")
# A line shorter than this, without a mark at its end, may be a title rather than half a paragraph.
MIN_HALF = 16


def continues(before: str, after: str, indented: bool | None) -> bool:
    """Whether two lines, between which a page's mark was dropped, are halves of one sentence or paragraph.

    `indented` says whether `after` is indented as a paragraph; None where the work's paragraphs are not. Where they
    are, a line without an indent goes on what was before, even behind the end of a sentence, unless it may be a title.
    Where they are not, there is less to judge by: then half a sentence is long or ends in a comma, and no quotation
    opens behind it.
    """
    before, after = before.rstrip(), after.lstrip()
    if not before or not after or indented or _STARTS_HEADING.match(after):
        return False
    # Numbers alone that are left are somebody's list or count.
    if LONE_NUMBER.fullmatch(after) or LONE_NUMBER.fullmatch(before):
        return False
    if after[0] in CLOSERS:
        return True
    # A straight quotation mark behind a colon opens.
    ended = before[-1] in SENTENCE_ENDS and not re.search("[：:，,][\"']$", before)
    if indented is not None:
        return not ended or after[-1] in SENTENCE_ENDS + CLAUSE_ENDS or len(after) >= MIN_HALF
    if ended or after[0] in OPENERS or before[-1] in "：:":
        return False
    return before[-1] in CLAUSE_ENDS or len(before) >= MIN_HALF


# A number alone, as misread or framed as scanned pages have it; no year, and no laughter or code of chat: 666, 2333, 520.
FRAME = r"[\s\u3000·•・‧.．—–―－\-~～_=＿|｜▏▕丨/／\\＼\[\]［］〔〕〈〉<>＜＞«»（）()*＊]"
ORNAMENT = "◆◇●○■□★☆※◎‖#＃«»←→♦"
_NUMERALS = "[〇零○一二三四五六七八九十百廿卅]"
LONE_NUMBER = re.compile(
    rf"{FRAME}{{0,40}}(?P<number>[0-9０-９oOlIZ](?:[\s\u3000]?[0-9０-９oOlIZBS]){{0,3}})[+＋]?(?:{FRAME}{{0,40}}|[\s\u3000]一)"
    rf"|[{ORNAMENT}\s\u3000]{{1,4}}(?P<framed>[0-9０-９]{{1,4}})[{ORNAMENT}\s\u3000]{{1,4}}"
    rf"|(?=[\s\u3000]*[（(]?[\s\u3000]*[·•‧—–―－~～=＝|｜‖])(?:{FRAME}|‖){{1,5}}(?P<numeral>{_NUMERALS}{{1,4}})(?:{FRAME}|‖){{1,5}}"
    rf"|{FRAME}{{0,3}}(?P<page>[0-9０-９]{{1,4}})[\s\u3000]?[/／][\s\u3000]?(?P<pages>[0-9０-９]{{2,4}}){FRAME}{{0,3}}"
)
