import json
import re
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raystyle.corpus.clean import clean, restore, split
from raystyle.corpus.encodings import decode
from raystyle.corpus.rules import load_rules
from raystyle.corpus.sources import unify_line_ends

RULES = load_rules("zh_web_novel")
# Whole lines and torn pieces of noise and prose; Hypothesis puts them together in every order.
PIECES = [
    "第一章", "第一章 风起", "第三回合开始了", "他走了。", "今天晚上，很好的月光。", "　　", " ", "\u200b", "<br/>", "br/>", "&nbsp;", "&amp;", "nbsp;",
    "www.example.com", "ｗｗｗ．", "http://a.cn/b", "example.cc", "（本章完）", "（未完待续）", "-->>", "作者：", "某某", " 著", "《某某志》", "----",
    "------", "“", "”", "……", "TXT", "小说下载", "请记住本站域名", "求月票", "卷一", "1", "\n", "\n\n", "，", "<!--", "-->", "(", ")", "\u2028", "\x0c",
]  # fmt: skip
texts = st.lists(st.sampled_from([*PIECES, *PIECES, "\n", "\n", "\n"]) | st.text(max_size=3), max_size=25).map(
    lambda parts: unify_line_ends("".join(parts))
)


@given(texts)
@settings(max_examples=400)
def test_cleaning_twice_is_cleaning_once(text: str) -> None:
    once = clean(text, RULES)
    twice = clean(once.text, RULES)
    assert twice.text == once.text
    assert not once.lines or (not twice.removals and not twice.headings)


@given(texts)
@settings(max_examples=400)
def test_kept_and_removed_are_the_input(text: str) -> None:
    cleaned = clean(text, RULES)
    assert restore(cleaned.lines, cleaned.removals) == text
    source_lines = text.split("\n")
    for removal in cleaned.removals:
        assert source_lines[removal.line_no - 1][removal.char_start : removal.char_end] == removal.text
        assert bool(removal.replacement) == (removal.action == "rewrite")
    lost = sum(len(r.text) - len(r.replacement) for r in cleaned.removals)
    assert cleaned.chars_in == len(text.replace("\n", "")) == lost + sum(len(line.text) for line in cleaned.lines)


@given(texts)
def test_only_rewrites_add_characters(text: str) -> None:
    for line in clean(text, RULES).lines:
        if "&" not in text:
            source = iter(text.split("\n")[line.line_no - 1])
            assert all(char in source for char in line.text)


@given(texts)
def test_lines_do_not_look_at_each_other(text: str) -> None:
    """But for rules at the start of a work: cleaning line by line gives the same."""
    whole = clean(text, RULES, from_start=False)
    alone = [clean(line, RULES, from_start=False).text for line in text.split("\n")]
    assert whole.text == "\n".join(line for line in alone if line)


def test_an_edit_may_join_what_a_rule_then_takes() -> None:
    assert clean("第<br/>一章 风起", RULES).headings[0].title == "风起"
    removal = clean("第<br/>一章 风起", RULES).removals[0]
    assert (removal.action, removal.text, removal.char_end) == ("drop_line", "第<br/>一章 风起", 11)


def test_a_rewrite_of_a_rewrite_is_one() -> None:
    cleaned = clean("他说&amp;ldquo;好。", RULES)
    assert cleaned.text == "他说“好。"
    assert [(r.action, r.text, r.replacement) for r in cleaned.removals] == [("rewrite", "&amp;ldquo;", "“")]


def test_an_address_glued_into_prose_is_cut_out() -> None:
    line = "　　他推开门，www.example.com看见屋里没有人，只有一盏灯还亮着。"
    cleaned = clean(line, RULES)
    assert cleaned.text == "他推开门，看见屋里没有人，只有一盏灯还亮着。"
    assert [(r.rule, r.action, r.text) for r in cleaned.removals if r.rule != "outer_whitespace"] == [
        ("address", "cut_span", "www.example.com")
    ]


