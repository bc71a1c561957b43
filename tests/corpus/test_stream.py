"""A corpus as a stream: each pass has every input once, in one order, and a shard can be made again."""

import json
import os
from collections import Counter

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raystyle.config import PrepareConfig
from raystyle.corpus import prepare, shards, stream
from raystyle.corpus.packs import load_rules
from raystyle.corpus.sources import Source, Unit, list_sources, plan_units
from raystyle.errors import DataError


def unit(number: int, size: int) -> Unit:
    return Unit(Source(f"{number}.txt", f"/{number}.txt", f"{number}.txt", size, 0, "text"))


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=40), st.integers(1, 9), st.integers(0, 5))
def test_each_pass_reads_every_input_once(sizes, num_shards, epoch):
    units = [unit(number, size) for number, size in enumerate(sizes)]
    first = epoch * num_shards
    of_pass = [stream.units_of(units, num_shards, 0, shard) for shard in range(first, first + num_shards)]
    assert Counter(u.source.uri for shard in of_pass for u in shard) == Counter(u.source.uri for u in units)


def test_passes_and_seeds_differ_and_shards_are_of_like_size():
    units = [unit(number, 1000) for number in range(200)]
    assert stream.count_shards([unit(0, 5 * shards.PACK_SHARD_BYTES)]) == 5
    assert {len(stream.units_of(units, 10, 0, shard)) for shard in range(20)} == {20}
    assert stream.units_of(units, 10, 0, 0) != stream.units_of(units, 10, 0, 10)
    assert stream.units_of(units, 10, 0, 0) != stream.units_of(units, 10, 1, 0)


@pytest.fixture
def corpus(tmp_path, tiny_model) -> stream.Stream:
    folder = tmp_path / "raw"
    folder.mkdir()
    for number in range(4):
        lines = [f"他走过第{number}条河，看见第{line}只船停在岸边。" for line in range(40)]
        (folder / f"{number}.txt").write_text("\n".join(["作者：某人", *lines]), encoding="utf-8")
    (folder / "empty.txt").write_text("")
    config = PrepareConfig(
        dataset_path=(str(folder),), output_dir=str(tmp_path / "out"), tokenizer_name_or_path=str(tiny_model),
        max_seq_length=64, segment_length=64, dedup="none",
    )  # fmt: skip
    vocabulary, _ = prepare.load_vocabulary(config)
    assert vocabulary
    units = plan_units(list_sources(config.dataset_path)[0])
    rules = load_rules(config.rules)
    return stream.Stream(units, 2, 7, rules, prepare.settings_of(config), vocabulary, str(tmp_path / "streamed"))


def rows_of(corpus: stream.Stream, shard: int) -> pa.Table:
    return pa.concat_tables([stream.SCHEMA.empty_table(), *stream.rows_of(corpus, shard)])


def test_a_shard_made_again_has_the_same_rows(corpus, tmp_path):
    first, second = rows_of(corpus, 0), rows_of(corpus, 1)
    assert rows_of(corpus, 0).equals(first)
    assert first["row"].to_pylist() == list(range(len(first))) and set(second["shard"].to_pylist()) == {1}
    assert all(
        sum(lengths) == len(ids) <= 64
        for ids, lengths in zip(first["input_ids"].to_pylist(), first["segment_lengths"].to_pylist(), strict=True)
    )
    sources = {name for table in (first, second) for names in table["sources"].to_pylist() for name in names}
    assert {name.rsplit("/", 1)[1] for name in sources} == {f"{number}.txt" for number in range(4)}
    # Rows are shuffled within a shard: a document's do not follow each other all the way.
    assert first["sources"].to_pylist() != sorted(first["sources"].to_pylist())


def test_the_rows_of_a_pass_are_those_that_prepare_packs(corpus):
    """Every token of the kept text, once."""
    ids = Counter(token for shard in (0, 1) for row in rows_of(corpus, shard)["input_ids"].to_pylist() for token in row)
    again = Counter(
        token for shard in (2, 3) for row in rows_of(corpus, shard)["input_ids"].to_pylist() for token in row
    )
    assert ids == again and sum(ids.values()) > 1000


def test_what_became_of_each_input_is_written_once(corpus, tmp_path):
    for shard in range(4):
        rows_of(corpus, shard)
    assert sorted(path.name for path in (tmp_path / "streamed").iterdir()) == ["shard-00000.json", "shard-00001.json"]
    found = [json.loads(path.read_text()) for path in (tmp_path / "streamed").iterdir()]
    assert sum(len(outcome["inputs"]) for outcome in found) == 5
    told = stream.told(str(tmp_path / "streamed"))
    assert told.startswith("streamed 5 inputs: ") and "Texts rejected: 1 (" in told


def test_a_corpus_that_nothing_is_left_of_is_refused_once_all_of_it_was_read(corpus):
    """Whether its inputs fill both shards of a pass or, as here, one of them has none."""
    (only,) = [unit for unit in corpus.units if unit.source.relpath.endswith("empty.txt")]
    hopeless = corpus._replace(units=[only])
    shards_ = sorted(range(2), key=lambda shard: len(stream.units_of([only], 2, 7, shard)))
    assert len(rows_of(hopeless, shards_[0])) == 0
    with pytest.raises(DataError, match=r"nothing to train on: streamed .*empty 1") as refused:
        rows_of(hopeless, shards_[1])
    assert corpus.outcomes in str(refused.value)


def test_a_large_shard_is_packed_in_parts_with_all_of_its_rows(corpus, monkeypatch):
    """As one that a single compressed file makes."""
    whole = rows_of(corpus, 0)
    monkeypatch.setattr(shards.pack_ranges, "__defaults__", (2_000,))
    parts = list(stream.rows_of(corpus, 0))
    assert len(parts) == 2 and sum(map(len, parts)) >= len(whole)
    assert pa.concat_tables(parts)["row"].to_pylist() == list(range(sum(map(len, parts))))
    tokens = [sorted(token for row in table["input_ids"].to_pylist() for token in row)
              for table in (whole, pa.concat_tables(parts))]  # fmt: skip
    assert tokens[0] == tokens[1]


def test_an_input_that_changes_under_a_run_is_refused(corpus):
    """Its rows would be others, and a cursor in them would lead elsewhere."""
    in_first = {unit.source.location for unit in stream.units_of(corpus.units, 2, 7, 0)}
    changed = next(unit.source for unit in corpus.units if unit.source.location in in_first)
    before = rows_of(corpus, 0)
    with open(changed.location, "rb+") as file:
        content = file.read()
        file.seek(0)
        file.write(content)  # the same bytes, later
    os.utime(changed.location, ns=(changed.mtime_ns, changed.mtime_ns))
    assert rows_of(corpus, 0).equals(before)
    os.utime(changed.location, ns=(changed.mtime_ns, changed.mtime_ns + 1))
    with pytest.raises(DataError, match="is not what it was when this run began"):
        rows_of(corpus, 0)
    os.unlink(changed.location)
    with pytest.raises(DataError, match=f"{changed.relpath}` is not what it was"):
        rows_of(corpus, 0)
