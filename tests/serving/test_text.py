"""Tokens to text: whole characters, the same text however it is cut, nothing of a stop string."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raystyle import tokens
from raystyle.generation import Scored
from raystyle.serving.text import LogprobStream, TextStream, token_bytes

TEXT = "今日天气阴沉，她说：“走罢！”\n𠮷野家 naïve — end"


@pytest.fixture(scope="module")
def tiny_tokenizer(tiny_model):
    return tokens.load_tokenizer(str(tiny_model))


def streamed(tokenizer, ids, cuts=(), stop=()):
    stream, found, start = TextStream(tokenizer, stop), [], 0
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


def test_a_metaspace_vocabulary_with_bytes_for_the_rest():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<unk>": 0, "▁the": 1, "▁": 2, "气": 3} | {f"<0x{byte:02X}>": 4 + byte for byte in range(256)}
    core = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")
    ids = [1, 2, 3, *[4 + byte for byte in "天".encode()], 1]
    pieces, _ = streamed(tokenizer, ids, range(len(ids)))
    assert "".join(pieces) == tokenizer.decode(ids)
    assert [token_bytes(tokenizer, token) for token in (1, 3, 4 + 0xE5)] == [b" the", "气".encode(), b"\xe5"]
