import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raystyle.corpus import noise
from raystyle.corpus.clean import clean, restore
from raystyle.corpus.lines import Pieces, pieces_of, split_lines
from raystyle.corpus.packs import load_rules
from raystyle.corpus.steps import NOISE_LINE

RULES = load_rules("zh_web_novel")
MODEL = noise.load()
LINES = Path(__file__).resolve().parents[2] / "bench" / "noise"
PROSE = "他把灯吹灭了，坐在黑地里听雨，心里想着明天的路。门外有人走过，脚步很轻，像是怕惊动了谁。"
NOTE = "作者君昨天发烧了，这章是躺在床上用手机码的，错字晚点再改，大家晚安哦～"

letters = st.sampled_from("他走了第一章ＡAa１1。，\u3000 \uffff𠀀開开")
lines = st.lists(st.text(letters, min_size=1, max_size=12), min_size=1, max_size=9)


def by_hand(line: str) -> float:
    """A line's score by the definition, a gram at a time."""
    usual = [10, *(int(MODEL.usual_U[min(ord(character), 0xFFFF)]) for character in line), 10]
    total = number = 0
    for size in (1, 2, 3):
        for start in range(len(usual) - size + 1):
            gram = usual[start : start + size]
            if size == 1 and gram == [10]:
                continue
            hashed = 0
            for code in gram:
                hashed = (hashed ^ code) * 0x9E3779B1 % 2**32
            total += int(MODEL.gram_B[hashed >> 32 - noise.HASH_BITS])
            number += 1
    length = int(MODEL.length_K[sum(bound < len(line) for bound in noise.LENGTHS.tolist())])
    return MODEL.unit * (total / number**0.5 + length) + MODEL.bias


@given(lines)
def test_a_score_is_the_sum_of_the_weights_of_all_grams(texts: list[str]) -> None:
    chinese = [any("\u3400" <= character <= "\u9fff" for character in text) for text in texts]
    expected = [by_hand(text) if judged else -np.inf for text, judged in zip(texts, chinese, strict=True)]
    assert MODEL.scores(pieces_of(texts)).tolist() == expected


@given(lines, st.sampled_from(["\n", "\n　　", "　\n\n  "]))
def test_scores_do_not_depend_on_what_lines_stand_together(texts: list[str], between: str) -> None:
    together = MODEL.scores(pieces_of(texts))
    assert together.tolist() == [MODEL.scores(pieces_of([text]))[0] for text in texts]
    body = split_lines([between.join(texts)]).body
    found = dict(zip(body.texts(slice(None)), MODEL.scores(body).tolist(), strict=True))
    stripped = [text.strip() for text in texts if text.strip()]
    assert [found[text] for text in stripped] == MODEL.scores(pieces_of(stripped)).tolist()


def test_many_lines_are_judged_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"第{n}个人走了，{'雨' * (n % 50)}" for n in range(3000)]
    before = MODEL.scores(pieces_of(texts))
    monkeypatch.setattr(noise, "_BLOCK", 100)
    assert (MODEL.scores(pieces_of(texts)) == before).all() and np.isfinite(before).all()


def test_only_short_lines_with_chinese_characters_are_judged() -> None:
    texts = ["Thanks for reading, see you next week", "求" * noise.MAX_CHARS, "求" * (noise.MAX_CHARS + 1)]
    assert np.isfinite(MODEL.scores(pieces_of(texts))).tolist() == [False, True, False]
    nothing = Pieces("", pieces_of([""]).codes_C, np.zeros(1, np.int64), np.zeros(1, np.int32))
    assert MODEL.scores(nothing).tolist() == [-np.inf]


def test_what_stands_beside_a_line_never_speaks_for_it() -> None:
    """Else a line might go once what is beside it went: cleaning what was cleaned would take more."""
    assert (MODEL.beside_2T[:, noise.TEXT] == 0).all() and (MODEL.beside_2T >= 0).all()


def test_an_authors_note_in_its_own_words_goes() -> None:
    text = f"　　{PROSE * 4}\n　　{NOTE}\n　　{PROSE}" + f"\n　　{PROSE}" * 9
    cleaned, removed = clean(text, RULES)
    assert cleaned.text == "\n".join([PROSE * 4, *[PROSE] * 10])
    gone = [row for row in removed.to_pylist() if row["rule"] == NOISE_LINE]
    assert [(row["line_no"], row["text"], row["action"]) for row in gone] == [(2, f"　　{NOTE}", "drop_line")]
    assert restore(cleaned, removed) == text
    assert NOTE in clean(text, load_rules("zh_web_novel", disable=[NOISE_LINE]))[0].text
    assert NOTE in clean(text, RULES, whole=False)[0].text


def test_asides_that_read_like_noise_are_cut_and_others_stay() -> None:
    text = f"他推开门（作者君求一下收藏和推荐票，拜谢各位书友），看见屋里没有人（灯倒还亮着）。\n{PROSE}"
    assert clean(text, RULES)[0].text == f"他推开门，看见屋里没有人（灯倒还亮着）。\n{PROSE}"


