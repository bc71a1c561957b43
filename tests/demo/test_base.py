import dataclasses
import json
from pathlib import Path

import pytest

from raystyle.demo.base import REPORT_NAME, WEIGHTS_NAME, BaseReport, BaseSettings, base_digest, build_base
from raystyle.demo.bpe import EOS, train_tokenizer
from raystyle.demo.voices import neutral_documents
from raystyle.errors import DataError, RunError

DOCUMENTS = neutral_documents(1, 8)
TINY = BaseSettings(vocab_size=900, hidden_size=16, layers=1, heads=2, steps=3, batch_rows=2, seq_length=16)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, BaseReport]:
    folder = str(tmp_path_factory.mktemp("demo") / "base")
    return folder, build_base(DOCUMENTS, folder, settings=TINY)


def test_transformers_loads_the_folder(made: tuple[str, BaseReport], monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder, report = made
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert tokenizer.eos_token == tokenizer.pad_token == EOS
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert model.num_parameters() == report.num_parameters
    ids_BT = torch.tensor([tokenizer("今日天气阴沉，")["input_ids"]])
    assert model(input_ids=ids_BT).logits.shape == (*ids_BT.shape, len(tokenizer))


def test_the_same_base_is_not_made_twice(made: tuple[str, BaseReport]) -> None:
    folder, report = made
    steps: list[int] = []
    again = build_base(DOCUMENTS, folder, settings=TINY, on_step=lambda done, _all, _loss: steps.append(done))
    assert steps == []
    assert again == dataclasses.replace(report, cached=True)


def test_other_settings_documents_or_weights_make_another(tmp_path: Path) -> None:
    folder = tmp_path / "base"
    first = build_base(DOCUMENTS, str(folder), settings=TINY)
    (folder / WEIGHTS_NAME).write_bytes(b"damaged")
    mended = build_base(DOCUMENTS, str(folder), settings=TINY)
    assert not mended.cached
    assert mended.weights_sha256 == first.weights_sha256  # the same seed gives the same weights
    reseeded = build_base(DOCUMENTS, str(folder), settings=dataclasses.replace(TINY, seed=7))
    assert not reseeded.cached
    assert reseeded.weights_sha256 != first.weights_sha256
    assert base_digest(DOCUMENTS, TINY) != base_digest(DOCUMENTS[1:], TINY)
    assert json.loads((folder / REPORT_NAME).read_text())["digest"] == reseeded.digest


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="fewer than a row"):
        build_base(["短。"], str(tmp_path / "base"), settings=TINY)
    assert list(tmp_path.iterdir()) == []


def test_steps_are_reported(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    build_base(
        DOCUMENTS, str(tmp_path / "base"), settings=TINY, on_step=lambda done, num, _loss: seen.append((done, num))
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_the_tokenizer_gives_back_any_text() -> None:
    tokenizer = train_tokenizer(DOCUMENTS, 900)
    for text in [DOCUMENTS[0], "列位看官，醒木一响！", "龘 😀 abc\t\n  两端 "]:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_frequent_characters_are_one_token_and_none_is_longer_than_two() -> None:
    tokenizer = train_tokenizer(DOCUMENTS, 4000)
    assert len(tokenizer) <= 4000
    for char in set("".join(DOCUMENTS)):
        assert len(tokenizer(char)["input_ids"]) == 1, char
    assert max(len(tokenizer.decode([i])) for i in range(1, len(tokenizer))) == 2


def test_the_vocabulary_keeps_its_size() -> None:
    assert len(train_tokenizer(DOCUMENTS, 600)) == 600


def test_a_folder_with_anything_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "mine.txt").write_text("mine")
    with pytest.raises(RunError, match="no base made here"):
        build_base(["今日天气阴沉。"] * 50, str(tmp_path / "base"))
    assert (tmp_path / "base" / "mine.txt").read_text() == "mine"
