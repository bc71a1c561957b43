import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prose import PROSE

from raystyle.errors import ModelError
from raystyle.tokens import (
    MAX_CHUNK_CHARS,
    backend_json,
    chunk_ends,
    encode,
    load_tokenizer,
    prefix_and_end,
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
