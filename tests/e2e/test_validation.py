"""Evaluation beside training on a real Ray: whatever becomes of it, training does what it would have done alone."""

import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from raystyle import adapters, flags, pipeline, storage
from raystyle.config import TrainConfig
from raystyle.errors import RunError
from raystyle.training import fit, loop, validation

pytestmark = pytest.mark.e2e

STEPS, EVERY = 80, 10


def config(model: Path, prepared: Path, output: object, **values: object) -> TrainConfig:
    settings = {
        "model_name_or_path": str(model), "dataset_path": [str(prepared)], "output_dir": str(output), "lora_r": 4,
        "lora_alpha": 8, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "learning_rate": 3e-3,
        "max_steps": STEPS, "save_steps": EVERY, "sample_max_new_tokens": 4, "gradient_checkpointing": False,
        "cpus_per_worker": 1, "eval_timeout_s": 15.0,
    }  # fmt: skip
    return flags.from_dict(TrainConfig, settings | values)


def train(config: TrainConfig, validate=None) -> fit.TrainResult:
    checked = pipeline.preflight(config)

    def begin():
        assert storage.exists(storage.join(config.output_dir, "plan.json"))  # it may write there: it is a run's already
        return validate

    return fit.fit(config, checked.plan, checked.prepared_dir, checked.manifest, checked.layer_counts, begin)


def adapter(output: object) -> dict[str, torch.Tensor]:
    with storage.local_copy(storage.join(str(output), "adapter")) as directory:
        return load_file(os.path.join(directory, adapters.WEIGHTS))


def is_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def misbehaves():
    """An evaluation that raises, then is killed, then hangs, then works; whole, for Ray carries it to its process."""

    def validate(uri: str) -> dict[str, float]:
        import os
        import signal
        import time

        step = int(uri[-8:])
        if step == 10:
            raise ValueError("this measure cannot be taken\nat all")
        if step == 20:
            os.kill(os.getpid(), signal.SIGKILL)
        if step == 30:
            time.sleep(600)
        threads = int(os.environ["OMP_NUM_THREADS"])
        return {"style_percentile": 70.0 + step, "marker_rate": 1.5, "obedience": None, "threads": threads}

    return validate


def hangs(began: Path):
    """An evaluation that says that it has begun, and never ends."""

    def validate(uri: str) -> dict[str, float]:
        import time

        began.touch()
        time.sleep(600)

    return validate


@pytest.fixture(scope="module")
def alone(ray_local, tiny_model, tiny_prepared, tmp_path_factory):
    """A run without evaluation, and without Ray, whose start costs a minute: the numbers are the same."""
    place = tmp_path_factory.mktemp("runs")
    settings = flags.to_dict(config(tiny_model, tiny_prepared, place / "alone"))
    (place / "alone.json").write_text(json.dumps(settings))
    AcceleratorState._reset_state()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert loop.main(["--config", str(place / "alone.json")]) == 0
    finally:
        torch.set_num_threads(threads)
    return place / "alone"


