"""tiktoken gives a tokenizer's own ids, or is not asked."""

import json
from typing import Any

import pytest
import tiktoken
from hypothesis import assume, given
from hypothesis import strategies as st
from prose import PROSE

from raystyle import bpe

LETTER_OF = {byte: letter for letter, byte in bpe.BYTE_OF.items()}
BYTES = {letter: id_ for id_, letter in enumerate(bpe.BYTE_OF)}


def core(pattern: str, merges: list[tuple[str, str]], extra: tuple[str, ...] = (), **options: Any) -> Any:
    """A byte-level tokenizer with these merges, whose ids go up along them, and tokens that nothing makes."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = dict(BYTES)
    for token in (*map("".join, merges), *extra):
        vocabulary.setdefault(token, len(vocabulary))
    found = Tokenizer(models.BPE(vocabulary, merges, **options))
    if pattern == bpe.GPT2:
        found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        found.pre_tokenizer = pre_tokenizers.Sequence(
            [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
    found.decoder = decoders.ByteLevel()
    return found


def own(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


@st.composite
def merges_of_few_letters(draw: st.DrawFn) -> list[tuple[str, str]]:
    """Merges of tokens that are there already, in any order: some of them never come to anything."""
    tokens, merges = ["a", "b", "c"], []
    for _ in range(draw(st.integers(0, 14))):
        pair = draw(st.sampled_from(tokens)), draw(st.sampled_from(tokens))
        if "".join(pair) not in tokens:
            merges.append(pair)
            tokens.append("".join(pair))
    return merges


@given(merges_of_few_letters(), st.booleans(), st.lists(st.text("abc", max_size=30), min_size=1, max_size=5))
def test_any_merges_give_the_same_ids(merges: list[tuple[str, str]], whole_pieces: bool, texts: list[str]) -> None:
    tokenizer = core(bpe.QWEN2, merges, ignore_merges=whole_pieces)
    encoder = bpe.encoder(tokenizer)
    assume(encoder is not None)  # not so only where whole pieces are tokens that two others would have to make
    assert encoder is not None
    for text in (" ".join(texts), *texts, *(pair[0] + pair[1] for pair in merges)):
        assert encoder.ids(text).tolist() == own(tokenizer, text)


def test_a_token_that_its_bytes_do_not_become_is_never_made() -> None:
    """`bc` goes first, so `abc` is never made of `ab` and `c`, as the list has it; tiktoken would make it of `a` and `bc`."""
    merges = [("b", "c"), ("a", "b"), ("ab", "c")]
    encoder = bpe.encoder(core(bpe.GPT2, merges))
    assert encoder is not None
    assert encoder.ids("abc").tolist() == own(core(bpe.GPT2, merges), "abc") == [BYTES["a"], 256]
    # Where a piece that is a token stands for it, tiktoken would have to know that token and not merge to it.
    assert bpe.encoder(core(bpe.GPT2, merges, ignore_merges=True)) is None


def test_a_piece_that_is_a_token_whatever_its_pairs() -> None:
    for whole_pieces in (False, True):
        tokenizer = core(bpe.LLAMA3, [("a", "b")], ("cabc",), ignore_merges=whole_pieces)
        encoder = bpe.encoder(tokenizer)
        assert encoder is not None
        for text in ("cabc", "cabcc", "a cabc", " cabc"):
            assert encoder.ids(text).tolist() == own(tokenizer, text)
        assert len(encoder.ids("cabc")) == (1 if whole_pieces else 3)


@pytest.mark.parametrize("pattern", sorted(bpe.PATTERNS))
@given(
    text=st.lists(st.sampled_from([*PROSE, "\r\n", "  ", "I'LL", "１２3", "e\u0301", "👩‍👧"]) | st.text()).map("".join)
)
def test_any_text_gives_the_same_ids(pattern: str, text: str) -> None:
    encoder = bpe.encoder(TRAINED[pattern])
    assert encoder is not None
    assert encoder.ids(text).tolist() == own(TRAINED[pattern], text)


def trained(pattern: str) -> Any:
    from tokenizers import trainers

    tokenizer = core(pattern, [])
    trainer = trainers.BpeTrainer(vocab_size=900, initial_alphabet=list(BYTES), show_progress=False)
    tokenizer.train_from_iterator(PROSE * 4, trainer)
    return tokenizer


TRAINED = {pattern: trained(pattern) for pattern in bpe.PATTERNS}


@pytest.mark.parametrize("pattern", sorted(bpe.PATTERNS))
def test_every_character_is_cut_alike(pattern: str) -> None:
    """Pieces show in tiktoken's ids where any two bytes merge: here those of a character with what stands beside it."""
    tokenizer = core(pattern, [])
    # Ideographs, Hangul, private use: blocks of a kind, of which one in 50 stands for the others.
    all_alike = [(0x3400, 0xA000), (0xAC00, 0xD7A4), (0xE000, 0xF900), (0x17000, 0x18D00), (0x20000, 0x323B0)]
    others = [
        (0x20, 0x3400),
        (0xA000, 0xAC00),
        (0xD7A4, 0xD800),
        (0xF900, 0x17000),
        (0x18D00, 0x20000),
        (0xE0000, 0xE01F0),
    ]
    characters = [chr(c) for first, last in all_alike for c in range(first, last, 50)]
    characters += [chr(c) for first, last in others for c in range(first, last)]
    for neighbour in ("a", "1", " ", "!", "\n", "'"):
        first = neighbour.encode()
        pairs = [first + bytes([b]) for b in range(256)] + [
            bytes([b]) + first for b in range(256) if bytes([b]) != first
        ]
        ranks = {bytes([b]): b for b in range(256)} | {pair: 256 + i for i, pair in enumerate(dict.fromkeys(pairs))}
        encoding = tiktoken.Encoding("", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
        for text in (neighbour + "{}", "{}" + neighbour):
            wrong = []
            for c in characters:
                probe = text.format(c)
                ours = len(encoding.encode_ordinary(probe)) < len(probe.encode())
                theirs = len(tokenizer.pre_tokenizer.pre_tokenize_str(probe)) == 1
                wrong += [c] if ours != theirs else []
            assert not wrong, (pattern, text, len(wrong), [f"U+{ord(c):04X}" for c in wrong[:20]])


def test_what_is_no_list_of_byte_pairs_is_left_to_the_tokenizer() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    merges = [("a", "b"), ("c", "d")]
    assert bpe.encoder(core(bpe.GPT2, merges)) is not None
    content = json.loads(core(bpe.GPT2, merges).to_str())
    changes: list[tuple[str, dict[str, Any]]] = [
        ("model", {"byte_fallback": True}),
        ("model", {"dropout": 0.1}),
        ("model", {"end_of_word_suffix": "</w>"}),
        ("model", {"vocab": content["model"]["vocab"] | {"ab": 257, "cd": 256}}),  # ids that go down along the merges
        ("pre_tokenizer", {"add_prefix_space": True}),
        ("pre_tokenizer", {"use_regex": False}),
    ]
    for part, change in changes:
        other = content | {part: content[part] | change}
        assert bpe.encoder(Tokenizer.from_str(json.dumps(other))) is None, change
    assert bpe.encoder(core(r"\p{L}+|\P{L}+", merges)) is None
    other = Tokenizer(models.BPE())
    other.pre_tokenizer = pre_tokenizers.Metaspace()
    assert bpe.encoder(other) is None


def test_added_tokens_that_are_not_special_are_the_tokenizers_to_find() -> None:
    from tokenizers import AddedToken

    tokenizer = core(bpe.QWEN2, [])
    tokenizer.add_special_tokens(["<eos>"])
    tokenizer.add_tokens([AddedToken("<think>", special=False)])
    encoder = bpe.encoder(tokenizer)
    assert encoder is not None
    assert encoder.knows("他说<eos>") and not encoder.knows("他想<think>")


def test_added_tokens_that_the_normalizer_spells_otherwise() -> None:
    from tokenizers import AddedToken, normalizers

    tokenizer = core(bpe.QWEN2, [])
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_tokens([AddedToken("<think>", special=False)])
    assert bpe.encoder(tokenizer) is not None
    tokenizer.add_tokens([AddedToken("e\u0301", special=False)])
    assert bpe.encoder(tokenizer) is None


def test_a_special_token_that_a_piece_may_be() -> None:
    """Where special tokens are text, a piece that reads as one is still a token of the vocabulary."""
    for merges, extra in (([("a", "b")], ()), ([], ("pad",))):
        tokenizer = core(bpe.QWEN2, merges, extra, ignore_merges=True)
        tokenizer.add_special_tokens(["ab" if merges else "pad"])
        tokenizer.encode_special_tokens = True
        encoder = bpe.encoder(tokenizer)
        assert encoder is not None
        for text in ("ab xab", "pad xpad", "abpad"):
            assert encoder.ids(text).tolist() == own(tokenizer, text)
