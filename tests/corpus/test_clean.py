import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from raystyle.corpus.clean import chapters, clean, clean_all, restore
from raystyle.corpus.encodings import decode
from raystyle.corpus.packs import load_rules
from raystyle.corpus.rules import Rule, Rules
from raystyle.corpus.sources import unify_line_ends
from raystyle.corpus.sweep import plain, sweep

RULES = load_rules("zh_web_novel")
NO_MODEL = load_rules("zh_web_novel", disable=["noise_line", "noise_inset"])
# Whole lines and torn pieces of noise and prose; Hypothesis puts them together in every order.
PIECES = [
    "第一章", "第一章 风起", "第三回合开始了", "他走了。", "今天晚上，很好的月光。", "　　", " ", "\u200b", "<br/>", "br/>", "&nbsp;", "&amp;", "nbsp;",
    "www.example.com", "ｗｗｗ．", "http://a.cn/b", "example.cc", "（本章完）", "（未完待续）", "-->>", "作者：", "某某", " 著", "《某某志》", "----",
    "------", "云边旧事", "云边旧事　　12", "“", "”", "……", "TXT", "小说下载", "请记住本站域名", "求月票", "卷一", "1", "\n", "\n\n", "，", "<!--", "-->", "(", ")", "\u2028", "\x0c",
]  # fmt: skip
texts = st.lists(st.sampled_from([*PIECES, *PIECES, "\n", "\n", "\n"]) | st.text(max_size=3), max_size=25).map(
    lambda parts: unify_line_ends("".join(parts))
)


# Works long enough for what needs neighbours: chapters with headings of all kinds, a banner, page markers, wrapped lines.
SENTENCES = [
    "他走了，没有回头。",
    "雨下了三天三夜，河里的水涨到了桥面上，",
    "“谁在那里？”她问。",
    "灯还亮着",
    "門外有人說話，他們等了很久。",
    "茶凉了。",
]
paragraphs = st.lists(st.sampled_from(SENTENCES), min_size=1, max_size=9).map("".join)
oddities = st.sampled_from(
    [
        "_分节阅读_3",
        "（本章完）",
        "",
        "　　",
        "本书坊出品敬请收藏",
        "*** ***",
        "《某某志》",
        "第七回我可不会再让你",
        "云边旧事　　　　12",
        "云边旧事",
        "作者君昨天发烧了，错字晚点再改",
        "今天先到这里，大家晚安哦～",
        "第三页",
        "求推荐",
        "12",
        "· 1 3 ·",
        "l09",
        "3",
        "2",
        "○海市",
        "○书贾",
        "云　边　旧　事",
        "他推开门，云边旧事　12看见一盏灯。",
        "苏秀才夜宿云边寺　　痴和尚昼失照妖镜",
        "一、归途",
        "二、渡河",
        "三、灯下",
    ]
)
headings_ = st.tuples(
    st.sampled_from(["第{}章 风起", "第{}章风起了", "{}、归途", "（{}）", "{}", "卷{} 山中"]), st.integers(1, 12)
)
chapter = st.tuples(
    headings_.map(lambda h: h[0].format(h[1])), st.lists(paragraphs | oddities, min_size=1, max_size=12)
).map(lambda pair: [pair[0], *pair[1]])
# A file is broken at one width throughout, or not at all.
works = st.tuples(st.lists(chapter, min_size=4, max_size=14), st.sampled_from([24, 36, 1000, 1000])).map(
    lambda pair: "\n".join(
        ("　　" + line if len(line) > 12 else line)[i : i + pair[1]]
        for lines in pair[0]
        for line in lines
        for i in range(0, max(1, len(line) + 2 * (len(line) > 12)), pair[1])
    )
)


def cleaned_text(text: str, **options: Any) -> str:
    return clean(text, RULES, **options)[0].text


def rows(removed: pa.Table) -> list[dict[str, Any]]:
    return removed.to_pylist()


@given(texts)
@example("\x1b0")
@settings(max_examples=150)
def test_cleaning_twice_is_cleaning_once(text: str) -> None:
    once, _ = clean(text, RULES)
    twice, removed = clean(once.text, RULES)
    assert twice.text == once.text
    assert not once.text or (not len(removed) and not twice.headings)


