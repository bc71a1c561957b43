"""Which checkpoint is a run's adapter: whatever moment it ends at, what says it is an adapter is one."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from raystyle import adapters, flags, storage
from raystyle.config import TrainConfig
from raystyle.errors import RunError, StorageError
from raystyle.training import checkpoints, fit, metrics

STEPS = 40


@pytest.fixture
def run(tmp_path):
    """A finished run of two checkpoints, whose adapter is the last one's, without the training."""
    for step in (20, STEPS):
        place = tmp_path / "checkpoints" / checkpoints.name_of(step)
        place.mkdir(parents=True)
        save_file(
            {"a.lora_A.weight": torch.ones(2), "a.lora_B.weight": torch.full((2,), step)}, place / adapters.WEIGHTS
        )
        (place / adapters.CONFIG).write_text(json.dumps({"peft_type": "LORA"}))
        about = {"step": step, "base_model": "m", "fingerprint": adapters.fingerprint(str(place))}
        (place / adapters.ABOUT).write_text(json.dumps(about))
        names = sorted(path.name for path in place.iterdir())
        digests = {name: storage.sha256([(place / name).read_bytes()]) for name in names}
        (place / checkpoints.MARKER).write_text(json.dumps({"step": step, "sha256": digests}))
    shutil.copytree(place, tmp_path / "adapter", ignore=shutil.ignore_patterns(checkpoints.MARKER))
    (tmp_path / "plan.json").write_text(json.dumps({"steps": STEPS}))
    return tmp_path


def about(run):
    return json.loads((run / "adapter" / adapters.ABOUT).read_text())


def test_an_earlier_step_and_the_last_again(run):
    assert fit.select(str(run), "step-00000020", {"reason": "it copies least"})
    assert about(run)["selected"] == {"step": 20, "of_steps": STEPS, "reason": "it copies least"}
    assert about(run)["fingerprint"] == adapters.fingerprint(str(run / "adapter"))
    assert fit.is_finished(str(run / "adapter"), STEPS) and not fit.is_finished(str(run / "adapter"), 20)
    assert not fit.select(str(run), "step-00000020", {"reason": "another reason"})
    assert about(run)["selected"]["reason"] == "another reason"
    assert fit.select(str(run), "step-00000040", {"reason": "the last"})
    assert about(run)["step"] == STEPS and fit.is_finished(str(run / "adapter"), STEPS)


def test_it_may_end_at_any_moment(run, monkeypatch):
    """At every moment, files that `raystyle_adapter.json` stands beside are those it speaks of."""
    whole = ("open_output", "delete")
    moments = 0
    while True:
        count = 0

        def counted(original, moment=moments):
            def call(*arguments):
                nonlocal count
                count += 1
                if count > moment:
                    raise KeyboardInterrupt
                return original(*arguments)

            return call

        with monkeypatch.context() as patch:
            for name in whole:
                patch.setattr(storage, name, counted(getattr(storage, name)))
            try:
                fit.select(str(run), "step-00000020", {"reason": "r"})
                break
            except KeyboardInterrupt:
                pass
        if (run / "adapter" / adapters.ABOUT).exists():
            assert about(run)["fingerprint"] == adapters.fingerprint(str(run / "adapter"))
        assert adapters.find(str(run))
        moments += 1
    assert moments == 4  # the marker's end, two files, the marker
    assert about(run)["selected"]["step"] == 20


def test_a_checkpoint_that_is_gone_or_damaged_changes_nothing(run):
    before = about(run)
    with pytest.raises(RunError, match=r"not there any more[^\n]*\nhint: `save_total_limit`"):
        fit.select(str(run), "step-00000030", {"reason": "r"})
    (run / "checkpoints" / "step-00000020" / adapters.WEIGHTS).write_bytes(b"\0" * 100)
    with pytest.raises(StorageError, match=r"adapter_model.safetensors. is damaged\nhint"):
        fit.select(str(run), "step-00000020", {"reason": "r"})
    assert about(run) == before


def test_the_last_checkpoint_is_the_newest_one_that_has_all_its_files(run):
    assert fit.last_checkpoint(str(run)) == "step-00000040"
    (run / "checkpoints" / "step-00000040" / adapters.WEIGHTS).unlink()
    assert fit.last_checkpoint(str(run)) == "step-00000020"
    (run / "checkpoints" / "step-00000020" / checkpoints.MARKER).unlink()
    assert fit.last_checkpoint(str(run)) is None
    assert fit.last_checkpoint(str(run / "elsewhere")) is None


def test_what_was_measured_afterwards_is_written_with_few_reads(run, monkeypatch):
    """Of storage that takes its time for each, and with hundreds of checkpoints."""
    reads = []
    original = storage.read_bytes
    monkeypatch.setattr(storage, "read_bytes", lambda uri: reads.append(uri) or original(uri))
    fit.record(str(run), {step: {"rate": step / 2} for step in range(50)}, tensorboard=False)
    assert len(reads) == 50
    assert [(entry["step"], entry["rate"]) for entry in metrics.read(str(run))] == [(s, s / 2) for s in range(50)]


def test_a_run_without_its_marker_is_not_finished(run):
    (run / "adapter" / adapters.ABOUT).unlink()
    assert not fit.is_finished(str(run / "adapter"), STEPS)


@pytest.mark.parametrize(
    ("trace", "reason"),
    [
        ("Traceback\n  File x\nraystyle.errors.StorageError: cannot read `s3://b/x`: denied\nhint: keys", "cannot read `s3://b/x`: denied"),
        ("Traceback\nValueError: no", "ValueError: no"),
    ],
)  # fmt: skip
def test_of_a_lost_worker_s_traceback_the_reason_is_told(trace, reason):
    config = flags.from_dict(TrainConfig, {"model_name_or_path": "m", "dataset_path": ["/d"], "output_dir": "/r"})
    error = SimpleNamespace(worker_failures={0: Exception(trace)})
    assert str(fit._explained(error, config)).splitlines()[0] == f"training failed: {reason}"
