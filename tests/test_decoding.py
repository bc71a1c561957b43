"""Rows that come and go: each gets what it would get alone, on every kind of attention that is let in."""

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto import CONFIG_MAPPING

from raystyle.decoding import Decoder, Slot
from raystyle.errors import ModelError
from raystyle.generation import Row, Sampling

VOCABULARY = 97
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WINDOWED = {"sliding_window": 5}
KINDS = {
    "llama": ("llama", {}),
    "mistral, sliding": ("mistral", WINDOWED),
    "qwen2, some layers sliding": ("qwen2", WINDOWED | {"use_sliding_window": True, "max_window_layers": 1}),
    "gemma2, eager": ("gemma2", WINDOWED),
    "gemma3, sliding": ("gemma3_text", WINDOWED),
    "qwen3 with experts": ("qwen3_moe", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}),
    "smollm3, a window that no layer has": ("smollm3", WINDOWED | {"use_sliding_window": False}),
    "gpt2": ("gpt2", {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 128}),
}


def network(kind: str):
    name, more = KINDS[kind]
    torch.manual_seed(1)
    config = CONFIG_MAPPING[name](**(SMALL | more))
    attention = "eager" if kind.endswith("eager") else "sdpa"
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    with torch.no_grad():
        for weight in model.parameters():  # far enough apart that rounding changes no choice
            weight.mul_(3 if weight.dim() > 1 else 1)
    return model


@pytest.fixture(scope="module")
def llama():
    return network("llama")


def prompt(length: int, seed: int = 0) -> tuple[int, ...]:
    return tuple(torch.randint(3, VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed)).tolist())


def greedy(length: int, new: int, seed: int = 0, **more) -> Row:
    return Row(prompt(length, seed), Sampling(max_new_tokens=new, temperature=0), **more)


def run(decoder: Decoder, rows: list[Row]) -> list[list[int]]:
    slots = [decoder.admit(row) for row in rows]
    drawn = {slot: [] for slot in slots}
    while not decoder.is_idle:
        for step in decoder.advance():
            if step.token is not None and step.slot in drawn:
                drawn[step.slot].append(step.token)
    return [drawn[slot] for slot in slots]


def alone(model, row: Row) -> list[int]:
    """What transformers' own greedy search gives."""
    ids = torch.tensor([row.prompt_ids])
    found = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=row.sampling.max_new_tokens, do_sample=False
    )
    found = found[0, ids.shape[1] :].tolist()
    return found[: found.index(2)] if 2 in found else found


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_unequal_length_equal_transformers_one_by_one(kind):
    model = network(kind)
    rows = [greedy(length, new, seed) for seed, (length, new) in enumerate([(3, 9), (14, 5), (1, 12), (7, 7), (14, 3)])]
    # Prompts in parts, groups of several, and more rows than slots.
    decoder = Decoder(model, {2}, max_rows=3, prefill_tokens=10)
    assert run(decoder, rows) == [alone(model, row) for row in rows]


def test_a_row_joins_between_steps_and_disturbs_nobody(llama):
    decoder = Decoder(llama, {2}, max_rows=4)
    first, second, late = greedy(5, 12, 1), greedy(9, 12, 2), greedy(3, 6, 3)
    slots = [decoder.admit(first), decoder.admit(second)]
    drawn = {slot: [] for slot in slots}
    decoder.prefill()
    for _ in range(3):
        decoder.step()
    newcomer = decoder.admit(late)
    assert [step.slot for step in decoder.prefill()] == [newcomer], "its first token comes before theirs end"
    assert len(decoder.running) == 3
    while not decoder.is_idle:
        decoder.step()
    for slot, row in ((slots[0], first), (slots[1], second), (newcomer, late)):
        assert slot.ids[len(row.prompt_ids) :] == alone(llama, row)
    assert drawn


def test_a_row_that_is_dropped_leaves_at_once_and_the_others_go_on(llama):
    decoder = Decoder(llama, {2}, max_rows=4)
    rows = [greedy(4 + n, 10, n) for n in range(4)]
    slots = [decoder.admit(row) for row in rows]
    waiting = decoder.admit(greedy(6, 4, 9))
    decoder.prefill()
    decoder.step()
    decoder.drop(slots[1])
    decoder.drop(waiting)
    decoder.step()
    assert slots[1] not in decoder.running and len(decoder.running) == 3
    assert len(slots[1].ids) == len(rows[1].prompt_ids) + 2
    while not decoder.is_idle:
        decoder.step()
    for n in (0, 2, 3):
        assert slots[n].ids[len(rows[n].prompt_ids) :] == alone(llama, rows[n])