@given(works)
@example(
    "第1章 风起\n　　雨下了三天三夜，河里的水涨到了桥面上，\n_分节阅读_3\n灯还亮着\n本书坊出品敬请收藏\n本书坊出品敬请收藏\n第1章 风起\n"
    "本书坊出品敬请收藏\n他走了，没有回头。"
)
@example("第1章 风起\n　　雨下了三天三夜，河里的水涨到了桥面上，\n_分节阅读_3\n3\n第8章 风起\n2")
@example("（4）\n第1章 风起\n第4章 风起\n第12章 风起\n3")
@settings(max_examples=60, deadline=None)
def test_cleaning_a_work_twice_is_cleaning_it_once(text: str) -> None:
    once, _ = clean(text, RULES, to_simplified="auto")
    assert clean(once.text, RULES, to_simplified="auto")[0].text == once.text


@given(texts | works)
@settings(max_examples=150, deadline=None)
def test_kept_and_removed_are_the_input(text: str) -> None:
    cleaned, removed = clean(text, RULES, to_simplified="auto")
    assert restore(cleaned, removed) == text
    source_lines = text.split("\n")
    for removal in rows(removed):
        line = source_lines[removal["line_no"] - 1] + "\n"
        assert line[removal["char_start"] : removal["char_end"]] == removal["text"]
        assert removal["action"] == "rewrite" or not removal["replacement"]
    lost = sum(len(r["text"]) - len(r["replacement"]) for r in rows(removed) if r["text"] != "\n")
    added = sum(len(r["replacement"]) for r in rows(removed) if r["text"] == "\n")
    assert cleaned.chars_in == len(text.replace("\n", "")) == lost - added + len(cleaned.text.replace("\n", ""))


@given(texts)
def test_only_rewrites_add_characters(text: str) -> None:
    cleaned, removed = clean(text, RULES)
    if "rewrite" not in removed["action"].to_pylist():
        source = iter(text)
        assert all(char in source for char in cleaned.text)


@given(st.lists(texts | works, max_size=4))
@settings(max_examples=50, deadline=None)
def test_texts_do_not_look_at_each_other(several: list[str]) -> None:
    together, removed = clean_all(several, RULES, to_simplified="auto")
    for number, text in enumerate(several):
        cleaned, alone = clean(text, RULES, to_simplified="auto")
        assert (together[number].text, together[number].headings) == (cleaned.text, cleaned.headings)
        assert together[number].line_nos_K.tolist() == cleaned.line_nos_K.tolist()
        mine = removed.filter(pc.equal(removed["text_no"], number)).drop_columns("text_no")
        assert rows(mine) == rows(alone)


@given(texts)
def test_pieces_of_works_are_cleaned_line_by_line(text: str) -> None:
    whole = cleaned_text(text, whole=False)
    alone = [cleaned_text(line, whole=False) for line in text.split("\n")]
    assert whole.replace("\n", "") == "".join(alone).replace("\n", "")


@given(text=texts)
@example(text="第一章\n第一章第一章")
@settings(max_examples=300, deadline=None)
def test_the_fast_path_is_every_rule_on_every_line(text: str) -> None:
    """The automaton over all literals and limits of length only save work: asking every line rule by rule gives the same."""
    kept, dropped = [], {}
    for line_no, line in enumerate(text.split("\n"), 1):
        every = EveryRule(NO_MODEL.name, NO_MODEL.rules)
        swept = sweep(line.strip(), plain(every.of(line)), every) if line.strip() else None
        if swept and not swept.dropped:
            kept.append(swept.text)
        elif swept and swept.dropped:
            dropped[line_no] = swept.dropped.name
    cleaned, removed = clean(text, NO_MODEL, whole=False)
    assert cleaned.text.replace("\n", "") == "".join(kept)
    found = {r["line_no"]: r["rule"] for r in rows(removed) if r["action"] == "drop_line" and r["rule"] != "blank_line"}
    assert found == dropped


class EveryRule(Rules):
    """Rules that are asked one by one whether they may apply to a line."""

    def of(self, line: str) -> list[Rule]:
        return [rule for rule in self.rules if rule.may_apply(line)]


