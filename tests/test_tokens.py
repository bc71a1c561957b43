import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from prose import PROSE

from raystyle.errors import ModelError
from raystyle.tokens import (
    CHUNKS_PER_BATCH,
    MAX_CHUNK_CHARS,
    backend_json,
    chunk_ends,
    encode,
    load_tokenizer,
    prefix_and_end,
    stream,
    tokenizer_digest,
)

NOVEL = "\n".join(PROSE * 60)


def test_a_missing_folder_is_named_at_once() -> None:
    with pytest.raises(ModelError, match=r"`/no/such/folder` does not exist\nhint:"):
        load_tokenizer("/no/such/folder")


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Any) -> None:
    with pytest.raises(ModelError, match=f"`{tmp_path}` cannot be loaded"):
        load_tokenizer(str(tmp_path))


def test_prefix_and_end_are_the_tokenizers_own(tokenizer: Any) -> None:
    assert prefix_and_end(tokenizer) == ([tokenizer.bos_token_id], tokenizer.eos_token_id)


def test_a_tokenizer_without_an_end_is_refused(tokenizer_dir: str) -> None:
    tokenizer = load_tokenizer(tokenizer_dir)
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="no end-of-text token"):
        prefix_and_end(tokenizer)


def test_encode_gives_the_ids_of_the_whole_text(tokenizer: Any) -> None:
    ids, offsets = encode(tokenizer, NOVEL)
    assert len(chunk_ends(NOVEL)) > 3
    assert ids.tolist() == tokenizer(NOVEL, add_special_tokens=False).input_ids
    assert ids.dtype == np.int32 and len(ids) == len(offsets)
    assert tokenizer.decode(ids) == NOVEL


def test_offsets_are_where_tokens_start(tokenizer: Any) -> None:
    ids, offsets = encode(tokenizer, NOVEL)
    assert offsets[0] == 0 and (np.diff(offsets) >= 0).all()
    middle = int(np.flatnonzero(np.diff(offsets))[200]) + 1
    assert tokenizer.decode(ids[middle:]) == NOVEL[offsets[middle] :]


def test_special_tokens_in_a_text_are_text(tokenizer: Any) -> None:
    ids, _ = encode(tokenizer, "他说<eos>完了")
    assert tokenizer.eos_token_id not in ids
    assert tokenizer("<eos>", add_special_tokens=False).input_ids == [tokenizer.eos_token_id]


def test_truncation_in_the_file_loses_nothing(tokenizer_dir: str) -> None:
    tokenizer = load_tokenizer(tokenizer_dir)
    tokenizer.backend_tokenizer.enable_truncation(8)
    ids, _ = encode(tokenizer, NOVEL)
    assert tokenizer.decode(ids) == NOVEL
    assert tokenizer.backend_tokenizer.truncation["max_length"] == 8


def test_a_tokenizer_that_marks_starts_sees_the_whole_text() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    core.train_from_iterator(PROSE, trainers.BpeTrainer(vocab_size=400))
    assert encode(core, NOVEL)[0].tolist() == core.encode(NOVEL, add_special_tokens=False).ids


