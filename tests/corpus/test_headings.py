from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_context import layout_of

from raystyle.corpus.encodings import decode
from raystyle.corpus.headings import (
    MIN_APART,
    MIN_BETWEEN,
    MIN_FIRST_APART,
    Candidate,
    accept,
    parse_number,
    signed_titles,
    weak_candidate,
    weak_candidates,
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("三", 3), ("十", 10), ("十二", 12), ("二十", 20), ("二十三", 23), ("一百零八", 108), ("一百〇三", 103), ("一百三", 103),
        ("百二十", 120), ("一千二百三十四", 1234), ("两百", 200), ("廿三", 23), ("卅", 30), ("〇", 0), ("一二", 12), ("一○五", 105),
        ("贰拾叁", 23), ("壹", 1), ("１２", 12), (" 1 2 ", 12), ("IV", 4), ("xii", 12), ("Ⅻ", 12), ("ⅳ", 4), ("ＩＸ", 9),
        ("十百", None), ("三三十", None), ("二十三十", None), ("十十", None), ("IIII", None), ("几", None), ("", None), ("第", None),
    ],
)  # fmt: skip
def test_numbers_in_every_writing(text: str, number: int | None) -> None:
    assert parse_number(text) == number


HAN = "〇一二三四五六七八九"


def spelled(number: int) -> str:
    """A number below ten thousand in Han numerals."""
    out, zero = "", False
    for place, unit in ((1000, "千"), (100, "百"), (10, "十"), (1, "")):
        digit = number // place % 10
        out += ("零" if zero and out else "") + HAN[digit] + unit if digit else ""
        zero = bool(out) and not digit
    return out or "〇"


@given(st.integers(0, 9999))
def test_spelled_numbers_are_read(number: int) -> None:
    assert parse_number(spelled(number)) == parse_number(str(number)) == number
    assert parse_number("".join(HAN[int(digit)] for digit in str(number))) == number


@pytest.mark.parametrize(
    ("text", "unit", "number", "title"),
    [
        ("第七回我可不会再让你", "回", 7, "我可不会再让你"),
        ("第三章风雪归途，一灯如豆", "章", 3, "风雪归途，一灯如豆"),
        ("第12節 渡口", "节", 12, "渡口"),
        ("12、归途", "、", 12, "归途"),
        ("三．归途", ".", 3, "归途"),
        ("3 归途", " ", 3, "归途"),
        ("12", "", 12, ""),
        ("十三", "", 13, ""),
        ("IV", "", 4, ""),
        ("（三）", ")", 3, ""),
        ("(3)归途", ")", 3, "归途"),
        ("归途（2）", "()归途", 2, "归途（2）"),
        ("【001】归途", "【", 1, "归途"),
        ("[012] 归途", "[", 12, "归途"),
        ("【一】", "【", 1, ""),
        ("「一」", "「", 1, ""),
        ("<1>", "<", 1, ""),
        ("1)", ")", 1, ""),
        ("01-归途", "-", 1, "归途"),
        ("01·归途", "·", 1, "归途"),
        ("1：归途", ":", 1, "归途"),
        ("1/归途", "/", 1, "归途"),
        ("#1 归途", "#", 1, "归途"),
        ("§1", "§", 1, ""),
        ("No.1 归途", "No.", 1, "归途"),
        ("章一 归途", "章", 1, "归途"),
        ("其一", "其", 1, ""),
        ("其之一　归途", "其之", 1, "归途"),
        ("第一封信　归途", "封信 + title", 1, "归途"),
    ],
)
def test_weak_shapes(text: str, unit: str, number: int, title: str) -> None:
    assert weak_candidate(5, text) == Candidate(5, unit, number, False, title)