def test_an_edit_may_join_what_a_rule_then_takes() -> None:
    cleaned, removed = clean("第<br/>一章 风起", RULES)
    assert cleaned.headings[0].title == "风起"
    assert [(r["action"], r["text"], r["char_end"]) for r in rows(removed)] == [("drop_line", "第<br/>一章 风起", 11)]


def test_a_rewrite_of_a_rewrite_is_one() -> None:
    cleaned, removed = clean("他说&amp;ldquo;好。", RULES)
    assert cleaned.text == "他说“好。"
    assert [(r["action"], r["text"], r["replacement"]) for r in rows(removed)] == [("rewrite", "&amp;ldquo;", "“")]


def test_an_address_glued_into_prose_is_cut_out() -> None:
    line = "　　他推开门，www.example.com看见屋里没有人，只有一盏灯还亮着。"
    cleaned, removed = clean(line, RULES)
    assert cleaned.text == "他推开门，看见屋里没有人，只有一盏灯还亮着。"
    cuts = [(r["rule"], r["action"], r["text"]) for r in rows(removed)]
    assert cuts == [("outer_whitespace", "cut_span", "　　"), ("address", "cut_span", "www.example.com")]


def test_a_line_of_nothing_but_cuts_is_dropped() -> None:
    cleaned, removed = clean("<br/>（ <br/> ）", RULES)
    assert cleaned.text == "" and [(r["action"], r["rule"]) for r in rows(removed)] == [("drop_line", "html_tag")]


def test_a_title_is_dropped_only_above_the_text() -> None:
    assert cleaned_text("《某某志》\n他走了。\n《某某志》") == "他走了。\n《某某志》"
    assert cleaned_text("《某某志》\n他走了。", whole=False) == "《某某志》\n他走了。"


def test_split_by_chapter() -> None:
    text = "前面的话。\n第一章 风起\n第二章 云涌\n第一章 风起\n甲。\n乙。\n第二章 云涌\n丙。"
    cleaned, _ = clean(text, RULES)
    found = [(title, cleaned.text[start:end].rstrip("\n")) for title, start, end in chapters(cleaned)]
    assert found == [(None, "前面的话。"), ("风起", "甲。\n乙。"), ("云涌", "丙。")]
    assert chapters(clean("第一章 风起", RULES)[0]) == []


def test_a_paragraph_broken_at_a_width_is_put_together_before_rules_see_it() -> None:
    """The address is torn by a line end; a line that begins with 第三回 in the middle of a sentence is no heading."""
    told = (
        "他把灯吹灭了，坐在黑地里听雨，心里想着明天的路。门外有人走过，脚步很轻，像是怕惊动了谁。过了很久，他才睡着，"
    )
    paragraph = told * 3 + "后来看www.example.com完了信，" + told * 2 + "天就亮了。"
    lines = [paragraph[i : i + 35] for i in range(0, len(paragraph), 35)]
    assert any("www.exa" in line and "example.com" not in line for line in lines)
    text = "\n".join("　　" + "\n".join(lines) for _ in range(6))
    cleaned, removed = clean(text, RULES)
    assert cleaned.text == "\n".join([paragraph.replace("www.example.com", "")] * 6)
    assert restore(cleaned, removed) == text
    assert {r["rule"] for r in rows(removed)} == {"hard_wrap", "outer_whitespace", "address"}
    joins = [r for r in rows(removed) if r["rule"] == "hard_wrap"]
    assert {(r["action"], r["text"], r["replacement"]) for r in joins} == {("rewrite", "\n", "")}


def test_a_page_marker_inside_a_sentence_leaves_it_whole() -> None:
    text = "　　他推开门，看见屋里\n_分节阅读_12\n没有人，只有一盏灯。\n　　天亮了。"
    cleaned, removed = clean(text, RULES)
    assert cleaned.text == "他推开门，看见屋里没有人，只有一盏灯。\n天亮了。"
    assert cleaned.line_nos_K.tolist() == [1, 4] and restore(cleaned, removed) == text
    assert cleaned_text("　　他走了。\n（本章完）\n　　天亮了。") == "他走了。\n天亮了。"


