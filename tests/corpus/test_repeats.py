import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_context import layout_of, paragraphs

from raystyle.corpus.encodings import decode
from raystyle.corpus.headings import Candidate
from raystyle.corpus.repeats import Recurring, contents, furniture, recurring

TITLES = [
    "旧桥",
    "渡口的夜",
    "一封没有寄出的信",
    "母亲的棉衣",
    "雨",
    "灯下",
    "河对岸的人",
    "归途",
    "落叶",
    "你是谁？",
    "空箱子",
    "最后一夜",
]
# Titles whose first or last character says nothing.
PROSE = ["　　" + text for text in paragraphs(300, longest=30)]


def tables(lines: Sequence[str], known: Sequence[int] = ()) -> tuple[list[str], list[int]]:
    """The text of the lines in tables of contents, and the lines that these prove to be headings."""
    found, proved = contents(layout_of(lines), lambda i: lines[i].strip(), known)
    return [lines[i] for i in sorted(found)], sorted(proved)


def book(titles: Sequence[str], mark: str = "") -> list[str]:
    """Chapters with a bare title each."""
    return [
        line
        for n, title in enumerate(titles)
        for line in (mark + title, "", "　　" + "他走到渡口，船已经开走了。" * 9, *PROSE[n * 5 : n * 5 + 5])
    ]


@pytest.mark.parametrize(
    "listed",
    [
        TITLES,
        [line for title in TITLES for line in (title, "")],
        [f"{title}……………{n * 7}" for n, title in enumerate(TITLES, 1)],
        [f"{title}　{n * 7}" for n, title in enumerate(TITLES, 1)],
        [f"第{n}章 {title}" for n, title in enumerate(TITLES, 1)],
        [f"{n}、{' '.join(title)}" for n, title in enumerate(TITLES, 1)],
        [f"{n}. {title}" for n, title in enumerate(TITLES, 1)],
        [f"第 {n} 章 {title}" for n, title in enumerate(TITLES, 1)],
        [f"{title} / {n * 7:03d}" for n, title in enumerate(TITLES, 1)],
        [f"{n * 7:03d}　{title}" for n, title in enumerate(TITLES, 1)],
        [f"- [第{n}章 {title}](#c{n})" for n, title in enumerate(TITLES, 1)],
        [*TITLES[:6], "一篇没有收进来的", "另一篇", *TITLES[6:]],
    ],
)
def test_a_table_of_contents_proves_its_titles(listed: list[str]) -> None:
    front = ["旧桥集", "", "　　这是一本很薄的书。", ""]
    lines = [*front, *listed, "", "　　以下是正文，一共十二篇。", *book(TITLES)]
    found, proved = tables(lines)
    assert found == [line for line in listed if line]
    assert [lines[i] for i in proved] == TITLES


@pytest.mark.parametrize("mark", ["", "{n} "])
def test_the_first_title_may_follow_its_table_at_once(mark: str) -> None:
    """Whether the titles over the chapters are headings that are known (by their numbers), or proved by the table."""
    body = [line for n, title in enumerate(TITLES, 1) for line in book([title], mark.format(n=n))]
    lines = [*TITLES, "", *body]
    titled = [len(TITLES) + 1 + i for i, line in enumerate(body) if line.endswith(tuple(TITLES))]
    assert tables(lines, titled if mark else ()) == (TITLES, [] if mark else titled)


def test_headings_with_no_text_between_are_a_table() -> None:
    listed = [f"第{n}章 {title}" for n, title in enumerate(TITLES, 1)]
    lines = [*listed, "", *(line for heading in listed for line in (heading, PROSE[0]))]
    known = [i for i, line in enumerate(lines) if line.startswith("第")]
    assert tables(lines, known) == (listed, [])
    # A volume, its part and its chapter are three headings in a row.
    assert tables(["第一卷", "上部", "第一章", PROSE[0]], [0, 1, 2]) == ([], [])


