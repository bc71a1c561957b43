import random
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raystyle.corpus.context import Layout, continues, hard_wraps
from raystyle.corpus.encodings import decode

CLAUSES = [
    "天色慢慢暗下来", "他把灯点上", "河边的柳树已经落尽了叶子", "没有人应声", "那只旧箱子还放在墙角里", "母亲在灶下烧火",
    "风从门缝里钻进来", "邻家的狗叫了两声", "他想起小时候走过的那座桥", "雨点打在瓦上", "路上一个行人也没有", "她低头缝着一件棉衣",
]  # fmt: skip
LATIN = ["他在Boston住过3年", "船票要25元", 'Li先生说"再会"']


def layout_of(lines: Sequence[str]) -> Layout:
    stripped = [line.strip() for line in lines]
    return Layout(
        np.array([len(text) for text in stripped], np.int32),
        np.array([len(line) - len(line.lstrip()) for line in lines], np.int32),
        np.array([ord(text[0]) if text else 0 for text in stripped], np.int32),
        np.array([ord(text[-1]) if text else 0 for text in stripped], np.int32),
    )


def paragraphs(count: int, seed: int = 0, latin: bool = False, longest: int = 12) -> list[str]:
    """Invented prose: paragraphs of one to so many clauses, some of them speech."""
    rng = random.Random(seed)
    texts = []
    for _ in range(count):
        clauses = [rng.choice(CLAUSES * 2 + LATIN if latin else CLAUSES) for _ in range(rng.randint(1, longest))]
        marks = [rng.choice("，，，。；！") for _ in clauses[:-1]] + ["。"]
        text = "".join(clause + mark for clause, mark in zip(clauses, marks, strict=True))
        texts.append(f"“{text}”" if rng.random() < 0.2 else text)
    return texts


def columns(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(letter) in "WFA" else 1 for letter in text)


def wrapped(paragraph: str, width: int, indent: str = "") -> list[str]:
    """A paragraph broken at so many columns, with no mark at the beginning of a line."""
    lines, line = [], indent
    for letter in paragraph:
        if columns(line + letter) > width and letter not in "，。；！”":
            lines.append(line)
            line = ""
        line += letter
    return [*lines, line]


def joined(lines: Sequence[str]) -> list[str]:
    """The paragraphs that lines make when those that go on are joined."""
    goes_on = hard_wraps(layout_of(lines))
    out, open_ = [], False
    for line, more in zip(lines, goes_on, strict=True):
        if not line.strip():
            continue
        if open_:
            out[-1] += line.strip()
        else:
            out.append(line.strip())
        open_ = bool(more)
    return out


@pytest.mark.parametrize("latin", [False, True])
@pytest.mark.parametrize("width", [48, 64, 78])
@pytest.mark.parametrize(("indent", "gap"), [("　　", []), ("    ", []), ("", [""]), ("　　", [""])])
def test_marked_paragraphs_are_put_together_again(width: int, indent: str, gap: list[str], latin: bool) -> None:
    texts = paragraphs(200, latin=latin)
    lines = [line for text in texts for line in [*wrapped(text, width, indent), *gap]]
    right = set(joined(lines)) & set(texts)
    assert len(right) >= (0.95 if latin else 0.98) * len(set(texts))
    assert "".join(joined(lines)) == "".join(texts)


def test_paragraphs_without_any_mark_end_where_a_line_is_short() -> None:
    texts = paragraphs(200, seed=1, longest=16)
    result = joined([line for text in texts for line in wrapped(text, 70)])
    assert len(set(result) & set(texts)) >= 0.8 * len(set(texts))
    # Speech opens a paragraph of its own even behind a full line.
    assert not any("。“" in text for text in result if text not in texts)


def test_a_text_that_is_indented_or_double_spaced_throughout_is_joined_too() -> None:
    texts = paragraphs(200, seed=2)
    deep = [line for text in texts for line in wrapped(text, 70, "　　")]
    assert joined(["        " + line for line in deep]) == joined(deep)
    assert joined([line for text in deep for line in (text, "")]) == joined(deep)


def test_a_change_of_width_is_followed() -> None:
    texts = paragraphs(400, seed=3)
    lines = [line for i, text in enumerate(texts) for line in wrapped(text, 78 if i < 200 else 56, "　　")]
    assert len(set(joined(lines)) & set(texts)) >= 0.92 * len(set(texts))


@pytest.mark.parametrize("title", ["第二回　柳树", "12", "归途"])
def test_headings_and_page_numbers_inside_a_wrapped_text_stay_alone(title: str) -> None:
    texts = paragraphs(200, seed=4)
    lines = []
    for i, text in enumerate(texts):
        lines += wrapped(text, 70, "　　")
        lines += [title] if i % 10 == 9 else []
    assert joined(lines).count(title) == 20