def test_page_numbers_inside_sentences_are_no_chapters() -> None:
    page = "　　" + "他坐在黑地里听雨，心里想着明天的路，不知道从哪里走起才好。" * 12 + "后来他推开门，看见屋里"
    pages = "\n".join(f"{page}\n{number}\n没有人，只有一盏灯还亮着。" for number in range(1, 9))
    cleaned, removed = clean("\n".join([pages] + ["　　天亮了，他上路了。"] * 40), RULES)
    assert cleaned.headings == [] and cleaned.text.count("看见屋里没有人") == 8
    assert removed["rule"].to_pylist().count("lone_number") == 8


PAGE = "他坐在黑地里听雨，心里想着明天的路，不知道从哪里走起才好。后来他推开门，看见屋里"


@pytest.mark.parametrize("number", ["404", "404 "])
def test_the_title_of_a_chapter_is_no_works_name(number: str) -> None:
    text = f"第一章 女生宿舍\n{PAGE}面没有人。\n她拖着箱子住进了{number}女生宿舍，屋里没有人。\n{PAGE}面没有人。"
    assert f"{number}女生宿舍" in clean(text, RULES)[0].text
    listed = "目录\n第一章 风起\n第二章 女生宿舍\n第三章 归途\n" + text
    assert f"{number}女生宿舍" in clean(listed, RULES)[0].text


def test_numbers_that_count_down_stay_in_any_writing() -> None:
    counted = "\n".join(f"—{number}—\n他握紧了拳头，没有说话。" for number in "三二一")
    assert cleaned_text(f"{PAGE}面没有人。\n{counted}").count("—") == 6
    assert "[45/100]" in cleaned_text(f"{PAGE}面没有人。\n[45/100]\n他的血条又少了一截。")
    pages = "\n".join(f"{PAGE}\n{page}/196\n没有人，只有一盏灯。" for page in (12, 13))
    assert "196" not in cleaned_text(pages)


def test_the_heads_of_pages_amid_sentences_go() -> None:
    """A line that is not the work's name is a head where three sentences go through it, or two and it has pages' numbers."""
    for head, enough in (("云边旧事　{}", 2), ("{}　云边旧事", 2), ("云边旧事　十{}", 3), ("云边旧事", 3)):
        pages = [f"{PAGE}\n{head.format(n)}\n没有人，只有一盏灯还亮着。" for n in range(1, 4)]
        cleaned, removed = clean("\n".join(pages), RULES)
        assert cleaned.text.count("看见屋里没有人") == 3
        assert removed["rule"].to_pylist().count("running_head") == 3
        for count in (1, 2):
            left = clean("\n".join(pages[:count]), NO_MODEL)[0].text.count("云边旧事")
            assert left == (0 if count >= enough else count)
    falling = [f"{PAGE}\n云边旧事　{n}\n没有人，只有一盏灯还亮着。" for n in (7, 3)]
    assert clean("\n".join(falling), NO_MODEL)[0].text.count("云边旧事") == 2
    refrain = "\n".join(["他走了，没有回头。\n再会吧朋友\n天亮了。"] * 9)
    assert cleaned_text(refrain) == refrain


def test_the_name_of_a_work_tells_the_heads_of_its_pages() -> None:
    top = "云 边 旧 事\n（修订本）\n作者：某某\n他走了，没有回头。\n"
    head = "云边旧事　　　　卷一\n"
    cleaned, removed = clean(f"{top}{head}{PAGE}\n云边旧事\n没有人。\n他说的云边旧事　　是哪一本", RULES)
    assert cleaned.text == f"他走了，没有回头。\n{PAGE}没有人。\n他说的云边旧事　　是哪一本"
    assert restore(cleaned, removed).startswith(top)
    assert [r["text"] for r in rows(removed) if r["rule"] == "title_of_work"] == ["云 边 旧 事", "（修订本）"]
    assert clean(f"{head}{PAGE}\n他走了。", NO_MODEL)[0].text.startswith("云边旧事")
    for named in ("《云边旧事》作者：某某", "书　名：云边旧事\n作　者：某某"):
        assert cleaned_text(f"{named}\n他走了。\n云边旧事　一三\n天亮了。") == "他走了。\n天亮了。"


