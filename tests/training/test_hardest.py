"""A plateau is explained: a line of noise that nothing predicts comes out on top, with its count and its source."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from test_training_guard import trainer_for

from raystyle import storage, tokens
from raystyle.training import gate, hardest, metrics, report

NOISE, ONCE, PROSE = "xq7#kz!", "Zw@4%vJ", "今日天气阴沉。"
SPOILED = {4: NOISE, 5: NOISE, 7: ONCE, 9: NOISE}


@pytest.fixture
def prepared(tmp_path, tiny_prepared, tiny_model):
    """Twelve rows of one document each: a line of prose over and over, in some of them a line of noise, in one another."""
    tokenizer = tokens.load_tokenizer(str(tiny_model))
    texts = ["\n".join([PROSE] * 6 + [SPOILED.get(number, PROSE)] + [PROSE] * 6) + "\n" for number in range(12)]
    place = tmp_path / "prepared"
    (place / "rows").mkdir(parents=True)
    (place / "documents").mkdir()
    encoded = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    length = max(map(len, encoded))
    schema = pq.read_schema(next((tiny_prepared / "rows").glob("*.parquet")))
    schema = schema.set(schema.get_field_index("input_ids"), pa.field("input_ids", pa.list_(pa.int32(), length)))
    records = [
        {
            "row": number,
            "input_ids": ids + [0] * (length - len(ids)),
            "segment_lengths": [len(ids)],
            "pieces": [{"doc_id": f"d{number}", "char_start": 0, "char_end": len(texts[number])}],
        }
        for number, ids in enumerate(encoded)
    ]
    pq.write_table(pa.Table.from_pylist(records, schema=schema), place / "rows" / "part-00000.parquet")
    names = {"doc_id": [f"d{n}" for n in range(12)], "source": [f"novel-{n}.txt" for n in range(12)], "text": texts}
    pq.write_table(pa.table(names), place / "documents" / "part-00000.parquet")
    manifest = storage.read_json(str(tiny_prepared / "manifest.json"))
    manifest |= {"max_seq_length": length, "shards": [{"path": "rows/part-00000.parquet", "rows": 12}]}
    storage.write_json(str(place / "manifest.json"), manifest)
    return place


def test_a_plateau_is_explained_by_the_lines_it_stands_on(prepared, tiny_model, tmp_path, monkeypatch):
    tokenizer = tokens.load_tokenizer(str(tiny_model))
    trainer = trainer_for(tiny_model, prepared, tmp_path / "r", tokenizer)
    trainer.train()
    trainer.explain_plateau()  # a tiny base is no 8B one, and the gate says nothing of its level
    assert not [entry for entry in metrics.read(str(tmp_path / "r")) if "hardest_lines" in entry]
    monkeypatch.setattr(hardest, "ROWS", 6)  # 0, 2, 4, 7, 9 and 11
    monkeypatch.setattr(gate, "judge", lambda *_: gate.Gate("plateau above 2.0", "it stays"))
    trainer.explain_plateau()
    [entry] = [entry for entry in metrics.read(str(tmp_path / "r")) if "hardest_lines" in entry]
    lines = {line["text"]: line for line in entry["hardest_lines"]}
    assert list(lines) == [NOISE, PROSE, ONCE]  # what the corpus repeats comes first
    assert (lines[NOISE]["times"], lines[ONCE]["times"]) == (3, 1)  # in rows that were not measured, too
    assert lines[NOISE]["sources"] == ["novel-4.txt", "novel-5.txt", "novel-9.txt"]
    assert min(lines[NOISE]["loss"], lines[ONCE]["loss"]) > lines[PROSE]["loss"] + 0.1
    assert {row["row"] for row in entry["hardest_rows"][:3]} == {4, 7, 9}
    found = dict(report.sections(PLAN, [*LOSSES, entry], []))
    assert NOISE in found["Where the loss is highest"] and "novel-9.txt" in found["Where the loss is highest"]
    assert "Where the loss is highest" not in dict(report.sections(PLAN, LOSSES, []))


def test_losses_of_tokens_are_the_loss(prepared, tiny_model, tmp_path):
    trainer = trainer_for(tiny_model, prepared, tmp_path / "r")
    trainer.is_head_plain = trainer.check_head()
    batch = trainer.data_collator([(0, trainer.train_dataset.rows[0]), (1, trainer.train_dataset.rows[1])])
    batch.pop("place")
    trainer.model.eval()
    losses_T = hardest.token_losses(trainer, batch)
    assert np.isnan(losses_T).sum() == 2  # each document's first token
    with torch.no_grad():
        expected = float(trainer.loss_sum(trainer.model, batch))
    assert np.nansum(losses_T) == pytest.approx(expected, rel=1e-5)


PLAN = {
    "rows": 22, "max_seq_length": 64, "real_token_share": 1.0, "steps": 40, "global_batch_size": 4,
    "trainable_parameters": 10, "base_parameters": 100, "warnings": [],
    "identity": {"model": "m", "data_digest": "d" * 20},
}  # fmt: skip
LOSSES = [{"step": step, "loss": 2.2} for step in range(1, 41)]