def couplets(half: int) -> list[str]:
    """Regular verse: two halves of so many characters and their marks."""
    rng = random.Random(5)
    letters = "山水云月风花雪夜舟桥柳雁灯窗酒诗"
    verse = ["".join(rng.choices(letters, k=half)) for _ in range(600)]
    return [f"{a}，{b}。" for a, b in zip(verse[::2], verse[1::2], strict=True)]


@pytest.mark.parametrize(
    "lines",
    [
        paragraphs(400),
        [line for text in paragraphs(400) for line in (text, "")],
        ["　　" + text for text in paragraphs(400, longest=3)],
        couplets(5),
        couplets(7),
        couplets(12),
        [f"“{clause}？”" for clause in CLAUSES * 40],
        [f"第{i}章　{CLAUSES[i % 12]}" for i in range(300)],
        [f"第{i:03d}章　河边的那座旧桥上　等了一夜的雨和风" for i in range(300)],
        ["=" * 40] * 10,
        [],
        ["", "", ""],
    ],
)
def test_what_nobody_broke_is_not_joined(lines: list[str]) -> None:
    assert not hard_wraps(layout_of(lines)).any()


def test_verse_within_a_wrapped_novel_stays_verse() -> None:
    prose = [line for text in paragraphs(300, seed=6) for line in wrapped(text, 70, "　　")]
    verse = couplets(7)[:8]
    result = joined([*prose[:400], *verse, *prose[400:]])
    assert set(verse[1:]) <= set(result)


@given(
    st.integers(0, 10_000),
    st.integers(44, 90),
    st.sampled_from(["", "　　"]),
    st.sampled_from([[], [""]]),
    st.booleans(),
)
def test_what_was_joined_is_not_joined_again(seed: int, width: int, indent: str, gap: list[str], latin: bool) -> None:
    texts = paragraphs(120, seed, latin)
    once = joined([line for text in texts for line in [*wrapped(text, width, indent), *gap]])
    assert joined(once) == once


@given(
    st.lists(
        st.sampled_from(["", "　　", "短", "一" * 30, "　　" + "一" * 28, "“" + "话" * 25 + "。”", "诗" * 80]),
        max_size=300,
    )
)
def test_only_text_goes_on_and_only_into_text(lines: list[str]) -> None:
    goes_on = hard_wraps(layout_of(lines))
    assert goes_on.shape == (len(lines),)
    assert all(lines[i].strip() and any(line.strip() for line in lines[i + 1 :]) for i in np.flatnonzero(goes_on))


@pytest.mark.parametrize(
    ("before", "after", "indented"),
    [
        ("他沿着河岸一直走到了渡", "口，船已经开走了。", False),
        ("他沿着河岸一直走到了渡", "口，船已经开走了。", False),
        ("他走到渡口，", "船已经开走了。", False),
        ("他说：“船已经开走了。", "”老人点了点头。", False),
        ("他", "走到渡口。", False),
        ("老人说：", "“船已经开走了。”", False),
        ("他在渡口坐下。", "船已经开走了。", False),
        ('老人摇头说："', '船已经开走了。"', False),
        ("他沿着河岸一直走，走了一个多时辰，才走到渡", "口，船已经开走了。", None),
        ("他走到渡口，", "船已经开走了。", None),
        ("他说船已经开走了", "。老人点了点头。", None),
    ],
)
def test_halves_of_a_sentence_or_paragraph_belong_together(before: str, after: str, indented: bool | None) -> None:
    assert continues(before, after, indented)


@pytest.mark.parametrize(
    ("before", "after", "indented"),
    [
        ("他走到渡口，", "船已经开走了。", True),
        ("他在渡口坐下。", "归途", False),
        ("他在渡口坐下。", "船已经开走了。", None),
        ("“船已经开走了。”", "老人点了点头。", None),
        ("老人说：", "“船已经开走了。”", None),
        ("归途", "他走到渡口。", None),
        ("他在渡口坐下，望着对岸，那里", "第三章　归途", None),
        ("他在渡口坐下，望着对岸，那里", "◆◆◆", False),
        ("", "他走到渡口。", False),
        ("他走到渡口，", " ", False),
    ],
)
def test_paragraphs_and_titles_stay_apart(before: str, after: str, indented: bool | None) -> None:
    assert not continues(before, after, indented)


def test_real_novels(novels: Path) -> None:
    joins = {}
    for path in sorted(novels.glob("*.txt")):
        lines = decode(path.read_bytes())[0].replace("\r\n", "\n").replace("\r", "\n").split("\n")
        goes_on = hard_wraps(layout_of(lines))
        joins[path.stem] = int(goes_on.sum())
        for i in np.flatnonzero(goes_on):
            assert lines[i + 1].strip() and not lines[i + 1].startswith("    ")
    assert joins.pop("聊斋志异") == 2955
    assert not any(joins.values()) and len(joins) == 10