@pytest.mark.parametrize(
    "text",
    [
        "献给我的母亲\n第一章 风起\n他走了。", "床前明月光\n疑是地上霜\n举头望明月\n低头思故乡", "灯还亮着\n他走了，没有回头。\n（本章完）",
        "“灯还亮着”\n作者：某某\n他走了。", "灯还亮着\n雨还下着\n人还走着\n（本章完）\n他走了。", "灯还亮着\n（本章完）",
    ],
)  # fmt: skip
def test_a_first_line_that_is_no_name_of_a_work_stays(text: str) -> None:
    assert cleaned_text(text).startswith(text.split("\n")[0])


def test_what_neighbours_decide_can_be_switched_off() -> None:
    told = (
        "他把灯吹灭了，坐在黑地里听雨，心里想着明天的路。门外有人走过，脚步很轻，像是怕惊动了谁。过了很久，他才睡着，"
    )
    paragraph = told * 3 + "后来看完了一封很长的信，灯芯也短了，" + told * 2 + "天就亮了。"
    lines = "\n".join(paragraph[i : i + 34] for i in range(0, len(paragraph), 34))
    wrapped = "\n".join(["　　" + lines] * 9)
    sections = "\n".join(f"{n}\n" + f"{told}。\n" * 6 for n in range(1, 9))
    refrain = "\n".join(f"第{n}天，他走了{n}里路，天黑才停。\n月落乌啼霜满天的时候" for n in range(120))
    torn = "　　他推开门，看见屋里\n_分节阅读_12\n没有人。\n" + "　　天亮了，他上路了。\n" * 40
    for text, step in [
        (wrapped, "hard_wrap"),
        (sections, "numbered_heading"),
        (refrain, "recurring_line"),
        (torn, "page_break"),
    ]:
        on = clean(text, load_rules("common") if step == "recurring_line" else RULES)[1]
        assert step in on["rule"].to_pylist()
        rules = load_rules("zh_web_novel", disable=[step])
        off = clean(text, rules)[1]
        assert step not in off["rule"].to_pylist() and rules.digest != RULES.digest


def test_odd_characters_are_put_right_only_where_they_outnumber_the_usual_ones() -> None:
    rules = load_rules("zh_web_novel", enable=["anti_crawler"])
    text = "他的脸色很澹。\n" * 6
    cleaned, removed = clean(text, rules)
    assert cleaned.text == "\n".join(["他的脸色很淡。"] * 6)
    assert {(r["rule"], r["text"], r["replacement"]) for r in rows(removed) if r["action"] == "rewrite"} == {("anti_crawler", "澹", "淡")}  # fmt: skip
    assert restore(cleaned, removed) == text
    assert clean("他的脸色很淡。\n" * 7 + text, rules)[0].text.count("澹") == 6


def test_an_odd_character_in_a_word_of_its_own_stays() -> None:
    """A name that is written with an odd character neither counts as one nor is rewritten."""
    names = "澹台明月到了勐海，神情恬澹，山上种着桉树。\n" * 9
    assert clean(names + "他的脸色很淡。\n他勐地回头。\n", RULES)[0].text == names + "他的脸色很淡。\n他勐地回头。"
    cleaned = clean(names + "他勐地回头。\n" * 6, RULES)[0].text
    assert cleaned == names + "\n".join(["他猛地回头。"] * 6)


@pytest.mark.parametrize(
    "lines",
    [
        ["苏桉把门关上。", "“苏桉，”老人说，“这案子你别管。”", "桉桉，快走！", "桉儿笑了笑。", "小桉没有说话。"],
        ["方桉把门关上。", "方桉没有说话。", "方桉笑了。"],
        ["渡辺把茶放下。", "田辺没有笑。", "徳川家的人来了。"],
        ["李澹推门而入。", "李澹坐下。", "李澹一笑。", "“李澹！”"],
        ["罗勐推门而入。", "罗勐坐下。", "阿勐一笑。"],
    ],
)
def test_a_person_keeps_a_name_that_is_written_with_an_odd_character(lines: list[str]) -> None:
    text = "\n".join(lines * 9)
    assert clean(text, RULES)[0].text == text


def test_odd_characters_in_words_that_have_no_others_are_put_right_at_once() -> None:
    cleaned, removed = clean("没有答桉，苏桉勐然回头。\n勐海的桉树。", RULES)
    assert cleaned.text == "没有答案，苏桉猛然回头。\n勐海的桉树。"
    assert restore(cleaned, removed) == "没有答桉，苏桉勐然回头。\n勐海的桉树。"
    odd = "这桉子办不成。\n方桉已经定了。\n神色冷澹，语气平澹。\n勐虎下山。\n莪们走。\n苏桉说。\n"
    usual = "这案子办不成。\n方案已经定了。\n神色冷淡，语气平淡。\n猛虎下山。\n我们走。\n苏桉说。\n"
    assert clean(odd * 6, RULES)[0].text == (usual * 6).strip()


