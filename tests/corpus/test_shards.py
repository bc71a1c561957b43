import pytest
from hypothesis import given
from hypothesis import strategies as st

from raystyle.corpus.shards import Entry, choose_heldout, group_sources, pack_ranges, piece_name
from raystyle.corpus.sources import Source
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
    sources = [Source(f"{i}", f"{i}", f"{i}", size, 0, "text") for i, size in enumerate(sizes)]
    groups = group_sources(sources)
    assert [source for group in groups for source in group] == sources and all(groups)
