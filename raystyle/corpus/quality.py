"""The guard: what a cleaned text is like, and whether that is a reason to put it aside.

A text that loses most of itself, or that reads as no language, is quarantined with its numbers, not passed on and not
dropped in silence. All shares are of characters that are not whitespace.
"""

import re
from typing import NamedTuple

import numpy as np

from raystyle.corpus.encodings import everyday_share
from raystyle.corpus.literals import code_points

# A short text says little about itself: a letter of two lines may well lose one of them.
MIN_JUDGED_CHARS = 1_000
# Right readings of Chinese score 0.5 to 0.8, wrong ones below 0.03 (see encodings).
MIN_EVERYDAY_SHARE = 0.12
# Enough of a text to know it by, taken from all over it.
SAMPLE_CHARS = 20_000
_HAN = re.compile(r"[\u3400-\u9fff\U00020000-\U0003ffff]")
# Replacement characters, private use, control characters that are no whitespace, and what GBK makes of them.
_GARBAGE = np.zeros(0x10000, bool)
for _first, _last in [(0xFFFD, 0xFFFD), (0xE000, 0xF8FF), (0x00, 0x08), (0x0E, 0x1B), (0x7F, 0x84), (0x86, 0x9F)]:
    _GARBAGE[_first : _last + 1] = True
_GARBLED = ("锟斤拷", "烫烫烫", "屯屯屯")
_SPACE = re.compile(r"\s")


class Limits(NamedTuple):
    """What a text may be like. See the flags of the same names."""

    max_removed_share: float
    max_garbage_share: float
    max_repeated_share: float
    min_han_share: float
    min_mean_line_chars: float


class Quality(NamedTuple):
    """Measures of a cleaned text: shares from 0 to 1, and the mean length of a line in characters."""

    removed_share: float
    garbage_share: float
    repeated_share: float
    han_share: float
    mean_line_chars: float


def measure(text: str, before: str, solid_in: int) -> Quality:
    """Measures of a cleaned text, which was `before` with `solid_in` characters.

    Garbage is counted in what came in: rules cut it, and a text with holes would read as a clean one.
    """
    lines = text.split("\n")
    solid = len(text) - len(lines) + 1
    kept = len(_SPACE.sub("", text)) if solid < SAMPLE_CHARS else solid
    once = sum(map(len, set(lines)))
    sample = _SPACE.sub("", text[:: max(1, len(text) // SAMPLE_CHARS)])
    length = max(1, len(sample))
    return Quality(
        removed_share=max(0.0, 1 - kept / max(1, solid_in)),
        garbage_share=min(1.0, _garbage(before) / max(1, solid_in)),
        repeated_share=1 - once / max(1, solid),
        han_share=len(_HAN.findall(sample)) / length,
        mean_line_chars=solid / max(1, len(lines)),
    )


def _garbage(text: str) -> int:
    """How many characters are garbage."""
    single = np.count_nonzero(_GARBAGE.take(code_points(text), mode="clip"))
    return int(single) + sum(len(garbled) * text.count(garbled) for garbled in _GARBLED)


def objection(text: str, before: str, solid_in: int, limits: Limits) -> tuple[str, str] | None:
    """Why a cleaned text is to be put aside: a reason for the count and a detail with the number; None where it is fine.

    `before` is what it was cleaned from, `solid_in` how many characters that has.
    """
    if solid_in < MIN_JUDGED_CHARS:
        return None
    found = measure(text, before, solid_in)
    for reason, value, limit, flag in [
        ("mostly_removed", found.removed_share, limits.max_removed_share, "max_removed_share"),
        ("garbage", found.garbage_share, limits.max_garbage_share, "max_garbage_share"),
        ("repetitive", found.repeated_share, limits.max_repeated_share, "max_repeated_share"),
    ]:
        if value > limit:
            return reason, f"{value:.1%} of {solid_in:,} characters; `{flag}` is {limit:g}"
    if found.han_share < limits.min_han_share:
        return "not_chinese", f"{found.han_share:.1%} Chinese characters; `min_han_share` is {limits.min_han_share:g}"
    if found.mean_line_chars < limits.min_mean_line_chars:
        detail = (
            f"{found.mean_line_chars:.1f} characters in a line; `min_mean_line_chars` is {limits.min_mean_line_chars:g}"
        )
        return "short_lines", detail
    sample = text[:: max(1, len(text) // SAMPLE_CHARS)]
    if found.han_share > 0.5 and (share := everyday_share(sample)) < MIN_EVERYDAY_SHARE:
        return (
            "mojibake",
            f"{share:.1%} everyday characters, where Chinese has half and more: decoded wrongly once before",
        )
    return None