def test_traditional_lines_of_a_simplified_work_are_simplified() -> None:
    simplified, traditional = "他们说这个时候还没有人来过这里。", "他們說這個時候還沒有人來過這裡。"
    text = "\n".join([simplified] * 20 + [traditional])
    cleaned, removed = clean(text, RULES, to_simplified="auto")
    assert cleaned.text == "\n".join([simplified] * 21) and restore(cleaned, removed) == text
    assert cleaned_text(text, to_simplified="never").endswith(traditional)
    whole = "\n".join([traditional] * 20)
    assert cleaned_text(whole, to_simplified="auto") == whole
    assert cleaned_text(whole, to_simplified="always") == "\n".join([simplified] * 20)


def test_a_banner_that_no_rule_names_goes_where_it_recurs() -> None:
    rules = load_rules("common", disable=["noise_line"])
    banner, cry = "欢迎各位书友光临老君庙书社", "“好汉子！好汉子！好汉子！”"
    text = "\n".join(f"第{i}天，他走了{i}里路，天黑才停。\n{banner}\n{cry}" for i in range(120))
    cleaned, _ = clean(text, rules)
    assert banner not in cleaned.text and cleaned.text.count(cry) == 120
    assert dict(cleaned.recurring)[banner] == 120
    assert clean("\n".join(text.split("\n")[:90]), rules)[0].text.count(banner) == 30


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
    assert cleaned_text(f"开头。\n{line}") == f"开头。\n{line}"


def test_labelled_lines(novels: Path) -> None:
    """The scores that the rules reach on lines labelled by hand; what fails is listed."""
    labelled = defaultdict(list)
    for row in map(json.loads, (novels.parent / "labelled_lines.jsonl").read_text("utf-8").splitlines()):
        if not row["policy"]:
            labelled[Path(row["source"]).name].append(row)
    wrong: dict[str, list[str]] = {"drop": [], "keep": []}
    total = {"drop": 0, "keep": 0}
    for name, labels in labelled.items():
        text = unify_line_ends(decode((novels / name).read_bytes()).text)
        cleaned, removed = clean(text, RULES, to_simplified="auto")
        assert restore(cleaned, removed) == text
        gone = {r["line_no"] for r in rows(removed) if r["action"] == "drop_line"}
        for row in labels:
            total[row["label"]] += 1
            stripped = not any(strip in cleaned.text for strip in row.get("strip") or [])
            if (row["line_no"] not in gone) != (row["label"] == "keep") or not stripped:
                wrong[row["label"]].append(row["line"])
    assert len(wrong["drop"]) <= 0.03 * total["drop"], wrong["drop"]
    assert len(wrong["keep"]) <= 0.01 * total["keep"], wrong["keep"]


def test_no_rule_names_a_site() -> None:
    """A rule is for a kind of noise: no domain stands in a pattern."""
    for rule in RULES.rules:
        assert not re.search(r"[a-z]{5,}\\?\.(?:com|net|cc|org)", rule.pattern.pattern), rule.name


def test_a_line_that_gets_shorter_at_each_pass_is_swept_to_its_end() -> None:
    line = "雨停了，" + "&" + "amp;" * 300 + "风也停了。"
    assert cleaned_text(line) == "雨停了，&风也停了。"


def test_a_line_of_thousands_of_layers_is_dropped() -> None:
    """Each layer costs a look at the whole line: of 20,000 layers it would take half an hour."""
    deep, deeper = (f"天{'[b' * layers}{']' * layers}地" for layers in (400, 2_000))
    assert cleaned_text(f"{deep}\n雨停了。") == "天地\n雨停了。"
    cleaned, removed = clean(f"{deeper}\n雨停了。", RULES)
    assert cleaned.text == "雨停了。" and restore(cleaned, removed) == f"{deeper}\n雨停了。"
    assert [(row["rule"], row["action"], row["text"]) for row in rows(removed)] == [("forum_tag", "drop_line", deeper)]