def test_halves_of_a_sentence_around_a_note_are_joined() -> None:
    text = f"　　{PROSE * 4}\n　　后来他推开门，看见屋里\n{NOTE}\n没有人。" + f"\n　　{PROSE}" * 9
    assert "看见屋里没有人。" in clean(text, RULES)[0].text


def test_a_note_and_the_sentence_behind_a_page_number_are_judged_apart() -> None:
    """Where a note of somebody's ends without a stop, and prose begins behind a number, they are no halves of one."""
    note = "本文共6400字，预计阅读时间16分钟"
    text = "\n\n".join([note, "01", "我在那里守了六年的夜。", *[f"{PROSE}{number}" for number in range(9)]])
    assert clean(text, RULES)[0].text.startswith("我在那里守了六年的夜。")


def test_a_sentence_that_a_rule_for_lines_would_take_stays_if_it_is_prose_for_sure() -> None:
    """A rule knows its words in any line; the model, what the rest of the line is."""
    line = "最后一个人最新章节请到八斗看书从水里爬出来的时候，怀里紧紧抱着那只铁皮箱子。"
    rule = next(rule for rule in RULES.rules if rule.name == "site_request")
    assert rule.pattern.search(line) and not rule.spans(line) and line in clean(f"{PROSE}\n{line}", RULES)[0].text
    assert rule.spans("最新章节请到八斗看书，一秒记住本站的域名，下次再来看。")


def test_a_text_of_nothing_but_such_lines_is_left_alone() -> None:
    notes = "\n".join([NOTE, "因为作者明天要搬家，所以这章字数少了点，后天一定多写，么么哒", PROSE])
    assert clean(notes, RULES)[0].text == notes


@pytest.mark.parametrize("top", ["朝代：清", "某某（英）著", "简介：少年离家，十年方归。", "《一个人》"])
def test_a_note_above_the_imprint_does_not_shield_it(top: str) -> None:
    """What only a text's top tells is asked again once the note is gone, as cleaning once more would."""
    text = "\n".join([NOTE, top, *[f"{PROSE}{number}" for number in range(6)]])
    cleaned = clean(text, RULES)[0].text
    assert cleaned.startswith(PROSE) and clean(cleaned, RULES)[0].text == cleaned


def test_a_chain_of_short_lines_does_not_empty_a_text() -> None:
    text = "\n".join([NOTE, *["没错没错", "哈哈哈", "嗯嗯嗯", "对啊对啊"] * 60])
    cleaned = clean(text, RULES)[0].text
    assert len(cleaned) > 0.9 * len(text) and clean(cleaned, RULES)[0].text == cleaned


def test_a_long_run_of_notes_takes_linear_time() -> None:
    """A thread may end in thousands of replies."""

    def seconds(notes: int) -> float:
        prose = [f"{PROSE}{number}" for number in range(notes)]  # of other lengths: nothing is wrapped
        lines = [*prose, *[f"{NOTE[:20]}{number}" for number in range(notes)], *prose]
        start = time.process_time()
        assert NOTE[:20] not in clean("\n".join(lines), RULES)[0].text
        return time.process_time() - start

    few = min(seconds(1500) for _ in range(2))
    assert seconds(12_000) < 8 * 3 * few


def test_lines_that_are_found_count_as_noise_beside_others() -> None:
    own, chars = np.array([1.0, -0.5, -0.5, -9.0]), np.array([10, 10, 10, 900], np.int32)
    text = np.zeros(4, np.int64)
    model = MODEL._replace(beside_2T=np.array([[0, 0, 1], [0, 0, 1]], np.int16), unit=1.0)
    assert noise.noise_lines(model, own, chars, text, text).tolist() == [True, True, True, False]
    above = np.array([noise.TEXT, noise.HEADING, noise.TEXT, noise.TEXT])
    assert noise.noise_lines(model, own, chars, above, text).tolist() == [True, False, False, False]
    assert not noise.noise_lines(model, own, np.array([10, 10, 10, 3], np.int32), text, text).any()
    # Too much with those that only their neighbours condemn: then these stay.
    some = np.array([10, 10, 10, 40], np.int32)
    assert noise.noise_lines(model, own, some, text, text).tolist() == [True, False, False, False]


def test_the_rules_digest_knows_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    off = load_rules(
        "zh_web_novel", disable=[NOISE_LINE, "noise_inset", *(rule.name for rule in RULES.rules if rule.like_noise)]
    )
    before = RULES.digest, off.digest
    monkeypatch.setattr(noise, "digest", lambda: "another")
    assert RULES.digest != before[0] and off.digest == before[1]


def test_labelled_lines_are_sound_and_the_model_knows_them() -> None:
    """What it was trained on: a model and lines that do not belong together would fail here by far."""
    sys.path.insert(0, str(LINES.parent))
    import noise as bench

    read = [line for path in sorted(LINES.glob("*.tsv")) for line in bench.read(path)]
    labels = {(line.text, line.noise) for line in read}
    assert len(read) > 10_000 and len(labels) == len({line.text for line in read}) == len(read)
    found = bench.scores(MODEL, read) > 0
    is_noise = np.array([line.noise for line in read])
    assert found[is_noise].mean() > 0.9 and found[~is_noise].mean() < 0.002