def byte_level(text: list[str], **pre: Any) -> Any:
    """A byte-level tokenizer split as Qwen's is, with the merges that this text gives."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    core = Tokenizer(models.BPE())
    split = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(split, "isolated"), pre_tokenizers.ByteLevel(use_regex=False, **pre)]
    )
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(text, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False))
    return core


QWEN_LIKE = byte_level(PROSE, add_prefix_space=False)


def tokenizers_own(core: Any, text: str) -> tuple[list[int], list[int]]:
    """Ids and offsets by the tokenizer, chunk by chunk."""
    ids, offsets, start = [], [], 0
    for end in chunk_ends(text):
        encoding = core.encode(text[start:end], add_special_tokens=False)
        ids += encoding.ids
        offsets += [start + span[0] for span in encoding.offsets]
        start = end
    return ids, offsets


texts = st.lists(
    st.sampled_from(
        [*PROSE, "\n", "\n\n\n", "无标点" * 300, "x", " ", "𠮷野家", "e\u0301", "é", "\u00ad", "👩‍👧", "<eos>"]
    )
    | st.text(max_size=20),
    max_size=60,
).map("".join)


@given(texts)
@example("")
@example("é\u0301𠮷" * 2000)
def test_offsets_are_the_tokenizers_own(text: str) -> None:
    ids, offsets = encode(QWEN_LIKE, text)
    assert (ids.tolist(), offsets.tolist()) == tokenizers_own(QWEN_LIKE, text)
    assert ids.dtype == np.int32 and offsets.dtype == np.int64
    assert QWEN_LIKE.decode(ids, skip_special_tokens=False) == text


@given(texts)
@example("e\u0301\n" * 3000)
def test_offsets_are_right_where_the_tokenizer_changes_the_text(text: str) -> None:
    from tokenizers import Tokenizer, normalizers

    for normalizer in (normalizers.NFC(), normalizers.Sequence([normalizers.Replace("x", "xyz")])):
        core = Tokenizer.from_str(QWEN_LIKE.to_str())
        core.normalizer = normalizer
        ids, offsets = encode(core, text)
        assert (ids.tolist(), offsets.tolist()) == tokenizers_own(core, text)


def test_offsets_are_right_where_the_tokenizer_adds_a_space() -> None:
    core = byte_level(PROSE, add_prefix_space=True)
    ids, offsets = encode(core, PROSE[0])
    encoding = core.encode(PROSE[0], add_special_tokens=False)
    assert ids.tolist() == encoding.ids and offsets.tolist() == [start for start, _ in encoding.offsets]


def test_added_tokens_have_the_length_of_their_text() -> None:
    core = byte_level(PROSE, add_prefix_space=False)
    before = encode(core, "今日天气阴沉")[0]
    core.add_tokens(["天气阴"])
    ids, offsets = encode(core, "今日天气阴沉")
    assert len(ids) < len(before) and core.token_to_id("天气阴") in ids
    assert (ids.tolist(), offsets.tolist()) == tokenizers_own(core, "今日天气阴沉")


def test_punctuation_that_joins_the_next_word_does_not_ask_for_the_whole_text() -> None:
    core = byte_level(["。他来了", "天晴"] * 50, add_prefix_space=False)
    assert core.token_to_id(core.encode("。他").tokens[0]) and len(core.encode("。他").ids) == 1
    assert len(list(stream(core, NOVEL * 20))) > 1


def test_a_stream_is_the_text_in_order_some_chunks_at_a_time() -> None:
    batches = list(stream(QWEN_LIKE, NOVEL * 20))
    assert len(batches) == -(-len(chunk_ends(NOVEL * 20)) // CHUNKS_PER_BATCH) > 1
    whole = encode(QWEN_LIKE, NOVEL * 20)
    assert np.concatenate([ids for ids, _ in batches]).tolist() == whole[0].tolist()
    assert np.concatenate([offsets for _, offsets in batches]).tolist() == whole[1].tolist()


def test_streams_do_not_disturb_each_other(tokenizer: Any) -> None:
    text = NOVEL * 20 + "<eos>"
    one, other = stream(tokenizer, text), stream(tokenizer, text)
    first = [next(one)[0], next(other)[0]]
    assert tokenizer("<eos>", add_special_tokens=False).input_ids == [tokenizer.eos_token_id]
    rest = [ids for ids, _ in one], [ids for ids, _ in other]
    assert all(tokenizer.decode(np.concatenate([head, *tail])) == text for head, tail in zip(first, rest, strict=True))


def test_the_core_alone_gives_the_same_ids(tokenizer: Any) -> None:
    from tokenizers import Tokenizer

    core = Tokenizer.from_str(backend_json(tokenizer))
    assert (encode(core, NOVEL)[0] == encode(tokenizer, NOVEL)[0]).all()


def test_the_digest_follows_what_decides_ids(tokenizer_dir: str, tokenizer: Any) -> None:
    other = load_tokenizer(tokenizer_dir)
    assert tokenizer_digest(other) == tokenizer_digest(tokenizer)
    other.add_tokens(["天气"])
    assert tokenizer_digest(other) != tokenizer_digest(tokenizer)


@given(st.lists(st.sampled_from([*PROSE, "\n", "\n\n\n", "无标点" * 300, "x", ""]), max_size=60).map("".join))
def test_chunks_cover_the_text_and_stay_short(text: str) -> None:
    ends = chunk_ends(text)
    assert ends == sorted(ends) and ends[-1] == len(text)
    assert all(end - start <= MAX_CHUNK_CHARS for start, end in zip([0, *ends], ends, strict=False))


def test_importing_tokens_loads_nothing_heavy() -> None:
    code = "import sys, raystyle.tokens; assert not {'torch', 'transformers', 'tokenizers', 'ray'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
