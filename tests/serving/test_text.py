"""Tokens to text: whole characters, the same text however it is cut, nothing of a stop string."""

import builders
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raystyle import tokens
from raystyle.generation import Scored, _continuation
from raystyle.serving.text import LogprobStream, TextStream, token_bytes

TEXT = "今日天气阴沉，她说：“走罢！”\n𠮷野家 naïve — end"


@pytest.fixture(scope="module")
def tiny_tokenizer(tiny_model):
    return tokens.load_tokenizer(str(tiny_model))


@pytest.fixture(scope="module")
def metaspace():
    return builders.metaspace_tokenizer()


def in_bytes(text):
    """`metaspace`'s ids of characters that it has none of its own for."""
    return [4 + byte for byte in text.encode()]


def streamed(tokenizer, ids, cuts=(), stop=(), prompt=()):
    stream, found, start = TextStream(tokenizer, stop, prompt), [], 0
    for end in [*sorted({cut for cut in cuts if cut < len(ids)}), len(ids)]:
        found.append(stream.add(ids[start:end]))
        start = end
    return [*found, stream.finish()], stream


@given(st.lists(st.integers(0, 319), max_size=40), st.sets(st.integers(0, 40)))
def test_pieces_put_together_are_the_text_of_all_tokens(tiny_tokenizer, ids, cuts):
    """Any ids, so also bytes that never become a character."""
    pieces, stream = streamed(tiny_tokenizer, ids, cuts)
    assert "".join(pieces) == tiny_tokenizer.decode(ids, skip_special_tokens=True)
    assert stream.length == sum(map(len, pieces))


@given(st.text(max_size=30), st.integers(1, 7))
def test_no_piece_ends_in_part_of_a_character(tiny_tokenizer, text, size):
    ids = tiny_tokenizer(text.replace("\ufffd", ""), add_special_tokens=False)["input_ids"]
    pieces, _ = streamed(tiny_tokenizer, ids, range(0, len(ids), size))
    assert not any("\ufffd" in piece for piece in pieces)


class Counting:
    """A tokenizer, and how many tokens it decoded."""

    def __init__(self, tokenizer):
        self.tokenizer, self.count = tokenizer, 0

    def decode(self, ids, **more):
        self.count += len(ids)
        return self.tokenizer.decode(ids, **more)


def test_bytes_that_never_become_a_character_are_neither_held_for_ever_nor_decoded_again_and_again(tiny_tokenizer):
    [lone] = [token for token in range(320) if token_bytes(tiny_tokenizer, token) == b"\xa9"]
    counting = Counting(tiny_tokenizer)
    pieces, _ = streamed(counting, [lone] * 500, range(500))
    assert "".join(pieces) == "\ufffd" * 500 and "".join(pieces[:10])
    assert counting.count < 500 * 100


def test_a_batch_that_ends_in_part_of_a_character_gives_out_the_whole_ones(metaspace):
    ids = in_bytes("𠮷野家")
    pieces, _ = streamed(metaspace, ids, [len(ids) - 2])
    assert pieces == ["𠮷野", "家", ""]


@given(st.lists(st.one_of(st.just([4 + 0xA9]), st.just([1]), st.just(in_bytes("天")))), st.integers(1, 9))
def test_what_stands_behind_bytes_that_are_no_character_is_not_lost(metaspace, parts, size):
    ids = [token for part in parts for token in part] + [4 + 0xA9, 1, 3]
    pieces, _ = streamed(metaspace, ids, range(0, len(ids), size))
    assert "".join(pieces).endswith(" the气") and "".join(pieces).count("the") == ids.count(1)


@given(
    st.text("甲乙丙a", max_size=30), st.lists(st.text("甲乙a", min_size=1, max_size=4), max_size=3), st.integers(1, 5)
)
def test_text_ends_before_the_first_stop_string_wherever_it_is_cut(tiny_tokenizer, text, stop, size):
    ids = tiny_tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces, stream = streamed(tiny_tokenizer, ids, range(0, len(ids), size), stop)
    # The earliest end of a stop string decides, and of those that end there the one that began first.
    ends = [end for end in range(len(text) + 1) if any(text[:end].endswith(word) for word in stop)]
    expected = text
    if ends:
        expected = min((text[: ends[0]].removesuffix(w) for w in stop if text[: ends[0]].endswith(w)), key=len)
    assert "".join(pieces) == expected
    assert stream.stopped == bool(ends)
    one_by_one = streamed(tiny_tokenizer, ids, range(len(ids)), stop)[1]
    assert stream.tokens == one_by_one.tokens <= len(ids)