def test_a_line_of_nothing_but_cuts_is_dropped() -> None:
    cleaned = clean("<br/>（ <br/> ）", RULES)
    assert cleaned.text == "" and [(r.action, r.rule) for r in cleaned.removals] == [("drop_line", "html_tag")]


def test_a_title_is_dropped_only_above_the_text() -> None:
    assert clean("《某某志》\n他走了。\n《某某志》", RULES).text == "他走了。\n《某某志》"
    assert clean("《某某志》\n他走了。", RULES, from_start=False).text == "《某某志》\n他走了。"


def test_split_by_chapter() -> None:
    text = "前面的话。\n第一章 风起\n第二章 云涌\n第一章 风起\n甲。\n乙。\n第二章 云涌\n丙。"
    assert split(clean(text, RULES), "chapter") == [(None, "前面的话。"), ("风起", "甲。\n乙。"), ("云涌", "丙。")]
    assert split(clean(text, RULES), "work") == [(None, "前面的话。\n甲。\n乙。\n丙。")]
    assert split(clean("第一章 风起", RULES), "work") == []


@pytest.mark.parametrize(
    "line",
    [
        "第三回合开始了，两个人都没有动。", "第二节课他没有来。", "第三集团军到了城外。", "第十部分", "第二回来的时候，下着雨。",
        "第七回我可不会再让你", "“第三章说的是什么？”", "第三章说的是什么？", "作者在书中写道：人生如梦。", "他说他的网址早就换了，微信也不用了。",
        "谷先生站在山谷里。", "求你收留我一夜罢。", "……", "——", "“……”", "【叮！】", "◆◆◆", "* * *", "且听下回分解。", "看官牢记话头",
        "Photoshop的PS是什么意思？", "他翻到第3页，停住了。", "本来整理好了的稿子，都被他父亲烧了。", "第一，立传的通例。", "第一行的诗句我不得不改，",
        "爱情必须时时更新，生长，创造。", "他在日本w大学卒了业。", "（笑）你说得对。", "一九三四年八月作", "——调寄《临江仙》", "十二、不许说谎",
    ],
)  # fmt: skip
def test_prose_that_looks_like_noise_stays(line: str) -> None:
    assert clean(f"开头。\n{line}", RULES).text == f"开头。\n{line}"


def test_labelled_lines(novels: Path) -> None:
    """The scores that the rules reach on lines labelled by hand; what fails is listed."""
    labelled = defaultdict(list)
    for row in map(json.loads, (novels.parent / "labelled_lines.jsonl").read_text("utf-8").splitlines()):
        if not row["policy"]:
            labelled[Path(row["source"]).name].append(row)
    wrong: dict[str, list[str]] = {"drop": [], "keep": []}
    total = {"drop": 0, "keep": 0}
    for name, rows in labelled.items():
        text = unify_line_ends(decode((novels / name).read_bytes())[0])
        cleaned = clean(text, RULES)
        assert restore(cleaned.lines, cleaned.removals) == text
        kept = {line.line_no: line.text for line in cleaned.lines}
        for row in rows:
            total[row["label"]] += 1
            stripped = not any(strip in kept.get(row["line_no"], "") for strip in row.get("strip") or [])
            if (row["line_no"] in kept) != (row["label"] == "keep") or not stripped:
                wrong[row["label"]].append(row["line"])
    assert len(wrong["drop"]) <= 0.03 * total["drop"], wrong["drop"]
    assert len(wrong["keep"]) <= 0.01 * total["keep"], wrong["keep"]


def test_no_rule_names_a_site() -> None:
    """A rule is for a kind of noise: no domain stands in a pattern."""
    for rule in RULES.rules:
        assert not re.search(r"[a-z]{5,}\\?\.(?:com|net|cc|org)", rule.pattern.pattern), rule.name


def test_a_line_that_gets_shorter_at_each_pass_is_swept_to_its_end() -> None:
    line = "雨停了，" + "&" + "amp;" * 300 + "风也停了。"
    assert clean(line, load_rules("zh_web_novel")).text == "雨停了，&风也停了。"
