import pytest
from hypothesis import given
from hypothesis import strategies as st

from raystyle.corpus.shards import (
    Entry,
    choose_heldout,
    group_units,
    pack_ranges,
    piece_name,
    sample_sources,
    unit_bytes,
)
from raystyle.corpus.sources import UNIT_BYTES, Source, Unit
from raystyle.errors import DataError


def entries(groups: list[str], num_bytes: int = 10) -> list[Entry]:
    return [Entry(0, i, f"d{i}", group, num_bytes) for i, group in enumerate(groups)]


@pytest.mark.parametrize(
    "title",
    ["狂人日记(1)", "狂人日记（二）", "狂人日记 上", "狂人日记（下）", "狂人日记 12", "狂人日记之三", "狂人日记【3】"],
)
def test_parts_of_a_piece_share_its_name(title: str) -> None:
    assert piece_name(title) == "狂人日记"


def test_a_title_that_is_only_a_number_is_itself() -> None:
    assert [piece_name(title) for title in ["一", "上", "(1)", "风起"]] == ["一", "上", "(1)", "风起"]


@given(st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=60), st.floats(0.01, 0.5))
def test_held_out_groups_are_whole_and_do_not_overshoot(groups: list[str], fraction: float) -> None:
    if len(set(groups)) < 2:
        return
    chosen = choose_heldout(entries(groups), fraction)
    by_group = {group: {f"d{i}" for i, other in enumerate(groups) if other == group} for group in groups}
    taken = {group for group, ids in by_group.items() if ids & chosen}
    assert chosen == set().union(*(by_group[group] for group in taken))
    assert 0 < len(chosen) < len(groups)
    assert len(chosen) <= fraction * len(groups) or len(taken) == 1


def test_one_piece_cannot_be_held_out() -> None:
    assert choose_heldout(entries(["a", "a"]), 0) == set()
    with pytest.raises(DataError, match="hint: use `--document_unit chapter`"):
        choose_heldout(entries(["a", "a"]), 0.1)


@given(st.lists(st.integers(1, 500), max_size=50))
def test_pack_ranges_keep_every_document_in_order(sizes: list[int]) -> None:
    documents = [Entry(0, i, f"d{i}", "g", size) for i, size in enumerate(sizes)]
    ranges = pack_ranges(documents, 200)
    assert [entry for part in ranges for entry in part] == documents
    assert len(ranges) <= max(1, round(sum(sizes) / 200)) and all(ranges)


@given(st.lists(st.integers(0, 3 << 20), max_size=80))
def test_groups_keep_every_source_in_order(sizes: list[int]) -> None:
    units = [Unit(Source(f"{i}", f"{i}", f"{i}", size, 0, "text")) for i, size in enumerate(sizes)]
    groups = group_units(units)
    assert [unit for group in groups for unit in group] == units and all(groups)


def test_ten_thousand_small_files_are_few_tasks() -> None:
    units = [Unit(Source(f"{i}", f"{i}", f"{i}", 4_000, 0, "text")) for i in range(10_000)]
    assert len(group_units(units)) < 50


def test_a_part_of_a_big_file_has_its_own_size() -> None:
    jsonl, parquet = (Source("a", "a", "a", 300 << 20, 0, kind) for kind in ("jsonl", "parquet"))
    assert unit_bytes(Unit(jsonl, 64 << 20, 128 << 20)) == 64 << 20 and unit_bytes(Unit(jsonl, 256 << 20)) == 44 << 20
    assert unit_bytes(Unit(parquet, 3, 9)) == UNIT_BYTES and unit_bytes(Unit(parquet)) == 300 << 20


def test_related_documents_are_held_out_together() -> None:
    alone = entries(list("abcdefghij"))
    pairs = [((0, i), (0, i + 1)) for i in range(0, 10, 2)]
    for fraction in (0.1, 0.2, 0.3, 0.5):
        chosen = choose_heldout(alone, fraction, pairs)
        assert all((f"d{i}" in chosen) == (f"d{i + 1}" in chosen) for i in range(0, 10, 2)) and chosen
    with pytest.raises(DataError, match="a single piece"):
        choose_heldout(alone, 0.1, [((0, i), (0, i + 1)) for i in range(9)])


def test_a_sample_is_always_the_same_and_in_order() -> None:
    sources = [Source(f"{i}", f"{i}", f"{i}", 1, 0, "text") for i in range(50)]
    few = sample_sources(sources, 5)
    assert len(few) == 5 and few == sorted(few, key=sources.index) and sample_sources(sources[::-1], 5) == few[::-1]
    assert sample_sources(few, 9) == few