def test_what_may_become_a_stop_string_is_held_back_and_given_out_if_it_does_not(tiny_tokenizer):
    def ids(text):
        return tiny_tokenizer(text, add_special_tokens=False)["input_ids"]

    stream = TextStream(tiny_tokenizer, ["\n\n第"])
    assert stream.add(ids("天\n")) == "天"
    assert stream.add(ids("\n")) == ""
    assert stream.add(ids("地\n")) == "\n\n地"
    assert stream.finish() == "\n"


def test_log_probabilities_have_bytes_and_places(tiny_tokenizer):
    ids = tiny_tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    found = LogprobStream(tiny_tokenizer).add([Scored(token, -0.5, ((token, -0.5),)) for token in ids])
    assert b"".join(item.bytes for item in found).decode() == TEXT
    for item in found:
        if "\ufffd" not in item.token:
            assert TEXT[item.offset :].startswith(item.token)
    assert found[-1].offset == len(TEXT) - 1


def test_a_special_token_stands_for_no_bytes(tiny_tokenizer):
    assert token_bytes(tiny_tokenizer, tiny_tokenizer.eos_token_id) == b""
    [item] = LogprobStream(tiny_tokenizer).add([Scored(tiny_tokenizer.eos_token_id, None, ())])
    assert (item.token, item.offset, item.logprob) == ("<|endoftext|>", 0, None)


def test_a_metaspace_vocabulary_with_bytes_for_the_rest(metaspace):
    ids = [1, 2, 3, *in_bytes("天"), 1]
    pieces, _ = streamed(metaspace, ids, range(len(ids)))
    assert "".join(pieces) == metaspace.decode(ids)
    assert [token_bytes(metaspace, token) for token in (1, 3, 4 + 0xE5)] == [b" the", "气".encode(), b"\xe5"]


@pytest.mark.parametrize("prompt", [[1], [3], [1, *in_bytes("天地玄黄")], in_bytes("𠮷野"), [0, 1, 1, 1, 1, 1, 1]])
@pytest.mark.parametrize("ids", [[1, 1, 3], [*in_bytes("天"), 1], [2, 2, 1], [3]])
def test_a_continuation_is_what_it_is_behind_its_prompt(metaspace, prompt, ids):
    whole = metaspace.decode([*prompt, *ids], skip_special_tokens=True)
    expected = whole[len(metaspace.decode(prompt, skip_special_tokens=True)) :]
    for cuts in ((), range(len(ids))):
        assert "".join(streamed(metaspace, ids, cuts, prompt=prompt)[0]) == expected
    assert _continuation(metaspace, prompt, ids) == expected


def test_without_a_prompt_a_text_begins_as_the_tokenizer_has_it(metaspace):
    for prompt in ([], [0]):
        assert (
            "".join(streamed(metaspace, [1, 1], prompt=prompt)[0])
            == "the the"
            == _continuation(metaspace, prompt, [1, 1])
        )


@given(
    st.lists(st.integers(0, 319), max_size=12), st.lists(st.integers(0, 319), max_size=12), st.sets(st.integers(0, 12))
)
def test_however_it_is_cut_a_continuation_is_the_same(tiny_tokenizer, prompt, ids, cuts):
    """Any ids, so also a prompt that ends in part of a character."""
    expected = _continuation(tiny_tokenizer, prompt, ids)
    assert "".join(streamed(tiny_tokenizer, ids, cuts, prompt=prompt)[0]) == expected


def test_places_begin_where_the_text_does(metaspace):
    """What `echo` shows of the first token has no space in front."""
    ids, text = [0, 1, 1, 3], "the the气"
    assert metaspace.decode(ids, skip_special_tokens=True) == text
    found = LogprobStream(metaspace).add(
        [Scored(token, -0.5 if place else None, ()) for place, token in enumerate(ids)]
    )
    assert [item.offset for item in found] == [0, 0, 3, 7] and found[1].bytes == b" the"
    [after] = LogprobStream(metaspace).add([Scored(1, -0.5, ())])
    assert after.offset == 0