def training_worker() -> int:
    """The process id of this test's own training worker, by Ray's process title."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()]
    parents = {int(pid): int(parent) for pid, parent, _ in rows}

    def is_ours(pid: int) -> bool:
        while pid in parents and pid != os.getpid():
            pid = parents[pid]
        return pid == os.getpid()

    [found] = [int(pid) for pid, _, title in rows if title.startswith("ray::RayTrainWorker") and is_ours(int(pid))]
    return found


def hold(output: Path, step: int, until: Path, then: signal.Signals, timeout_s: float = 400) -> None:
    """Hold the training worker after a step until a file is there, for so few steps would outrun an evaluation; then
    kill it, so that training starts again from there, or let it go on.

    It breathes until Ray Train has heard of the checkpoint.
    """
    deadline = time.monotonic() + timeout_s
    checkpoints, name = output / "checkpoints", f"step-{step:08d}"
    known = checkpoints / "checkpoint_manager_snapshot.json"
    while not (checkpoints / name / "checkpoint.json").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    worker = training_worker()
    try:
        while not until.exists() and time.monotonic() < deadline:
            if not known.exists() or name not in known.read_text():
                os.kill(worker, signal.SIGCONT)
                time.sleep(0.03)
            os.kill(worker, signal.SIGSTOP)
            time.sleep(0.3)
    finally:
        os.kill(worker, then)


@pytest.fixture(scope="module")
def evaluated(alone, tiny_model, tiny_prepared, tmp_path_factory):
    """The same run with evaluations that go wrong in every way, and what was said while it ran."""
    output = tmp_path_factory.mktemp("runs") / "evaluated"
    said = []
    with pytest.MonkeyPatch.context() as patch:
        from raystyle.training import follow

        patch.setattr(follow, "_say", said.append)
        record = output / "validation" / "step-00000040.json"
        thread = threading.Thread(target=hold, args=(output, 40, record, signal.SIGKILL))
        thread.start()
        result = train(config(tiny_model, tiny_prepared, output), misbehaves())
        thread.join()
    return output, result, said


def test_training_ends_as_it_would_have_alone(evaluated, alone):
    """Also where its own worker was killed meanwhile."""
    output, result, _ = evaluated
    assert is_equal(adapter(output), adapter(alone))
    assert [entry["step"] for entry in result.metrics if "loss" in entry] == list(range(1, STEPS + 1))
    [continued] = [entry["continued_from_step"] for entry in result.metrics if "continued_from_step" in entry]
    assert continued in (40, 50)  # it breathes until Ray Train has heard of step 40: it may get as far as the next one


def test_every_failure_is_told_by_its_reason(evaluated):
    output, _, said = evaluated
    records = {p.stem: json.loads(p.read_text()) for p in (output / "validation").glob("step-*.json")}
    reasons = {name: record.get("failed") for name, record in records.items()}
    assert reasons["step-00000010"] == "ValueError: this measure cannot be taken"
    assert reasons["step-00000020"] == "its process was killed"
    assert reasons["step-00000030"] == "no answer within 15 s (`eval_timeout_s`)"
    assert reasons["step-00000040"] is None
    for name in ("step-00000010", "step-00000020", "step-00000030"):
        assert f"the evaluation of step {int(name[5:])} failed, training goes on: {reasons[name]}" in said
    assert any(line.startswith("step 40 evaluated: style_percentile 110, marker_rate 1.5") for line in said)


def test_the_numbers_stand_under_their_step_and_in_tensorboard(evaluated):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    output, result, _ = evaluated
    [entry] = [entry for entry in result.metrics if entry.get("evaluated") and entry["step"] == 40]
    assert entry == {"step": 40, "style_percentile": 110.0, "marker_rate": 1.5, "threads": 1, "evaluated": True}
    place = result.metrics.index(entry)
    assert result.metrics[place - 1]["step"] == 40 and result.metrics[place + 1]["step"] == 41
    events = EventAccumulator(str(output / "tensorboard" / "validation")).Reload()
    assert (40, 110.0) in [(e.step, float(make_ndarray(e.tensor_proto))) for e in events.Tensors("style_percentile")]


def test_what_had_not_begun_when_training_ended_is_left_to_others(evaluated):
    output, _, _ = evaluated
    assert not (output / "validation" / f"step-{STEPS:08d}.json").exists()
    assert not (output / "validation" / ".stopped").exists()
    fit.record(str(output), {STEPS: {"style_percentile": 99.0, "seconds": float("nan")}}, tensorboard=True)
    fit.record(str(output), {STEPS: {"style_percentile": 99.5}}, tensorboard=False)
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1] == {"step": STEPS, "style_percentile": 99.5, "evaluated": True}
    assert lines[-2]["step"] == STEPS and "loss" in lines[-3] | lines[-2]


@pytest.mark.slow
def test_a_run_continues_with_what_was_evaluated_and_does_not_wait_for_an_evaluation_that_hangs(
    evaluated, alone, tiny_model, tiny_prepared, tmp_path, monkeypatch
):
    """The numbers of the first part stay, once; Ray Train's own list of checkpoints is no obstacle.

    The evaluation of step 50 hangs when training ends, and would for minutes: it is ended, and no failure.
    """
    import shutil

    output, _, _ = evaluated
    shutil.rmtree(output / "adapter")
    for step in range(50, STEPS + 1, EVERY):
        shutil.rmtree(output / "checkpoints" / f"step-{step:08d}")
    hanging, began = output / "validation" / "step-00000050.json", tmp_path / "began"
    hanging.unlink(missing_ok=True)
    monkeypatch.setattr(validation, "GRACE_S", 2.0)
    thread = threading.Thread(target=hold, args=(output, 50, began, signal.SIGCONT))
    thread.start()
    settings = config(tiny_model, tiny_prepared, output, save_total_limit=2, eval_timeout_s=300.0)
    result = train(settings, hangs(began))
    assert time.time() - began.stat().st_mtime < 250
    thread.join()
    assert not hanging.exists()
    assert [entry["step"] for entry in result.metrics if entry.get("evaluated")].count(40) == 1
    assert is_equal(adapter(output), adapter(alone))
    assert sorted(p.name for p in (output / "checkpoints").glob("step-*")) == ["step-00000070", "step-00000080"]


@pytest.mark.slow
def test_any_checkpoint_becomes_the_adapter_and_the_last_one_again(alone, bucket, tiny_model, tiny_prepared, capfd):
    output = f"{bucket}/r"
    storage.upload(str(alone), output)
    settings = config(tiny_model, tiny_prepared, output)
    steps = pipeline.preflight(settings).plan.steps
    adapter_dir = storage.join(output, "adapter")

    assert fit.select(output, "step-00000030", {"reason": "it copies least"})
    about = storage.read_json(storage.join(adapter_dir, adapters.ABOUT))
    assert about["step"] == 30
    assert about["selected"] == {"step": 30, "of_steps": STEPS, "reason": "it copies least"}
    with adapters.opened(output) as directory:
        assert adapters.fingerprint(directory) == about["fingerprint"]
    assert not is_equal(adapter(output), adapter(alone))
    assert fit.is_finished(adapter_dir, steps) and train(settings).unchanged
    assert not fit.select(output, "step-00000030", {"reason": "it copies least"})

    # Killed halfway: the old weights or the new ones lie there, and nothing says that they are an adapter.
    storage.delete(storage.join(adapter_dir, adapters.ABOUT))
    assert not fit.is_finished(adapter_dir, steps)
    # The run's last checkpoint mends it; with all cores its worker's, nothing is evaluated meanwhile, and that is said.
    again = train(config(tiny_model, tiny_prepared, output, cpus_per_worker=2), misbehaves())
    assert not again.unchanged and not any(entry.get("evaluated") for entry in again.metrics)
    assert "checkpoints are evaluated when training ends: its workers leave no CPU core free" in capfd.readouterr().err
    assert not storage.exists(storage.join(output, "validation"))
    assert is_equal(adapter(output), adapter(alone))

    assert fit.select(output, "step-00000040", {"reason": "better"})
    assert fit.select(output, f"step-{STEPS:08d}", {"reason": "the last"})
    assert is_equal(adapter(output), adapter(alone))
    with pytest.raises(RunError, match=r"step-00000035. is not there any more[^\n]*\nhint: .*save_total_limit"):
        fit.select(output, "step-00000035", {"reason": "gone"})
    assert fit.is_finished(adapter_dir, steps)