@pytest.mark.parametrize(
    "lines",
    [
        [],
        PROSE,
        book(TITLES),
        # Verse with a refrain: nothing but verse behind its lines.
        [*PROSE[:5], *["河水流过旧桥", "灯火已经灭了", "谁还在渡口", "等一只小船"] * 4, *PROSE[5:9]],
        # A list in a story, of which one thing comes back.
        [*PROSE[:5], "棉衣一件", "旧桥", "箱子一只", "油灯两盏", "米三斗", *PROSE[5:9], *book(["旧桥"])],
        # Speech, a letter, panels, scene breaks.
        [*["“来。”", "“不来。”", "“为什么？”", "“雨太大。”"] * 3, *PROSE[:5]],
        [*["某兄：", "久不见。", "船已经开了。", "弟某某"] * 2, *PROSE[:5]],
        [*["【叮！】", "【等级：12】", "【体力：30】", "【敏捷：8】"] * 5, PROSE[0]],
        ["◆", "◆", "◆", "◆", *PROSE[:3]],
    ],
)
def test_what_is_no_table_of_contents(lines: list[str]) -> None:
    assert tables(lines) == ([], [])


blocks = st.lists(
    st.one_of(st.sampled_from(TITLES), st.sampled_from(["", "　　雨下了一夜。", PROSE[0], "　　" + "长" * 200 + "。"])),
    max_size=60,
)


@given(blocks, st.sets(st.integers(0, 59)))
def test_a_work_without_its_tables_and_headings_holds_no_table(lines: list[str], known: set[int]) -> None:
    known = {i for i in known if i < len(lines) and lines[i]}
    found, proved = contents(layout_of(lines), lambda i: lines[i].strip(), known)
    assert not found & proved
    left = [line for i, line in enumerate(lines) if i not in found | proved | known]
    assert contents(layout_of(left), lambda i: left[i].strip(), set()) == (set(), set())


def novel(chapters: int, head: str = "", foot: str = "", every: int = 1) -> tuple[list[str], list[Candidate]]:
    """Chapters under numbered headings; in each `every`th one a header and a footer, `{n}` and `{title}` filled in."""
    lines: list[str] = []
    headings = []
    for n in range(chapters):
        title = TITLES[n % len(TITLES)]
        headings.append(Candidate(len(lines), "章", n + 1, True, title))
        marks = [text.format(n=n + 1, title=title) if n % every == 0 else "" for text in (head, foot)]
        lines += [f"第{n + 1}章 {title}", "", marks[0], "", *PROSE[n * 5 : n * 5 + 5], marks[1], "", ""]
    return lines, headings


def furniture_of(lines: list[str], headings: list[Candidate]) -> list[str]:
    return [lines[i] for i in sorted(furniture(layout_of(lines), lambda i: lines[i].strip(), headings))]


@pytest.mark.parametrize(
    "mark",
    [
        "旧桥书屋 更新时间:2007-1-{n} 本章字数:{n}06",
        "《长夜》{title} 长夜书屋手打",
        "www.example.com/{n}/",
        "旧桥书屋首发第{n}页",
        "本章由旧桥书屋整理",
        "《书屋长夜》{n}",
    ],
)
def test_headers_and_footers_stand_at_the_same_place(mark: str) -> None:
    for kind in ({"head": mark}, {"foot": mark}):
        lines, headings = novel(20, **kind)
        assert furniture_of(lines, headings) == [line for line in lines if "书屋" in line or "example" in line]
        assert furniture_of(*novel(7, **kind)) == []
        assert furniture_of(*novel(40, every=2, **kind)) == []
        assert furniture_of(lines, headings[:1]) == []


def test_a_running_head_has_the_number_of_its_page() -> None:
    lines, headings = novel(20, head="旧桥旧事　{n}")
    assert furniture_of(lines, headings) == [line for line in lines if line.startswith("旧桥旧事")]
    # A count that goes down is a story's.
    downward = [re.sub("(?<=旧桥旧事　)[0-9]+", lambda hit: str(99 - int(hit[0])), line) for line in lines]
    assert furniture_of(downward, headings) == []


