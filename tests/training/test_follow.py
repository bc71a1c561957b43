"""A run's progress for a person watching: storage that does not answer for a while costs no run, and what is new is told."""

import threading

import pytest

from raystyle import storage
from raystyle.errors import StorageError
from raystyle.training import follow, metrics


@pytest.mark.parametrize("when", ["while it runs", "at the end"])
def test_a_record_that_cannot_be_read_now_is_told_later_or_not_at_all(tmp_path, monkeypatch, when):
    run, said, tried, told = str(tmp_path), [], threading.Event(), threading.Event()
    original = storage.read_json

    def read_json(uri):
        if not tried.is_set() or when == "at the end":
            tried.set()
            raise StorageError(f"cannot read `{uri}`")
        return original(uri)

    monkeypatch.setattr(follow, "_say", lambda line: said.append(line) or told.set())
    monkeypatch.setattr(follow, "POLL_INTERVAL_S", 0.01 if when == "while it runs" else 60.0)
    with follow.followed(run, 10):
        metrics.write_failure(run, 5, "killed")
        monkeypatch.setattr(storage, "read_json", read_json)
        if when == "while it runs":
            assert told.wait(10)
    assert tried.is_set()
    line = "the evaluation of step 5 failed, training goes on: killed"
    assert said == ([line] if when == "while it runs" else [])


def test_a_run_that_continues_from_an_earlier_step_says_so(tmp_path, monkeypatch):
    """A run was killed steps after its last checkpoint: what it has measured when it continues is less than before."""
    run, said = str(tmp_path), []
    first = [{"step": step, "loss": 5.0} for step in range(1, 61)]
    lost = [{"step": step, "loss": 5.0} for step in range(61, 90)]
    again = [{"step": 60, "continued_from_step": 60}, {"step": 60, "isolation_logit_difference": 1e-6}]
    metrics.write(run, first + lost)
    monkeypatch.setattr(follow, "_say", said.append)
    monkeypatch.setattr(follow, "POLL_INTERVAL_S", 60.0)
    with follow.followed(run, 120):
        metrics.write(run, first + again)
    assert said[0] == "continued from the checkpoint of step 60"
    assert said[1].startswith("isolation of documents proved") and len(said) == 2
