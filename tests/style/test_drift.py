"""How far a model moved, and whether it writes sanely."""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raystyle import models, tokens
from raystyle.style import drift, neutral

TEXTS = ["今日天气阴沉，日月无光。" * 9, "天地玄黄，", "秋收冬藏。寒来暑往！" * 4]


@pytest.fixture(scope="module")
def tokenizer_(tiny_model):
    return tokens.load_tokenizer(str(tiny_model))


def with_lora(tiny_model, trained: bool):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=not trained)
    return get_peft_model(models.load_base(str(tiny_model), dtype=torch.float32), config).eval()


@pytest.fixture(scope="module")
def tuned(tiny_model):
    return with_lora(tiny_model, trained=True)


def test_an_untrained_adapter_has_not_moved(tiny_model, tokenizer_):
    assert drift.divergence(with_lora(tiny_model, trained=False), tokenizer_, TEXTS) == 0


def test_divergence_is_torch_s_own_over_every_predicted_token(tuned, tokenizer_, tiny_model):
    base = models.load_base(str(tiny_model), dtype=torch.float32).eval()
    ids_1T = tokenizer_(TEXTS[0], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        log_p_TV, log_q_TV = (m(input_ids=ids_1T).logits[0, :-1].double().log_softmax(-1) for m in (tuned, base))
    expected = torch.nn.functional.kl_div(log_q_TV, log_p_TV, log_target=True, reduction="batchmean").item()
    assert expected > 0.01
    assert drift.divergence(tuned, tokenizer_, TEXTS[:1], max_tokens=512) == pytest.approx(expected, rel=1e-5)


def test_batches_and_chunks_change_nothing(tuned, tokenizer_, monkeypatch):
    import raystyle.style.likelihood

    alone = drift.divergence(tuned, tokenizer_, TEXTS, max_tokens=40, batch_size=1)
    monkeypatch.setattr(raystyle.style.likelihood, "CHUNK_BYTES", 8 * 320 * 7)
    assert drift.divergence(tuned, tokenizer_, TEXTS, max_tokens=40) == pytest.approx(alone, rel=1e-5)
    assert drift.divergence(tuned, tokenizer_, TEXTS[::-1], max_tokens=40) == pytest.approx(alone, rel=1e-5)


def test_divergence_grows_with_the_adapter_s_scale_from_0(tuned, tokenizer_):
    found = []
    for scale in (0, 0.25, 0.5, 1):
        with models.scaled(tuned, scale):
            found.append(drift.divergence(tuned, tokenizer_, TEXTS))
    assert found[0] == 0
    assert found == sorted(found) and found[1] > 0
    assert drift.divergence(tuned, tokenizer_, TEXTS) == found[-1]


def test_nothing_to_predict_is_no_divergence(tuned, tokenizer_):
    assert drift.divergence(tuned, tokenizer_, [""]) == 0


PLAIN = neutral.PROSE[0]


@pytest.mark.parametrize(
    "text",
    [
        PLAIN[:40] + "我不知道。" * 8,
        PLAIN[:40] + "我不知道。\n" * 8 + "我不",
        "好" * 30,
        "天气很好，我们出去走走。" * 10 + "后来呢",
        "𠀀𠀁" * 20,
    ],
)
def test_loops_are_found(text):
    assert drift.loops(text)


@pytest.mark.parametrize(
    "text", ["", "好", PLAIN, PLAIN + "哈哈哈哈哈哈哈哈", PLAIN + "—" * 12, "我不知道。" * 8 + PLAIN, PLAIN * 2]
)
def test_prose_and_laughter_are_no_loops(text):
    assert not drift.loops(text)


@given(
    unit=st.text(alphabet="天地玄黄宇宙，。", min_size=1, max_size=drift.MAX_UNIT_CHARS),
    before=st.text(alphabet="洪荒日月", max_size=60),
    part=st.floats(0, 1),
)
def test_a_unit_repeated_to_the_end_is_a_loop_wherever_the_limit_cuts_it(unit, before, part):
    cut = unit[: int(part * len(unit))]
    assert drift.loops(before + unit * max(drift.MIN_REPEATS, drift.MIN_LOOP_CHARS) + cut)


@given(st.permutations([PLAIN, "好" * 40, "", "我不知道。" * 9]))
def test_shares_do_not_depend_on_the_order_of_texts(texts):
    assert drift.loop_rate(texts) == 0.5
    assert drift.repetition(texts) == pytest.approx(drift.repetition([PLAIN, "好" * 40, "", "我不知道。" * 9]))
    assert drift.malformed_share(texts) == 0


def test_neutral_prose_neither_loops_nor_repeats():
    assert drift.loop_rate(neutral.PROSE) == 0
    assert drift.repetition(neutral.PROSE) < 0.02


def test_repetition_counts_n_grams_that_were_there_before():
    assert drift.repetition(["甲乙丙丁戊"]) == 0
    assert drift.repetition(["甲乙 丙丁甲\n乙丙丁"]) == pytest.approx(1 / 5)
    assert drift.repetition(["好" * 13]) == pytest.approx(9 / 10)
    assert drift.repetition(["好" * 13, "甲乙丙丁"]) == pytest.approx(9 / 20)
    assert drift.repetition([]) == drift.repetition(["甲"]) == 0


@pytest.mark.parametrize("bad", ["\ufffd", "\x00", "\x7f", "\ud800", "\ue000", "\U000e0fff"])
def test_malformed_characters_are_counted(bad):
    assert drift.malformed_share([f"天{bad}地\n", "玄黄"]) == pytest.approx(1 / 6)


def test_a_character_cut_by_the_limit_is_not_malformed():
    assert drift.malformed_share(["天地\ufffd"]) == 0
    assert drift.malformed_share(["天地\ufffd\ufffd"]) == pytest.approx(1 / 3)
    assert drift.malformed_share(["“正常”的文字，\t有 emoji 😀 和生僻字𠮷。"]) == 0
    assert drift.malformed_share([]) == 0


def test_the_end_rate_is_the_share_that_stopped():
    assert drift.end_rate(["stop", "length", "length", "stop", "stop"]) == pytest.approx(3 / 5)
    assert drift.end_rate([]) == 0


ANSWERS = [
    ("choice", "是|否", ["是", "否。", " 是\n"], ["不是", "是的，鲸鱼是鱼", "", "是否"]),
    ("list", "3", ["1. 苹果\n2. 梨\n3. 桃", "1、苹果\n\n2、梨\n3、桃"], ["1. 苹果\n2. 梨", "好的：\n1. 甲\n2. 乙\n3. 丙", "苹果\n梨\n桃", "1. 甲\n3. 乙\n2. 丙", "1.\n2.\n3.", ""]),
    ("json", "city", ['{"city": "甲"}', '```json\n{"city": 1, "b": 2}\n```'], ['{"town": "甲"}', '["city"]', '好的 {"city": 1}', "city", "", '{"city": }']),
    ("sentence", "1", ["图书馆是借书的地方。", "他说：“请坐。”"], ["图书馆是借书的地方", "一句。两句。", "", "一句。后面还有"]),
    ("sentence", "2", ["春天来了。花开了。"], ["春天来了。", "甲。乙。丙。"]),
    ("word", "气温", ["今天气温很低。"], ["今天很冷。", ""]),
    ("short", "8", ["东边", "太阳从东边升起。"], ["太阳每天早上从东边升起。", "", "\n"]),
]  # fmt: skip


@pytest.mark.parametrize("kind, expected, good, bad", ANSWERS)
def test_checks_know_good_answers_from_bad(kind, expected, good, bad):
    for answer in good:
        assert drift.is_obeyed(kind, expected, answer), answer
    for answer in bad:
        assert not drift.is_obeyed(kind, expected, answer), answer


def test_every_task_has_a_check_and_every_check_is_tested():
    assert {task.kind for task in neutral.CHAT_TASKS} == set(drift.CHECKS) == {kind for kind, *_ in ANSWERS}


def test_no_task_is_obeyed_by_prose_or_by_silence():
    assert not any(
        drift.is_obeyed(task.kind, task.expected, answer)
        for task in neutral.CHAT_TASKS
        for answer in ["", random.Random(0).choice(neutral.PROSE[20:22])]
    )


def test_obedience_is_asked_of_chat_models_only(tuned, tokenizer_, tiny_model, monkeypatch):
    assert drift.obedience(tuned, tokenizer_, seed=0) is None
    chat = tokens.load_tokenizer(str(tiny_model))
    chat.chat_template = "<|begin|>{% for m in messages %}{{ m['content'] }}{% endfor %}"
    monkeypatch.setattr(drift, "ANSWER_TOKENS", 4)
    found = drift.obedience(tuned, chat, seed=0)
    assert set(found) == {*drift.CHECKS, "all", "ended"}
    assert all(0 <= share <= 1 for share in found.values())
    assert found == drift.obedience(tuned, chat, seed=0)


def test_an_obedient_model_obeys(tuned, tiny_model, monkeypatch):
    """Answers that are right where they should be, in the order of the tasks, the prompts encoded once."""
    chat = tokens.load_tokenizer(str(tiny_model))
    chat.chat_template = "<|begin|>{% for m in messages %}{{ m['content'] }}{% endfor %}"
    good = {kind: {expected: answers[0]} for kind, expected, answers, _ in ANSWERS}

    def answered(model, tokenizer, prompts, samplings, batch_size):
        assert [tokenizer.decode(ids, skip_special_tokens=False) for ids in prompts] == [
            "<|begin|>" + task.request for task in neutral.CHAT_TASKS
        ]
        return [
            drift.generation.Completion(good.get(task.kind, {}).get(task.expected, ""), (), "stop")
            for task in neutral.CHAT_TASKS
        ]

    monkeypatch.setattr(drift.generation, "generate_all", answered)
    found = drift.obedience(tuned, chat, seed=0)
    assert found["choice"] == 3 / 4
    assert found["ended"] == 1
    assert 0 < found["all"] < 1