@pytest.mark.parametrize(
    "text",
    [
        "", "他走到渡口。", "一个人走在河边", "二十年前的那一夜", "“第三章说的是什么？”", "第二节课他没有来。", "（笑）你来了", "三、", "◆",
        "◆◆◆", "【叮！】", "【等级：12】", "2、他走到渡口，船已经开走了。", "第二回来的时候，天已经黑了，他在渡口坐了一夜，", "某兄：", "X光",
        "他翻开第三章", "一" * 41, "12：30 到站", "【1】某人到了", "[1] 见某书卷二", "【1】某人：到！", "「一个人」", "之一个人", "其一，不许哭", "3/5", "第二天",
        "第一封信里说的是他", "第二天　他走了，没有回头",
    ],
)  # fmt: skip
def test_what_is_no_candidate(text: str) -> None:
    assert weak_candidate(0, text) is None


def test_candidates_of_a_work_are_those_of_its_lines() -> None:
    lines = [
        "第七回我可不会再让你",
        "　　12、归途",
        "他走到渡口。",
        "",
        "归途（2）",
        "（三）",
        "船已经开走了",
        "　　十三　",
    ]
    found = weak_candidates(layout_of(lines), lambda i: lines[i].strip())
    single = (weak_candidate(i, line.strip()) for i, line in enumerate(lines))
    assert found == [candidate for candidate in single if candidate]


def work(*parts: Candidate | int) -> tuple[list[Candidate], np.ndarray]:
    """Candidates on lines of their own, and between them lines of so many characters."""
    chars = [10 if isinstance(part, Candidate) else part for part in parts]
    found = [part._replace(line=line) for line, part in enumerate(parts) if isinstance(part, Candidate)]
    return found, np.array(chars, np.int32)


def strong(number: int | None, unit: str = "章", title: str = "") -> Candidate:
    return Candidate(0, unit, number, True, title)


def weak(number: int, unit: str = "章", title: str = "") -> Candidate:
    return Candidate(0, unit, number, False, title)


def accepted(*parts: Candidate | int) -> list[int]:
    """Which of the candidates (by their order) are accepted."""
    found, chars = work(*parts)
    lines = accept(found, chars)
    return [order for order, candidate in enumerate(found) if candidate.line in lines]


def chapters(*parts: Candidate) -> list[Candidate | int]:
    return [item for part in parts for item in (part, 900)]


def test_strong_candidates_are_always_headings() -> None:
    assert accepted(strong(3), strong(None, ""), strong(3), 5, strong(9)) == [0, 1, 2, 3]


def test_a_weak_heading_between_its_neighbours_is_one() -> None:
    assert accepted(*chapters(strong(1), weak(2), strong(3))) == [0, 1, 2]
    assert accepted(*chapters(strong(1), weak(2), weak(3), weak(4), strong(5))) == [0, 1, 2, 3, 4]
    # A missing chapter does not matter.
    assert accepted(*chapters(strong(1), weak(3), strong(5))) == [0, 1, 2]
    # The first and the last have one neighbour; the last needs a longer chain.
    assert accepted(*chapters(weak(1), strong(2), strong(3))) == [0, 1, 2]
    assert accepted(*chapters(strong(1), strong(2), strong(3), strong(4), weak(5))) == [0, 1, 2, 3, 4]
    assert accepted(*chapters(strong(1), strong(2), weak(3))) == [0, 1]


def test_prose_that_looks_like_a_heading_has_the_wrong_number() -> None:
    novel = [strong(n) for n in range(1, 21)]
    for number, after in [(7, 3), (7, 6), (7, 7), (7, 12), (21, 5), (1, 1)]:
        fake = weak(number, title="我可不会再让你")
        assert len(novel) not in accepted(*chapters(*novel[:after]), fake, *chapters(*novel[after:]))[after:after]
        found, chars = work(*chapters(*novel[:after]), fake, *chapters(*novel[after:]))
        assert {c.line for c in found if c.strong} == accept(found, chars)
    assert accepted(*chapters(*novel), weak(7, "回")) == list(range(20))