def test_a_long_prompt_dropped_half_way_gives_its_slot_to_the_next(llama):
    decoder = Decoder(llama, {2}, max_rows=1, prefill_tokens=4)
    long = decoder.admit(greedy(30, 3, 1))
    decoder.prefill()
    decoder.drop(long)
    row = greedy(5, 6, 2)
    assert run(decoder, [row]) == [alone(llama, row)]


def test_log_probabilities_are_the_models_own(llama):
    row = Row(
        prompt(6), Sampling(max_new_tokens=3, temperature=1.7, top_p=0.5, top_k=4, repetition_penalty=1.3, seed=1)
    )
    row = Row(row.prompt_ids, row.sampling, logprobs=2, prompt_logprobs=True)
    decoder = Decoder(llama, {2}, max_rows=2, prefill_tokens=4)
    slot = decoder.admit(row)
    decoder.admit(greedy(3, 5, 5))
    scored = []
    while not decoder.is_idle:
        scored += [step.scored for step in decoder.advance() if step.slot is slot]
    with torch.inference_mode():
        logprobs = torch.log_softmax(llama(input_ids=torch.tensor([slot.ids])).logits[0].float(), -1)
    told = [*slot.prompt_scored, *scored]
    assert [item.token_id for item in told] == slot.ids
    assert told[0].logprob is None and told[0].top == ()
    for place, item in enumerate(told[1:]):
        assert item.logprob == pytest.approx(float(logprobs[place, item.token_id]), abs=1e-4)
        best = logprobs[place].topk(2)
        assert [token for token, _ in item.top] == best.indices.tolist()
        assert [value for _, value in item.top] == pytest.approx(best.values.tolist(), abs=1e-4)


def test_large_seeds_are_more_than_their_lower_bits():
    seeds = [7, -1, 2**32 - 1, 7 + 2**32, 7 + 2**33, 2**63 - 1]
    drawn = [tuple(Slot(Row((5,), Sampling(seed=seed))).random) for seed in seeds]
    assert len(set(drawn)) == len(seeds) - 1, "-1 is 2**32 - 1, as it was"
    own = torch.Generator().manual_seed(7)
    assert drawn[0] == tuple(torch.randint(2**31, (200,), generator=own).tolist())


def test_each_row_gets_as_many_of_the_likeliest_as_it_asked_for(llama):
    decoder = Decoder(llama, {2}, max_rows=4)
    counts = [None, 0, 5, 2]
    slots = [decoder.admit(greedy(4, 3, 7, logprobs=count)) for count in counts]
    by_slot = {step.slot: step.scored for step in decoder.prefill()}
    assert by_slot[slots[0]] is None
    assert [len(by_slot[slot].top) for slot in slots[1:]] == counts[1:]
    assert by_slot[slots[2]].top[:2] == by_slot[slots[3]].top


def test_the_repetition_penalty_knows_prompt_and_text(llama):
    row = Row(prompt(6), Sampling(max_new_tokens=60, temperature=0, repetition_penalty=1e6))
    found = run(Decoder(llama, set(), max_rows=2), [row, greedy(3, 60, 1)])[0]
    assert len({*row.prompt_ids, *found}) == len(set(row.prompt_ids)) + len(found)


def test_a_row_whose_logits_are_not_finite_ends_alone(llama):
    decoder = Decoder(llama, {2}, max_rows=3)
    slots = [decoder.admit(greedy(4, 5, n)) for n in range(3)]
    decoder.prefill()
    with torch.inference_mode():
        decoder.cache.layers[0].values[1].fill_(float("nan"))
    steps = decoder.step()
    assert [bool(step.error) for step in steps] == [False, True, False]
    while not decoder.is_idle:
        decoder.step()
    assert slots[0].ids[4:] == alone(llama, slots[0].row)
    assert slots[2].ids[4:] == alone(llama, slots[2].row)


def test_a_slot_that_was_broken_harms_nobody_who_gets_it(llama):
    """Beyond the end of a shorter row lies what another left, which a mask hides; but 0 times nan is nan."""
    decoder = Decoder(llama, {2}, max_rows=2)
    long, broken = decoder.admit(greedy(4, 30, 1)), decoder.admit(greedy(20, 5, 2))
    decoder.prefill()
    with torch.inference_mode():
        for layer in decoder.cache.layers:
            layer.keys[broken.index].fill_(float("nan"))
            layer.values[broken.index].fill_(float("nan"))
    assert [bool(step.error) for step in decoder.step()] == [False, True]
    row = greedy(3, 12, 3)
    assert run(decoder, [row]) == [alone(llama, row)]
    assert long.ids[4:] == alone(llama, long.row)


