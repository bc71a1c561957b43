"""Where an evaluation may run beside training: never in a place that a worker needs."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raystyle.training import follow, validation

CORE, GPU = validation.needed(False), validation.needed(True)


@pytest.mark.parametrize(
    ("nodes", "worker", "num_workers", "need", "node"),
    [
        ({"a": {"CPU": 2}}, {"CPU": 1}, 1, CORE, "a"),
        ({"a": {"CPU": 2}}, {"CPU": 2}, 1, CORE, None),
        ({"a": {"CPU": 2}}, {"CPU": 1}, 2, CORE, None),
        # Three cores are free of work, but taking one of node a's would leave room for one worker only.
        ({"a": {"CPU": 2}, "b": {"CPU": 3}}, {"CPU": 2}, 2, CORE, "b"),
        ({"a": {"CPU": 2}, "b": {"CPU": 2}, "c": {}}, {"CPU": 2}, 2, CORE, None),
        ({"head": {"memory": 9.0}, "a": {"CPU": 8}}, {"CPU": 2}, 3, CORE, "a"),
        ({"a": {"CPU": 16, "GPU": 1}}, {"CPU": 16, "GPU": 1}, 1, GPU, None),
        ({"a": {"CPU": 16, "GPU": 2}}, {"CPU": 16, "GPU": 1}, 1, GPU, "a"),
        ({}, {"CPU": 1}, 1, CORE, None),
    ],
)
def test_room_beside_training(nodes, worker, num_workers, need, node):
    assert validation.room(nodes, worker, num_workers, need) == node


@given(st.lists(st.integers(0, 5), min_size=1, max_size=4), st.integers(1, 3), st.integers(1, 4))
def test_room_is_found_exactly_where_all_workers_still_fit(cpus, worker, num_workers):
    nodes = {str(number): {"CPU": float(count)} for number, count in enumerate(cpus)}
    good = {
        str(number)
        for number, count in enumerate(cpus)
        if count >= 1 and sum((c - (other == number)) // worker for other, c in enumerate(cpus)) >= num_workers
    }
    found = validation.room(nodes, {"CPU": worker}, num_workers, CORE)
    assert found in good if good else found is None


def test_the_outlook_says_where_checkpoints_are_evaluated():
    for node, use_gpu, cpus in product(["a", None], [True, False], [1, 4]):
        said = validation.outlook(node, use_gpu, cpus)
        assert ("beside training" in said) == (node is not None)
        assert ("GPU" in said) == use_gpu
        assert ("--cpus_per_worker 3" in said) == (node is None and not use_gpu and cpus == 4)


def test_an_outcome_is_one_line():
    numbers = {"step": 30, "style_percentile": 71.04, "a": 1, "b": 2, "c": 3, "d": 4, "e": 5}
    assert follow.outcome(numbers) == "step 30 evaluated: style_percentile 71.04, a 1, b 2, c 3, d 4 and 1 more"
    assert follow.outcome({"step": 3, "failed": "killed"}) == (
        "the evaluation of step 3 failed, training goes on: killed"
    )