def test_a_list_is_no_row_of_chapters() -> None:
    assert accepted(*[weak(n, "、") for n in range(1, 20)]) == []
    assert accepted(*[part for n in range(1, 20) for part in (weak(n, "、"), MIN_BETWEEN - 20)]) == []
    assert accepted(*[part for n in range(1, 20) for part in (weak(n, "、"), MIN_BETWEEN)]) == list(range(19))


def test_a_row_of_weak_headings_needs_five() -> None:
    near = [part for n in range(1, 5) for part in (weak(n, ""), MIN_APART - 1)]
    assert accepted(*near) == [] and accepted(*near, weak(5, "")) == list(range(5))
    assert accepted(*chapters(*[weak(n, "") for n in range(1, 6)])) == list(range(5))
    assert accepted(*chapters(weak(1, ""), weak(2, ")"), weak(3, ""), weak(4, ")"), weak(5, ""), weak(6, ")"))) == []


def test_a_row_of_weak_chapters_needs_three() -> None:
    for name in "章回":
        assert accepted(*chapters(*[weak(n, name) for n in range(1, 4)])) == [0, 1, 2]
        assert accepted(*chapters(weak(1, name), weak(2, name))) == []
    near = [part for n in range(1, 4) for part in (n, MIN_BETWEEN)]
    assert accepted(*[weak(part, "夜") if part < 4 else part for part in near]) == []
    assert accepted(*[weak(part, "夜 + title") if part < 4 else part for part in near]) == [0, 1, 2]


def test_far_apart_three_are_enough_and_the_first_two() -> None:
    assert accepted(*chapters(*[weak(n, "、") for n in range(3, 6)])) == [0, 1, 2]
    assert accepted(*chapters(weak(3, "、"), weak(5, "、"), weak(6, "、"))) == []
    first = [weak(1, "、"), MIN_FIRST_APART, weak(2, "、"), 900]
    assert accepted(*first) == [0, 1] and accepted(weak(1, "、"), MIN_FIRST_APART - 1, weak(2, "、")) == []
    assert accepted(weak(2, "、"), MIN_FIRST_APART, weak(3, "、")) == []
    # What stands between is of a list, and each item of it might be the next one of another.
    assert accepted(weak(1, "、"), 0, weak(2, "、"), MIN_FIRST_APART, weak(2, "、"), 0, weak(3, "、")) == []


def test_a_row_that_another_proves_in_part_goes_on() -> None:
    # 2 3 4 6 8 are a chain, which 5 and 7 are not in; without the last text they are none, and 3 4 5 stand far apart.
    numbers, texts = [1, 2, 3, 4, 5, 6, 7, 8], [0, 200, 900, 900, 0, 0, 900]
    parts = [part for number, text in zip(numbers, [*texts, 0], strict=True) for part in (weak(number, ""), text)]
    found, chars = work(*parts)
    once = accept(found, chars)
    chars[-3] = 0
    assert accept(found, chars) <= once


def test_titles_behind_one_sign() -> None:
    page = "他坐在黑地里听雨。" * 30
    work_of = lambda *titles: "\n".join(part for title in titles for part in (title, page)).split("\n")  # noqa: E731

    def found(*titles: str) -> list[str]:
        lines = work_of(*titles)
        return [c.title for c in signed_titles(layout_of(lines), lambda i: lines[i])]

    assert found("○海市", "○书贾", "○ 某令") == ["海市", "书贾", "某令"]
    assert found("○海市", "○书贾") == [] and found("○海市", "◎书贾", "○某令") == []
    assert found("○海市。", "○书贾。", "○某令。") == []
    lines = ["■力量", "■敏捷", "■体质", "■智力", page]
    assert signed_titles(layout_of(lines), lambda i: lines[i]) == []


def test_numbers_start_again_in_a_new_volume() -> None:
    first = [strong(n) for n in range(1, 7)]
    assert accepted(*chapters(*first, strong(2, "卷"), weak(1), strong(2), strong(3))) == list(range(10))
    assert accepted(*chapters(*first, strong(2, "卷"), weak(1), weak(2), strong(3))) == list(range(10))
    assert accepted(*chapters(*first, weak(2), strong(7), strong(8))) == [*range(6), 7, 8]