def test_slots_of_prompts_that_broke_harm_nobody_who_gets_them(llama):
    """Two rows with one prompt, whose keys are in both their slots, and in those that they had before another row left."""
    bad = 96
    decoder = Decoder(llama, {2}, max_rows=4, prefill_tokens=16)
    long, short = decoder.admit(greedy(4, 30, 1)), decoder.admit(greedy(4, 2, 2))
    decoder.prefill()
    hook = llama.get_input_embeddings().register_forward_hook(
        lambda _, given, out: out.masked_fill((given[0] == bad)[..., None], float("nan"))
    )
    try:
        for _ in range(2):
            decoder.admit(Row((bad,) * 20, Sampling(max_new_tokens=5)))
        assert decoder.prefill() == []
        decoder.step()
        assert short.left
        assert [bool(step.error) for step in decoder.prefill()] == [True, True]
    finally:
        hook.remove()
    rows = [greedy(3, 12, 3), greedy(5, 12, 4), greedy(3, 12, 5)]
    assert run(decoder, rows) == [alone(llama, row) for row in rows]
    assert long.ids[4:] == alone(llama, long.row)


def test_only_rows_that_asked_get_their_prompts_scored(llama):
    decoder = Decoder(llama, {2}, max_rows=2)
    plain, asked = decoder.admit(greedy(5, 3, 1)), decoder.admit(greedy(5, 3, 2, logprobs=1, prompt_logprobs=True))
    decoder.prefill()
    assert (len(plain.prompt_scored), len(asked.prompt_scored)) == (0, 5)


