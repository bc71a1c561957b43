"""metrics.jsonl with the numbers of evaluated checkpoints in their places."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raystyle import storage
from raystyle.errors import StorageError
from raystyle.training import metrics

OWN = [{"step": 0, "heldout_loss": 3.0}, {"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.5}, {"step": 3, "loss": 1.0}]


def test_numbers_stand_behind_the_lines_of_their_step():
    found = metrics.joined(OWN, [{"step": 2, "style_percentile": 71.0}, {"step": 3, "failed": "killed"}])
    assert found == [*OWN[:3], {"step": 2, "style_percentile": 71.0, "evaluated": True}, OWN[3]]


@given(st.sets(st.integers(0, 9)), st.integers(1, 9))
def test_joining_again_changes_nothing_and_loses_nothing(steps, last):
    own = [{"step": step, "loss": 1.0} for step in range(last)]
    evaluated = [{"step": step, "rate": 1.0} for step in sorted(steps)]
    once = metrics.joined(own, evaluated)
    assert metrics.joined(once, evaluated) == once
    assert [entry for entry in once if "loss" in entry] == own
    assert len(once) == len(own) + len(evaluated)
    assert [entry["step"] for entry in once] == sorted(entry["step"] for entry in once)


def test_what_is_no_finite_number_is_left_out_and_a_second_try_replaces_a_failure(tmp_path):
    run = str(tmp_path)
    metrics.write(run, OWN)
    metrics.write_failure(run, 2, "killed")
    metrics.join(run)
    assert metrics.read(run) == OWN
    numbers = {"step": 99, "rate": 1.5, "copied": 0, "none": None, "nan": float("nan"), "yes": True, "word": "x"}
    metrics.write_evaluation(run, 2, numbers, tensorboard=False)
    assert metrics.evaluations(run) == [{"step": 2, "rate": 1.5, "copied": 0}]
    metrics.join(run)
    assert [entry.get("rate") for entry in metrics.read(run)] == [None, None, None, 1.5, None]


def test_lines_that_cannot_be_read_now_are_not_lost(tmp_path, monkeypatch):
    run = str(tmp_path)
    metrics.write(run, OWN)
    metrics.write_evaluation(run, 2, {"rate": 1.5}, tensorboard=False)
    original = storage.read_bytes
    with monkeypatch.context() as patch:
        patch.setattr(storage, "read_bytes", lambda uri: fail() if uri.endswith("metrics.jsonl") else original(uri))
        with pytest.raises(StorageError):
            metrics.join(run)
    assert metrics.read(run) == OWN


def fail():
    raise StorageError("storage does not answer")


def test_records_read_before_are_not_read_again(tmp_path, monkeypatch):
    run = str(tmp_path)
    metrics.write_failure(run, 1, "killed")
    metrics.write_evaluation(run, 2, {"rate": 1.5}, tensorboard=False)
    known = metrics.records(run, {})
    metrics.write_evaluation(run, 1, {"rate": 10.25}, tensorboard=False)
    metrics.write_evaluation(run, 3, {"rate": 2.5}, tensorboard=False)
    reads = []
    original = storage.read_json
    monkeypatch.setattr(storage, "read_json", lambda uri: reads.append(storage.basename(uri)) or original(uri))
    found = metrics.records(run, known)
    assert reads == ["step-00000001.json", "step-00000003.json"]
    assert sorted(record["rate"] for record in found.values()) == [1.5, 2.5, 10.25]


@pytest.mark.parametrize("times", [1, 2])
def test_the_same_numbers_are_one_point_in_tensorboard(tmp_path, times):
    for _ in range(times):
        metrics.write_evaluation(str(tmp_path), 7, {"rate": 1.5}, tensorboard=True)
    files = list((tmp_path / "tensorboard" / "validation").iterdir())
    assert [file.name.split(".")[2] for file in files] == ["tfevents"]


def test_a_run_without_evaluations_has_none(tmp_path):
    assert metrics.evaluations(str(tmp_path)) == []
    assert metrics.read(str(tmp_path)) == []
    metrics.join(str(tmp_path))
    assert json.loads(json.dumps(list(tmp_path.iterdir()))) == []
