import random
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raystyle.corpus import insets
from raystyle.corpus.clean import clean, restore
from raystyle.corpus.lines import pieces_of, split_lines
from raystyle.corpus.packs import load_rules
from raystyle.corpus.steps import NOISE_INSET

RULES = load_rules("zh_web_novel")
MODEL = insets.load()
BENCH = Path(__file__).resolve().parents[2] / "bench"
HOST = "他把灯吹灭了，坐在黑地里听雨，心里想着明天的路。门外有人走过，脚步很轻，像是怕惊动了谁。"
# None of them stands in bench/noise/insets.txt, and no rule knows them.
UNKNOWN = ("↗本↖书↗由↖云↗边↖阁↗", "=57=", "﹏云边小站YBXZ﹏", "//P.88//", "|云边小站手机版|", "~P46~")

lines = st.lists(
    st.text(st.sampled_from("他走了，Ａa1 =［］（）。★\u3000開"), min_size=1, max_size=30), min_size=1, max_size=8
)


def by_hand(text: str) -> int:
    """The highest sum of a run of characters, by trying all of them."""
    code_C, _ = insets.usual(pieces_of([text]), np.zeros(1, np.int64))
    inside, begins, ended = (
        sum(MODEL.weight_B[bucket].astype(int) for bucket in insets.buckets(code_C, role))
        for role in (insets.INSIDE, insets.BEGINS, insets.ENDED)
    )
    places = range(len(text) + 1)
    sums = [inside[a:b].sum() + begins[a] + ended[b] for a in places for b in places if b - a >= insets.MIN_CHARS]
    return int(max(sums, default=np.iinfo(np.int64).min // 2)) - MODEL.bar


@given(lines)
@settings(deadline=None)
def test_the_best_run_is_the_best_of_all_runs_whatever_lines_stand_together(texts: list[str]) -> None:
    pieces = pieces_of(texts)
    code_C, start_N = insets.usual(pieces, np.arange(len(texts)))
    best_N, first_N, last_N = MODEL.best(code_C, start_N, pieces.chars_I.astype(np.int64))
    for n, text in enumerate(texts):
        if len(text) >= insets.MIN_CHARS:
            assert best_N[n] == by_hand(text)
        assert 0 <= first_N[n] <= last_N[n] <= len(text)
    alone = [insets.find(MODEL, pieces_of([text]), np.zeros(1, np.int64)).get(0) for text in texts]
    together = insets.find(MODEL, pieces, np.arange(len(texts)))
    assert [together.get(n) for n in range(len(texts))] == alone


@pytest.mark.parametrize("inset", UNKNOWN)
@pytest.mark.parametrize("place", [9, 14, 21, 32, 36])
def test_what_no_rule_knows_is_cut_out_of_a_sentence(inset: str, place: int) -> None:
    line = HOST[:place] + inset + HOST[place:]
    cleaned, removed = clean(line, RULES)
    assert cleaned.text == HOST and restore(cleaned, removed) == line
    assert clean(HOST, RULES)[0].text == HOST
    known = (BENCH / "noise" / "insets.txt").read_text(encoding="utf-8")
    assert inset not in known


@pytest.mark.parametrize("place", [9, 14, 21, 32, 36])
def test_where_no_sign_shows_its_ends_a_word_beside_it_may_go(place: int) -> None:
    inset = "看书神站App打开继续阅读本章"
    left = clean(HOST[:place] + inset + HOST[place:], RULES)[0].text
    assert inset not in left and "App" not in left and len(HOST) - len(left) <= 6


def test_it_can_be_switched_off_and_the_digest_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    off = load_rules("zh_web_novel", disable=[NOISE_INSET])
    line = HOST[:14] + UNKNOWN[1] + HOST[14:]
    assert UNKNOWN[1] in clean(line, off)[0].text
    before = RULES.digest, off.digest
    monkeypatch.setattr(insets, "digest", lambda: "another")
    assert RULES.digest != before[0] and off.digest == before[1]


@given(st.lists(st.tuples(st.integers(1, len(HOST) - 1), st.sampled_from(UNKNOWN)), min_size=1, max_size=3))
@settings(deadline=None, max_examples=60)
def test_cleaning_twice_is_cleaning_once(glued: list[tuple[int, str]]) -> None:
    line = HOST
    for place, inset in sorted(glued, reverse=True):
        line = line[:place] + inset + line[place:]
    text = f"第一章 风起\n{HOST}\n{line}\n{HOST}"
    cleaned, removed = clean(text, RULES)
    assert restore(cleaned, removed) == text
    assert clean(cleaned.text, RULES)[0].text == cleaned.text


@pytest.mark.parametrize("inset", ["[本楼已被编辑【52】过3次]", *UNKNOWN])
def test_what_is_joined_piece_by_piece_is_cut_then_or_never(inset: str) -> None:
    """More of a sentence is left around an inset in three pieces than in two: they are asked for as they would stand."""
    for place in range(2, 7):
        middle = "门外有人走过"[:place] + inset + "门外有人走过"[place:]
        text = f"风从谷口吹进来，\n- 83 -\n{middle}\n- 84 -\n老人没有说话，"
        cleaned, removed = clean(text, RULES)
        assert restore(cleaned, removed) == text
        assert clean(cleaned.text, RULES)[0].text == cleaned.text


def test_a_line_that_is_no_paragraph_is_not_asked() -> None:
    line = (HOST[:14] + "=57=" + HOST[14:]) * 60
    assert len(line) > insets.MAX_LINE and "=57=" in clean(line, RULES)[0].text
    assert "=57=" not in clean(line[: insets.MAX_LINE // 2], RULES)[0].text


@pytest.mark.parametrize(
    ("line", "part", "cut"),
    [
        (HOST[:14] + "【云边b站" + "，二楼】" + HOST[14:], "【云边b", "【云边b站，二楼】"),
        (HOST[:14] + "yunbian99" + HOST[14:], "bian", "yunbian99"),
        (HOST[:14] + "（他的a）" + HOST[14:], "（他的a）", None),  # an aside
        (HOST[:14] + "【足云】" + HOST[14:], "【足云】", None),  # stands for a character
        (HOST, "坐在黑地里", None),  # prose
        ("他走了，" + "a" * 20, "a" * 20, None),  # no sentence is left
    ],
)
def test_an_inset_is_whole_or_none(line: str, part: str, cut: str | None) -> None:
    first = line.index(part)
    span = insets.whole(line, first, first + len(part))
    assert (line[slice(*span)] if span else None) == cut


def test_only_lines_with_an_odd_character_are_asked() -> None:
    texts = [HOST, HOST + "a", "", "“走吧。”", HOST + "１"]
    assert insets.odd(pieces_of(texts)).tolist() == [False, True, False, False, True]
    assert insets.odd(split_lines(["\u3000\u3000" + HOST + " \n他b"]).body).tolist() == [False, True]


def test_many_lines_take_no_longer_each() -> None:
    line = HOST + "a" + HOST
    few, many = pieces_of([line] * 1_000), pieces_of([line] * 8_000)
    seconds = []
    for pieces in (few, many):
        started_s = time.process_time()
        insets.find(MODEL, pieces, np.arange(len(pieces.start_I)))
        seconds.append(time.process_time() - started_s)
    assert seconds[1] < 20 * seconds[0]


def test_insets_to_train_on_are_sound_and_the_model_knows_them() -> None:
    """A model and insets that do not belong together would fail here by far."""
    sys.path.insert(0, str(BENCH))
    import insets as bench

    known = (BENCH / "noise" / "insets.txt").read_text(encoding="utf-8").splitlines()
    assert len(known) > 800 and len(set(known)) == len(known)
    drawn = random.Random(1)
    glued = [bench.glue(inset, HOST, drawn) for inset in known]
    glued = [(text, span) for text, span in glued if insets.whole(text, *span)]
    outcome = bench.judged(MODEL, glued, [HOST])
    assert outcome.exact > 0.75 * outcome.insets