def test_after_an_error_in_the_model_the_next_row_starts_afresh(llama, monkeypatch):
    decoder = Decoder(llama, {2}, max_rows=2)
    first, waiting = decoder.admit(greedy(4, 5, 1)), decoder.admit(greedy(4, 5, 2))
    decoder.prefill()
    monkeypatch.setattr(decoder, "_forward", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        decoder.step()
    monkeypatch.undo()
    assert set(decoder.clear()) == {first, waiting}
    row = greedy(6, 6, 3)
    assert decoder.is_idle and run(decoder, [row]) == [alone(llama, row)]


def test_prompts_that_fail_are_dropped_and_running_rows_go_on(llama, monkeypatch):
    """Half-way, when some layers have the room that the new rows need and others do not."""
    decoder = Decoder(llama, {2}, max_rows=8)
    running = [decoder.admit(greedy(4 + n, 12, n)) for n in range(2)]
    decoder.prefill()
    last = decoder.cache.layers[-1]
    bad = [decoder.admit(greedy(5, 12, 5)) for _ in range(5)]
    with monkeypatch.context() as patch:
        patch.setattr(last, "update", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            decoder.prefill()
    assert decoder.drop_prompts() == bad
    assert decoder.cache.place.capacity == (2, 256), "what all layers have"
    late = greedy(6, 6, 3)
    assert run(decoder, [late]) == [alone(llama, late)]
    for slot in running:
        assert slot.ids[len(slot.row.prompt_ids) :] == alone(llama, slot.row)


def test_scored_prompts_take_little_at_a_time(llama, monkeypatch):
    """Their logits are of the whole vocabulary."""
    monkeypatch.setattr("raystyle.decoding.SCORED_TOKENS", 8)
    passes = []
    decoder = Decoder(llama, {2}, max_rows=4, choose=lambda rows, fresh: passes.append(len(rows) * fresh))
    scored = [greedy(20, 1, 1, prompt_logprobs=True), greedy(4, 1, 2), greedy(4, 1, 3, prompt_logprobs=True)]
    assert run(decoder, [*scored, greedy(20, 1, 4)]) == [alone(llama, row) for row in [*scored, greedy(20, 1, 4)]]
    assert passes == [8, 8, 4, 8, 20]


def test_rows_that_continue_one_prompt_have_it_computed_once(llama):
    """And each is what it would be alone, whatever it shares the pass with; another adapter's rows share nothing."""
    passes = []
    decoder = Decoder(
        llama, {2}, max_rows=9, prefill_tokens=24, choose=lambda rows, fresh: passes.append((len(rows), fresh))
    )
    asked = {"temperature": 1.0, "max_new_tokens": 6}
    same = [Row(prompt(11, 1), Sampling(seed=seed, **asked)) for seed in range(4)]
    scored = [Row(prompt(11, 1), Sampling(seed=seed, **asked), logprobs=1, prompt_logprobs=True) for seed in (4, 5)]
    other = [
        Row(prompt(7, 2), Sampling(seed=6, **asked)),
        Row(prompt(11, 1), Sampling(seed=7, **asked), adapter="style"),
    ]
    rows = [same[0], other[0], *same[1:], *other[1:], *scored]
    slots = [decoder.admit(row) for row in rows]
    assert len(decoder.prefill()) == 5, "all that have one of two prompts of 24 tokens at most"
    assert passes == [(2, 11)]
    while not decoder.is_idle:
        decoder.advance()
    assert [fresh for fresh in passes if fresh[1] > 1] == [(2, 11), (2, 11)]
    for slot in slots:
        [own] = run(Decoder(llama, {2}, max_rows=1), [slot.row])
        assert slot.ids[len(slot.row.prompt_ids) :] == own
    assert [len(slot.prompt_scored) for slot in slots] == [0] * 6 + [11] * 2
    assert slots[-1].prompt_scored == slots[-2].prompt_scored


def test_a_row_whose_prompt_was_to_be_another_s_too_may_leave(llama):
    decoder = Decoder(llama, {2}, max_rows=3, prefill_tokens=4)
    first, second = decoder.admit(greedy(10, 5, 1)), decoder.admit(greedy(10, 5, 1))
    decoder.prefill()
    decoder.drop(first)
    while not decoder.is_idle:
        decoder.advance()
    assert second.ids[10:] == alone(llama, second.row)


def test_no_new_tokens_means_none(llama):
    decoder = Decoder(llama, {2}, max_rows=1)
    decoder.admit(Row(prompt(4), Sampling(max_new_tokens=0), logprobs=0, prompt_logprobs=True))
    [step] = decoder.prefill()
    assert (step.token, step.finish_reason) == (None, "length")
    assert len(step.slot.prompt_scored) == 4


def test_room_is_kept_for_what_rows_have_come_to_and_not_for_what_they_ask(llama):
    decoder = Decoder(llama, {2}, max_rows=8)
    asking = decoder.admit(greedy(4, 100_000))
    run_some(decoder, 3)
    assert decoder.cache.place.capacity == (2, 256), "a quarter of the rows at once, and the rest as they come"
    others = [decoder.admit(greedy(4, 9, n)) for n in range(7)]
    run_some(decoder, 3)
    assert decoder.cache.place.capacity == (8, 256)
    rooms = [layer.keys.data_ptr() for layer in decoder.cache.layers]
    for slot in [asking, *others]:
        decoder.drop(slot)
    run(decoder, [greedy(4, 4)])
    assert [layer.keys.data_ptr() for layer in decoder.cache.layers] == rooms, "kept where it is enough"


def run_some(decoder: Decoder, steps: int) -> None:
    for _ in range(steps):
        decoder.prefill()
        decoder.step()


def test_room_grows_while_rows_run_and_they_are_what_they_are_alone(llama, monkeypatch):
    monkeypatch.setattr("raystyle.slots.LENGTH_STEP", 4)
    rows = [greedy(length, new, seed) for seed, (length, new) in enumerate([(3, 40), (9, 5), (2, 30), (17, 25)])]
    decoder = Decoder(llama, {2}, max_rows=4, prefill_tokens=6)
    assert run(decoder, rows) == [alone(llama, row) for row in rows]
    assert decoder.cache.place.capacity[1] >= 42


@pytest.mark.parametrize("more", [[], [(60, 20)], [(3, 200)]])
def test_rows_wait_while_the_cache_has_no_room_for_what_they_may_come_to(llama, monkeypatch, more):
    """And all get their turn, also one that has room alone only."""
    monkeypatch.setattr("raystyle.slots.LENGTH_STEP", 4)
    shapes = [(3, 9), (14, 30), (1, 12), *more, (7, 7), (14, 3), (2, 40)]
    rows = [greedy(length, min(new, 60), seed) for seed, (length, new) in enumerate(shapes)]
    decoder = Decoder(llama, {2}, max_rows=6, prefill_tokens=10)
    decoder.max_tokens = 100
    most = 0
    slots = [decoder.admit(row) for row in rows]
    while not decoder.is_idle:
        decoder.advance()
        has_rows, has_length = decoder.cache.place.capacity
        assert has_rows * has_length <= 100
        most = max(most, len(decoder.running))
    assert most > 1
    assert [slot.ids[len(slot.row.prompt_ids) :] for slot in slots] == [alone(llama, row) for row in rows]


LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [9.0] * 4}


@pytest.mark.parametrize(("rope", "length"), [(LONGROPE, 16), ({"rope_type": "default", "rope_theta": 1e4}, None)])
def test_where_rotary_embeddings_change_for_all_rows_at_once_is_known(rope, length):
    config = CONFIG_MAPPING["phi3"](**SMALL, rope_parameters=dict(rope), original_max_position_embeddings=16)
    decoder = Decoder(AutoModelForCausalLM.from_config(config).eval(), {2}, max_rows=2)
    assert decoder.max_length == length


def test_a_model_that_keeps_something_else_is_refused():
    config = CONFIG_MAPPING["mamba"](vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, state_size=4)
    with pytest.raises(ModelError, match="linear_attention"):
        Decoder(AutoModelForCausalLM.from_config(config), {2}, max_rows=1)