def test_a_repeated_heading_is_one_too() -> None:
    assert accepted(strong(1, title="归途"), weak(1, title=" 归 途"), 900, strong(2), 900, strong(3)) == [0, 1, 2, 3]
    assert accepted(strong(1, title="归途"), weak(1, title="他说了很多次"), 900, strong(2), 900, strong(3)) == [0, 2, 3]


@st.composite
def pieces(draw: st.DrawFn) -> list[Candidate | int]:
    """Rows of numbers that mostly go on, of a few units mixed, with more or less text between."""
    parts: list[Candidate | int] = []
    numbers = {"章": 0, "卷": 0, "": 0}
    steps = st.sampled_from([1, 1, 1, 1, 2, 3, 0, -1, -4])
    for _ in range(draw(st.integers(0, 30))):
        unit = draw(st.sampled_from(["章", "章", "卷", "", ""]))
        numbers[unit] = max(numbers[unit] + draw(steps), 0)
        title = draw(st.sampled_from(["", "归途"]))
        is_strong = unit != "" and draw(st.booleans())
        parts += [Candidate(0, unit, numbers[unit], is_strong, title), draw(st.sampled_from([0, 150, 200, 900, 900]))]
    return parts


def without(
    found: list[Candidate], chars: np.ndarray, gone: set[int]
) -> tuple[list[Candidate], np.ndarray, dict[int, int]]:
    """The work without some lines, and where each line that is left was."""
    left = [line for line in range(len(chars)) if line not in gone]
    new = {old: line for line, old in enumerate(left)}
    return [c._replace(line=new[c.line]) for c in found if c.line in new], chars[left], dict(enumerate(left))


@given(pieces(), st.data())
def test_what_is_rejected_stays_rejected_when_the_accepted_and_any_text_are_gone(
    parts: list, data: st.DataObject
) -> None:
    found, chars = work(*parts)
    once = accept(found, chars)
    others = sorted(set(range(len(chars))) - {c.line for c in found})
    gone = once | (set(data.draw(st.lists(st.sampled_from(others)))) if others else set())
    assert accept(*without(found, chars, gone)[:2]) == set()


@given(pieces(), st.data())
def test_while_candidates_stay_no_loss_of_lines_accepts_another(parts: list, data: st.DataObject) -> None:
    found, chars = work(*parts)
    once = accept(found, chars)
    removable = sorted(set(range(len(chars))) - {c.line for c in found})
    gone = set(data.draw(st.lists(st.sampled_from(removable)))) if removable else set()
    left, left_chars, origin = without(found, chars, gone)
    assert {origin[line] for line in accept(left, left_chars)} <= once


def test_a_hundred_thousand_candidates_take_no_longer_each() -> None:
    found, chars = work(*chapters(*[weak(n % 50 + 1, "") for n in range(50_000)]))
    assert len(accept(found, chars)) == 50_000


def test_real_novels(novels: Path) -> None:
    counts = {}
    for path in sorted(novels.glob("*.txt")):
        lines = decode(path.read_bytes())[0].replace("\r\n", "\n").replace("\r", "\n").split("\n")
        layout = layout_of(lines)
        found = [
            c
            for c in weak_candidates(layout, lambda i, lines=lines: lines[i].strip())
            if c.unit in ("", ")", "、", ".")
        ]
        counts[path.stem] = len(accept(found, layout.chars_L))
    # Sections of essays and stories, each read; the numbered lists in 朱自清's essays are none.
    assert counts == {
        "三国演义": 0, "文史通义": 0, "朱自清大全集": 22, "東坡樂府": 0, "水浒传": 0, "浮生六记": 0, "老残游记": 0, "聊斋志异": 0,
        "落花生": 0, "郁达夫大全集": 98, "鲁迅全集": 72,
    }  # fmt: skip
