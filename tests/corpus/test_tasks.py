"""How jobs are put together for Ray Data; that they run so is shown in `tests/e2e/test_prepare.py`."""

from hypothesis import given
from hypothesis import strategies as st

from raystyle.corpus import tasks


@given(st.lists(st.integers(0, 50 << 20), max_size=200), st.integers(0, 100))
def test_blocks_hold_each_job_once_in_order_and_no_more_than_their_share(sizes, cores):
    found = tasks.blocks(sizes, cores)
    assert [index for block in found for index in block] == list(range(len(sizes)))
    left = sum(sizes)
    for block in found:
        assert len(block) <= tasks.MAX_BLOCK_JOBS
        size = sum(sizes[index] for index in block)
        assert len(block) == 1 or (cores and size <= min(tasks.MAX_BLOCK_BYTES, left / (2 * cores))) or not size
        left -= size


def test_blocks_get_smaller_towards_the_end():
    assert [len(block) for block in tasks.blocks([16 << 20] * 20, 2)] == [4, 4, 3, 2, 1, 1, 1, 1, 1, 1, 1]
    assert [len(block) for block in tasks.blocks([1 << 20] * 12, 2)] == [3, 2, 1, 1, 1, 1, 1, 1, 1]
    assert [len(block) for block in tasks.blocks([1] * 100, 2)][:3] == [tasks.MAX_BLOCK_JOBS] * 3
