"""Traditional and simplified characters: which script a work is in, and its lines in simplified script (OpenCC).

Only characters that belong to one script decide: one that GB 2312 lacks and OpenCC simplifies is traditional, one that
GB 2312 has and Big5 lacks is simplified. So 乾, 著 and 覆, which simplified prose uses too, count for neither.

C characters of a text.
"""

import functools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raystyle.corpus.literals import code_points

# Among the characters of one script only: from this share on, a work is traditional throughout; below the other, a
# traditional character is a name or a slip.
THROUGHOUT, SOME = 0.6, 0.005
# So few characters of one script tell nothing.
MIN_JUDGED = 50
MIN_LINE_CHARS = 2


def simplified_lines(text: str, lines: Iterable[str], to_simplified: str) -> Iterator[tuple[int, str]]:
    """Lines of a work that are to be simplified, by index, and what they become.

    `auto`: lines in traditional script of a work that is simplified on the whole; a work that is traditional throughout
    stays as it is. `always`: of any work. `never`: none.
    """
    if to_simplified == "never":
        return
    traditional, simplified = count(text)
    share = traditional / max(1, traditional + simplified)
    if share < SOME or (to_simplified == "auto" and (share >= THROUGHOUT or traditional + simplified < MIN_JUDGED)):
        return
    for index, line in enumerate(lines):
        here, other = count(line)
        if here > other and (here >= MIN_LINE_CHARS or share >= THROUGHOUT):
            yield index, _converter().convert(line)


def count(text: str) -> tuple[int, int]:
    """How many characters of a text are traditional only, and how many simplified only."""
    kinds_C = _kinds().take(code_points(text), mode="clip")
    return int(np.count_nonzero(kinds_C == 1)), int(np.count_nonzero(kinds_C == 2))


@functools.lru_cache(maxsize=1)
def _converter() -> Any:
    from opencc import OpenCC

    return OpenCC("t2s")


@functools.lru_cache(maxsize=1)
def _kinds() -> NDArray[np.uint8]:
    """For each code point 1 if it is traditional only, 2 if simplified only, else 0."""
    han = [chr(code) for code in [*range(0x3400, 0x4DC0), *range(0x4E00, 0xA000)]]
    changed = _converter().convert("\n".join(han)).split("\n")
    table = np.zeros(0xA001, np.uint8)
    for char, now in zip(han, changed, strict=True):
        if _in(char, "gb2312"):
            table[ord(char)] = 0 if _in(char, "big5") else 2
        elif char != now:
            table[ord(char)] = 1
    return table


def _in(char: str, encoding: str) -> bool:
    try:
        char.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True