@pytest.mark.parametrize("heading", ["第十二章归人", "第十二回武松打虎", "正文 第12章归人", "长夜行 第12章 归人"])
def test_a_heading_that_opens_a_text_needs_no_other(heading: str) -> None:
    """A text of one chapter has nothing to count by."""
    story = "雨下了一夜。\n他走到渡口，船已经开走了。"
    cleaned, removed = clean(f"{heading}\n\n{story}", RULES)
    assert cleaned.text == story and len(cleaned.headings) == 1 and cleaned.headings[0].start == 0
    assert clean(f"雨下了一夜。\n{heading}\n{story}", RULES)[0].headings == []
    assert clean(f"{heading}\n\n{story}", RULES, whole=False)[0].headings == []
    assert restore(cleaned, removed) == f"{heading}\n\n{story}"


@pytest.mark.parametrize("line", ["第三回了！", "第二回见面，他没有来", "第十二章归人", "第二节课他没有来"])
def test_what_opens_no_text(line: str) -> None:
    """A sentence, and a line that is all there is."""
    text = line if line == "第十二章归人" else f"{line}\n雨下了一夜。"
    assert clean(text, RULES)[0].text == text


def test_a_title_that_is_repeated_below_its_heading_goes() -> None:
    for below in ("夜雨", "　　夜 雨"):
        cleaned, removed = clean(f"第1章 夜雨\n\n{below}\n　　雨下了一夜。", RULES)
        assert cleaned.text == "雨下了一夜。" and [heading.title for heading in cleaned.headings] == ["夜雨"]
        assert restore(cleaned, removed) == f"第1章 夜雨\n\n{below}\n　　雨下了一夜。"
    for kept in ("夜雨。", "夜雨下了一夜", "雨下了一夜。\n夜雨"):
        assert clean(f"第1章 夜雨\n{kept}", RULES)[0].text == kept


def test_a_couplet_below_a_number_is_the_chapters_title() -> None:
    couplet = "苏秀才夜宿云边寺　　痴和尚昼失照妖镜"
    cleaned, _ = clean(f"第 一 回\n{couplet}\n　　雨下了一夜。", RULES)
    assert cleaned.text == "雨下了一夜。"
    for kept in (
        f"第一回 风起\n{couplet}",
        "第 一 回\n苏秀才夜宿云边寺　　痴和尚失照妖镜",
        f"第 一 回\n他走了。\n{couplet}",
    ):
        assert clean(kept, NO_MODEL)[0].text == kept.split("\n", 1)[1]


@pytest.mark.parametrize(
    "number",
    ["4", "013", "· 1 5 ·", "— 22 一", "3l", "o21", "Z7", "104 ▕", "~ 8 ~", "［ 9 8 ］", "103．", "- 20 -", "１２"],
)
def test_a_number_alone_goes(number: str) -> None:
    text = f"　　他走了。\n　　天黑了。\n{number}\n　　天亮了。"
    cleaned, removed = clean(text, RULES)
    assert cleaned.text == "他走了。\n天黑了。\n天亮了。" and restore(cleaned, removed) == text


@pytest.mark.parametrize(
    "lines",
    [
        "3\n2\n1", "3\n他闭上眼睛。\n2\n她没有动。\n1", "十\n九", "2333", "666", "520", "1937", "3。\n天亮了。", "【2】", "O", "71:59:59", "-999！",
    ],
)  # fmt: skip
def test_numbers_that_somebody_tells_stay(lines: str) -> None:
    text = f"他走了。\n{lines}\n天亮了。"
    assert cleaned_text(text) == text


def test_numbers_alone_can_be_left_alone() -> None:
    text = "他走了。\n12\n天亮了。"
    assert clean(text, load_rules("zh_web_novel", disable=["lone_number"]))[0].text == text


def test_what_turns_out_to_be_half_a_sentence_counts_as_no_heading() -> None:
    prose = [f"他走了{n}步，没有回头，雨还下着。" for n in range(60)]
    torn = ["雨下了三天三夜，河里的水涨到了桥面上，", "1", "二、渡河"]
    lines = ["一、归途", *prose, *torn, *prose, "二、渡河", *prose]
    once, removed = clean("\n".join(lines), RULES)
    headings = [row["line_no"] for row in rows(removed) if row["rule"] == "numbered_heading"]
    assert headings == [1, len(lines) - len(prose)]
    assert "桥面上，二、渡河" in once.text
    assert clean(once.text, RULES)[0].text == once.text