def test_a_watermark_is_found_in_its_disguises() -> None:
    lines, headings = novel(20)
    ends = [heading.line - 2 for heading in headings[1:]]
    for order, i in enumerate(ends):
        lines[i] = [
            "www。example。com旧.桥.书.屋",
            "ｗｗｗ．ｅｘａｍｐｌｅ．ｃｏｍ旧／桥／书／屋",
            "w w w.example旧桥~书屋!",
            "旧桥书屋",
        ][order % 4]
    assert furniture_of(lines, headings) == [lines[i] for i in ends]


def test_sections_do_not_hide_chapters() -> None:
    lines, headings = novel(20, foot="本章由旧桥书屋整理")
    sections = []
    for heading in headings:
        for place, number in ((5, 1), (7, 2)):
            lines[heading.line + place] = "一二"[number - 1]
            sections.append(Candidate(heading.line + place, "", number, False))
    assert furniture_of(lines, [*headings, *sections]) == ["本章由旧桥书屋整理"] * 20


@pytest.mark.parametrize(
    "mark",
    [
        "欲知后事如何，且听下回分解。", "欲知后事如何，且听下回分解", "正是：", "有诗为证", "“你来了？”", "【今日任务已经完成】", "◆◆◆", "一九二五年三月{n}日",
        "天色慢慢暗下来。", "天色慢慢暗下来……", "——旧桥主人记", "完", "距离大考还有{n}天", "大梁永昌{n}年，京城", "剩余时间：{n}",
    ],
)  # fmt: skip
def test_a_storyteller_may_repeat_himself(mark: str) -> None:
    assert furniture_of(*novel(20, foot=mark)) == []
    assert furniture_of(*novel(20, head=mark)) == []


def test_lines_that_recur_are_reported_and_only_boilerplate_is_dropped() -> None:
    counted = [
        ("本书由旧桥书屋整理 请多支持", 150),
        ("本书由旧桥书屋整理 请多支持旧桥", 99),
        ("“我说过不要再提那座桥了”", 400),
        ("【恭喜你完成了今天的任务】", 400),
        ("且听下回分解 欲知后事如何", 120),
        ("他一个人慢慢地走回家去了。", 300),
        ("哈哈哈哈哈哈哈哈哈", 200),
        ("◆◆◆◆◆◆◆◆◆◆", 500),
        ("又", 300),
    ]
    rows = recurring(counted)
    assert sorted((row.text, row.times) for row in rows) == sorted(counted)
    assert [row.times for row in rows] == sorted((times for _, times in counted), reverse=True)
    assert [row for row in rows if row.drop] == [Recurring("本书由旧桥书屋整理 请多支持", 150, True)]


def test_real_novels(novels: Path) -> None:
    counts = {}
    for path in sorted(novels.glob("*.txt")):
        lines = decode(path.read_bytes())[0].replace("\r\n", "\n").replace("\r", "\n").split("\n")
        plain = [line.strip() for line in lines]
        headings = []
        for i, text in enumerate(plain):
            hit = re.fullmatch(r"(?:\S{1,2} )?第([0-9一二三四五六七八九十百]+)([章回])\s+(\S.{0,40})", text)
            headings += [Candidate(i, hit[2], i, True, hit[3])] if hit else []
        layout = layout_of(lines)
        table, proved = contents(layout, plain.__getitem__, [heading.line for heading in headings])
        found = furniture(layout, plain.__getitem__, [heading for heading in headings if heading.line not in table])
        counts[path.stem] = (len(table), len(proved), len(found))
        letters = {re.sub(r"[^\u3400-\u9fff]", "", plain[i]) for i in found}
        assert letters <= {"书香屋更新时间本章字数", "小说天堂"}
    assert {name: count for name, count in counts.items() if any(count)} == {
        "老残游记": (20, 0, 0),
        "水浒传": (0, 0, 111),
        "朱自清大全集": (0, 0, 83),
        "落花生": (0, 0, 77),
        "郁达夫大全集": (0, 0, 91),
        "鲁迅全集": (0, 0, 287),
    }