def test_halves_that_together_look_like_a_heading_are_not_joined() -> None:
    prose = [f"他走了{n}步，没有回头，雨还下着。" for n in range(120)]
    text = "\n".join(["一、归途", *prose, "二、", "8", "渡河", *prose])
    assert cleaned_text(cleaned_text(text)) == cleaned_text(text)
    by_neighbours = load_rules("zh_web_novel", disable=["noise_line"])
    assert "二、\n渡河" in clean(text, by_neighbours)[0].text


def test_few_headings_far_apart_and_titles_behind_a_sign() -> None:
    page = "\n".join(["　　他坐在黑地里听雨，心里想着明天的路，不知道从哪里走起才好。"] * 60)
    for titles in (["一、渡河", "二、归途"], ["一　误投的信", "二　布店", "三　旧宅"], ["○海市", "○书贾", "○诗谶"]):
        cleaned, removed = clean("\n".join(f"{title}\n{page}" for title in titles), RULES)
        assert len(cleaned.headings) == len(titles) and titles[0] not in cleaned.text
        assert set(removed["rule"].to_pylist()) & {"numbered_heading", "signed_heading"}
    listed = f"他说：\n一、渡河\n二、归途\n{page}\n◆力量\n◆敏捷\n◆体质\n{page}"
    assert clean(listed, RULES)[0].headings == []


def test_a_heading_is_found_once_what_stood_between_is_gone() -> None:
    """The model takes a line that looked like one of the numbers: those around it are asked again."""
    page = "\n".join(["　　他坐在黑地里听雨，心里想着明天的路，不知道从哪里走起才好。"] * 60)
    text = f"一、渡河\n{page}\n五、感谢各位书友的月票和打赏\n{page}\n二、归途\n{page}"
    once = cleaned_text(text)
    assert "渡河" not in once and "归途" not in once and "月票" not in once


def test_the_head_of_a_page_is_cut_out_of_a_sentence() -> None:
    top = "云 边 旧 事\n作者：某某\n他走了，没有回头。\n"
    for glued in ("云边旧事　12", "云 边 旧 事 | 009", "14云边旧事"):
        text = f"{top}　　他推开门，看见{glued}屋里没有人。"
        cleaned, removed = clean(text, RULES)
        assert cleaned.text == "他走了，没有回头。\n他推开门，看见屋里没有人。" and restore(cleaned, removed) == text
    for kept in ("他读过《云边旧事》12遍。", "他说云边旧事　12回都好看。", "云边旧事，他读了12遍。"):
        assert cleaned_text(f"{top}{kept}").endswith(kept)


def test_the_works_name_goes_beside_the_mark_of_a_page() -> None:
    top = "云 边 旧 事\n作者：某某\n他走了，没有回头。\n"
    assert cleaned_text(f"{top}天黑了。\n12\n云边旧事\n天亮了。") == "他走了，没有回头。\n天黑了。\n天亮了。"
    assert cleaned_text(f"{top}天黑了。\n云　边　旧　事\n天亮了。") == "他走了，没有回头。\n天黑了。\n天亮了。"
    assert "云边旧事" in clean(f"{top}天黑了。\n云边旧事\n天亮了。", NO_MODEL)[0].text


def test_a_unit_of_two_characters_is_not_its_first_one() -> None:
    told = "　　他坐在黑地里听雨，心里想着明天的路，不知道从哪里走起才好。\n" * 15
    text = "".join(f"第{number}封信　归途{number}\n{told}" for number in "一二三")
    assert [heading.title for heading in clean(text, RULES)[0].headings] == ["归途一", "归途二", "归途三"]


def test_a_heading_with_an_uploads_stamp_begins_its_chapter() -> None:
    cleaned, _ = clean("第1章 归来　[本章字数：3001　更新时间：2012-05-01 12:00]\n雨下了一夜。", RULES)
    assert cleaned.text == "雨下了一夜。" and [heading.title for heading in cleaned.headings] == ["归来"]
