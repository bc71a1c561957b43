"""Training on a real Ray: exact under other workers, after a killed worker, and after a killed job."""

import contextlib
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import builders
import psutil
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from raystyle import flags, pipeline
from raystyle.config import TrainConfig
from raystyle.errors import ConfigError, RunError, StorageError, TrainingError
from raystyle.training import checkpoints, loop, metrics, preflight

pytestmark = pytest.mark.e2e

STEPS, EVERY = 60, 15
OUTAGE_S = 35.0  # longer than a request waits


def words(model: Path, prepared: Path, output: Path, **values) -> list[str]:
    settings = {
        "model_name_or_path": model,
        "dataset_path": prepared,
        "output_dir": output,
        "lora_r": 4,
        "lora_alpha": 8,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 4,
        "learning_rate": 3e-3,
        "max_steps": STEPS,
        "save_steps": EVERY,
        "sample_max_new_tokens": 4,
        "gradient_checkpointing": False,
        "cpus_per_worker": 1,
        "eval_style": "off",
    } | values
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def run(model, prepared, output, **values):
    return pipeline.train(flags.parse(TrainConfig, words(model, prepared, output, **values)), lambda _: None)


def run_alone(model, prepared, output, **values) -> tuple[list[float], list[dict[str, Any]]]:
    """One worker without Ray, in this process, whose numbers are the same (a test below) and whose start costs seconds:
    its losses, and all that it recorded."""
    AcceleratorState._reset_state()
    assert loop.main(words(model, prepared, output, **values)) == 0
    told = metrics.read(str(output))
    return [entry["loss"] for entry in told if "loss" in entry], told


def adapter(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "adapter" / "adapter_model.safetensors")


def losses(result) -> list[float]:
    return [entry["loss"] for entry in result.metrics if "loss" in entry]


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.fixture(scope="module")
def undisturbed(ray_local, tiny_model, tiny_prepared, tmp_path_factory):
    """One run that nothing happens to, and its directory."""
    output = tmp_path_factory.mktemp("runs") / "undisturbed"
    return run(tiny_model, tiny_prepared, output), output


def wait_for_checkpoint(output: Path, step: int, timeout_s: float = 300) -> None:
    """Until there is a whole checkpoint of that step: its training goes on meanwhile."""
    place, deadline = str(output / "checkpoints" / checkpoints.name_of(step)), time.monotonic() + timeout_s
    while not checkpoints.is_good(place):
        assert time.monotonic() < deadline, f"step {step} did not come in {timeout_s} s"
        time.sleep(0.05)


def train_workers(of: int | None = None) -> list[psutil.Process]:
    """The training workers below a process, by default this one."""
    below = psutil.Process(of).children(recursive=True)
    return [process for process in below if process.name().startswith("ray::RayTrain")]


@contextlib.contextmanager
def dumb_for(server: str, seconds: float, once: Callable[[], Any]) -> Iterator[None]:
    """While the block runs, and once something is so, a server takes connections and answers nothing for some time."""
    port = server.rpartition(":")[2]
    [process] = [child for child in psutil.Process().children() if port in child.cmdline()[-1]]
    stopped = threading.Event()

    def stop_it() -> None:
        while not once():
            time.sleep(0.2)
        process.send_signal(signal.SIGSTOP)
        stopped.set()
        time.sleep(seconds)
        process.send_signal(signal.SIGCONT)

    thread = threading.Thread(target=stop_it)
    thread.start()
    yield
    thread.join()
    assert stopped.is_set()


# Several runs in the same two workers, for most of a short run is imports. Arguments: a JSON list of [folder, flags, begins];
# `begins` is null, or the folder of another run and the step after which this one goes on with it.
TOGETHER = """
import json, os, shutil, sys
from pathlib import Path
import torch
from accelerate.state import AcceleratorState
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from raystyle.training import checkpoints, loop, trainer

original = trainer.PackedTrainer.loss_sum

def poisoned(self, model, inputs):
    loss = original(self, model, inputs)
    if self.state.global_step == 1:
        loss.register_hook(lambda gradient: gradient * float("nan"))
    return loss

for name, words, begins in json.loads(sys.argv[1]):
    if begins and os.environ["RANK"] == "0":
        other, step = begins
        shutil.copytree(other, name)
        shutil.rmtree(f"{name}/adapter")
        for later in Path(name, "checkpoints").iterdir():
            if later.name > checkpoints.name_of(step):
                shutil.rmtree(later)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)
    AcceleratorState._reset_state()
    unset_hf_deepspeed_config()
    if name == "apart" and os.environ["RANK"] == "1":
        words[words.index("--learning_rate") + 1] = "0.5"
    trainer.PackedTrainer.loss_sum = poisoned if name.startswith("poisoned") else original
    code = loop.main([*words, "--output_dir", str(Path(name).absolute())])
    if bool(code) != name.startswith(("poisoned", "apart")):
        sys.exit(f"{name} ended with {code}")
if torch.distributed.is_initialized():
    torch.distributed.destroy_process_group()
"""
WAYS = ["zero1", "zero2", "zero3", "zero2_offload", "zero3_offload"]
# As Hugging Face's guide has it: what is `auto` comes from the run's own flags.
AUTO = {
    "zero_optimization": {
        "stage": 2, "overlap_comm": True, "contiguous_gradients": True, "allgather_bucket_size": 2e8,
        "reduce_bucket_size": "auto", "reduce_scatter": True,
    },
    "fp16": {"enabled": "auto", "loss_scale": 0},
    "bf16": {"enabled": "auto"},
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "steps_per_print": 2000,
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "wall_clock_breakdown": False,
}  # fmt: skip
SHORT = {"max_steps": 6, "save_steps": 3, "lora_r": 3, "lora_alpha": 6}  # ZeRO-3's shards are uneven here
STAGE = {"max_steps": 8, "save_steps": 4, "loraplus_lr_ratio": 4}
EXPERTS = {
    "lora_target_modules": "all-linear", "lora_target_parameters": "experts", "lora_dropout": 0, "max_steps": 20,
    "save_steps": 10, "gradient_checkpointing": True, "learning_rate": 1e-2,
}  # fmt: skip


@pytest.fixture(scope="module")
def together(undisturbed, tiny_model, tiny_prepared, tmp_path_factory):
    """The folder of all runs that torchrun makes with two workers."""
    place, (_, first) = tmp_path_factory.mktemp("together"), undisturbed
    mixtral = builders.write_model(place / "mixtral-base", family="mixtral")

    def a_run(name: str, begins: tuple[str, int] | None = None, model: Path = tiny_model, **values):
        given = words(model, tiny_prepared, place, **values)
        at = given.index("--output_dir")
        return [name, given[:at] + given[at + 2 :], begins]

    stage = STAGE | {"lora_path": first}
    (place / "auto.json").write_text(json.dumps(AUTO))
    runs = [
        a_run("anew"),
        a_run("torchrun after Ray", (str(first), STEPS - EVERY)),
        a_run("ddp", **SHORT),
        *(
            a_run(f"by {way}", deepspeed=way, **SHORT) for way in WAYS
        ),  # a folder `zero1` would be taken for a file of settings
        a_run("by a file", deepspeed=place / "auto.json", **SHORT),
        a_run("zero3 after ddp", ("ddp", 3), deepspeed="zero3", **SHORT),
        a_run("ddp after zero3", ("by zero3", 3), **SHORT),
        a_run("zero1 after itself", ("by zero1", 3), deepspeed="zero1", **SHORT),
        a_run("zero3_offload after zero2_offload", ("by zero2_offload", 3), deepspeed="zero3_offload", **SHORT),
        a_run("16 bits", deepspeed="zero2", bf16=True, **SHORT),
        a_run("16 bits after itself", ("16 bits", 3), deepspeed="zero2", bf16=True, **SHORT),
        a_run("stage", **stage),
        a_run("stage by zero2", ("stage", 4), deepspeed="zero2", **stage),
        a_run("mixtral", model=mixtral, **EXPERTS),
        a_run("apart", **SHORT),
        a_run("poisoned, zero2", deepspeed="zero2", bf16=True, **SHORT),
        a_run("poisoned, zero3", deepspeed="zero3", **SHORT),
    ]
    alone = [
        a_run("one by zero3 after two", ("by zero3", 3), deepspeed="zero3", **SHORT),
        a_run("one by zero2 after two by zero3", ("by zero3", 3), deepspeed="zero2", **SHORT),
    ]
    (place / "together.py").write_text(TOGETHER)
    for count, given in ((2, runs), (1, alone)):
        launcher = [Path(sys.executable).parent / "torchrun", "--standalone", "--nproc_per_node", str(count)]
        command = [*launcher, "together.py", json.dumps(given)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=place)
        assert done.returncode == 0, done.stderr
        (place / f"said by {count}.txt").write_text(done.stderr)
    return place


def told_losses(output: Path) -> list[float]:
    return [entry["loss"] for entry in metrics.read(str(output)) if "loss" in entry]


def continued_from(output: Path) -> list[int]:
    told = metrics.read(str(output))
    return [entry["continued_from_step"] for entry in told if "continued_from_step" in entry]


def test_a_run_leaves_everything_it_promises(undisturbed, tiny_model):
    result, output = undisturbed
    assert sorted(p.name for p in output.iterdir()) == [
        "adapter", "checkpoints", "config.json", "loss.png", "metrics.jsonl", "plan.json", "report.html", "samples",
        "tensorboard",
    ]  # fmt: skip
    assert sorted(p.name for p in (output / "samples").iterdir()) == [f"step-{s:08d}.json" for s in (15, 30, 45, 60)]
    found = losses(result)
    assert len(found) == STEPS
    assert sum(found[-10:]) < sum(found[:10])
    assert [entry["step"] for entry in result.metrics if "heldout_loss" in entry] == [0, 15, 30, 45, 60]
    assert any(entry.get("isolation_logit_difference", 1) < 1e-4 for entry in result.metrics)
    for place in ("adapter", "checkpoints"):
        assert {p.suffix for p in (output / place).rglob("*") if p.is_file() and p.name[0] != "."} == {
            ".json",
            ".safetensors",
        }
    resolved = flags.parse(TrainConfig, ["--config", str(output / "config.json")])
    assert flags.to_dict(resolved) == json.loads((output / "config.json").read_text())
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(output / "tensorboard")).Reload()
    assert {"train/loss", "train/heldout_loss"} <= set(events.Tags()["scalars"])
    page = (output / "report.html").read_text()
    assert "held out" in page and "今日天气阴沉，" in page


def test_an_identical_command_does_nothing_more(undisturbed, tiny_model, tiny_prepared):
    _, output = undisturbed
    before = (output / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns
    again = run(tiny_model, tiny_prepared, output)
    assert again.unchanged
    assert (output / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns == before


def test_a_run_that_goes_on_elsewhere_is_left_alone(ray_local, tiny_model, tiny_prepared, tmp_path):
    """Under Ray and without: a second command would delete what the first one uploads."""
    given = words(tiny_model, tiny_prepared, tmp_path / "r")
    with preflight.held(str(tmp_path / "r")):
        with pytest.raises(StorageError, match="another process is writing below"):
            pipeline.train(flags.parse(TrainConfig, given), lambda _: None)
        AcceleratorState._reset_state()
        assert loop.main(given) == 2
    assert not (tmp_path / "r" / ".lock").exists() and not (tmp_path / "r" / "adapter").exists()


def test_another_run_s_directory_is_refused_naming_what_differs(undisturbed, tiny_model, tiny_prepared):
    _, output = undisturbed
    with pytest.raises(RunError, match=r"`learning_rate` was 0\.003, now 0\.01"):
        run(tiny_model, tiny_prepared, output, learning_rate=0.01)
    with pytest.raises(RunError, match="`global_batch_size` was 4, now 8"):
        run(tiny_model, tiny_prepared, output, gradient_accumulation_steps=8)


def test_accumulation_in_one_pass_gives_the_same_losses(tiny_model, tiny_prepared, tmp_path):
    """4 rows at once = 4 passes of one row, though their token counts differ: the loss is a mean over all tokens."""
    values = {"lora_dropout": 0.0, "max_steps": 6}
    ones, _ = run_alone(tiny_model, tiny_prepared, tmp_path / "a", **values)
    at_once = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
    four, _ = run_alone(tiny_model, tiny_prepared, tmp_path / "b", **at_once, **values)
    assert len(ones) == 6 and four == pytest.approx(ones, abs=1e-5)


def test_without_ray_the_numbers_are_the_same(undisturbed, tiny_model, tiny_prepared, tmp_path):
    """The worker loop by itself, to the last bit."""
    reference, reference_output = undisturbed
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found, _ = run_alone(tiny_model, tiny_prepared, tmp_path / "r")
    finally:
        torch.set_num_threads(threads)
    assert found == losses(reference)
    assert distance(adapter(tmp_path / "r"), adapter(reference_output)) == 0
    assert (tmp_path / "r" / "report.html").exists()
    assert run(tiny_model, tiny_prepared, tmp_path / "r").unchanged


@pytest.mark.parametrize("name", ["anew", "torchrun after Ray"])
def test_two_workers_train_the_same_adapter(undisturbed, together, name):
    """1 x 4 accumulation = 2 workers x 2: same losses and, dropout being seeded by place, the same weights."""
    reference, reference_output = undisturbed
    assert continued_from(together / name) == ([] if name == "anew" else [STEPS - EVERY])
    assert told_losses(together / name) == pytest.approx(losses(reference), abs=1e-5)
    assert distance(adapter(together / name), adapter(reference_output)) < 1e-5


def test_a_run_continues_with_other_workers_under_deepspeed(undisturbed, tiny_model, tiny_prepared, tmp_path):
    """DDP's checkpoint, continued by ZeRO-2, ends where DDP alone does. The range takes the two of four workers that there is
    room for, and keeps the global batch."""
    reference, reference_output = undisturbed
    output = tmp_path / "r"
    shutil.copytree(reference_output, output)
    shutil.rmtree(output / "adapter")
    for step in (45, 60):
        shutil.rmtree(output / "checkpoints" / checkpoints.name_of(step))
    result = run(
        tiny_model, tiny_prepared, output, num_workers="1..4", gradient_accumulation_steps=1, deepspeed="zero2"
    )
    assert continued_from(output) == [30]
    assert result.values("num_workers") == [1, 2] and result.values("transport") == ["gloo"]
    assert losses(result) == pytest.approx(losses(reference), abs=1e-5)
    assert distance(adapter(output), adapter(reference_output)) < 1e-5


CHANGES = [
    "zero3 after ddp", "ddp after zero3", "zero1 after itself", "zero3_offload after zero2_offload",
    "one by zero3 after two", "one by zero2 after two by zero3",
]  # fmt: skip


@pytest.mark.parametrize("name", [*(f"by {way}" for way in WAYS), "by a file", *CHANGES])
def test_every_way_to_share_the_work_gives_the_same_and_continues_the_others(together, name):
    """DDP and ZeRO-1, 2 and 3, with and without offloading, by presets and by a file of `auto` values, on two workers; and one
    after two."""
    expected = told_losses(together / "ddp")
    assert len(expected) == 6
    assert told_losses(together / name) == pytest.approx(expected, abs=1e-5)
    assert continued_from(together / name) == ([3] if " after " in name else [])
    assert distance(adapter(together / name), adapter(together / "ddp")) < 1e-5


def test_in_16_bits_zero_goes_on_with_the_weights_in_full_precision(together):
    """What DeepSpeed updates beside the model's 16 bits: from those alone the first step would go elsewhere."""
    whole, parts = together / "16 bits", together / "16 bits after itself"
    assert continued_from(parts) == [3]
    assert told_losses(parts) == told_losses(whole)
    assert distance(adapter(parts), adapter(whole)) == 0


def test_workers_that_were_told_different_things_are_refused(together):
    said = (together / "said by 2.txt").read_text()
    assert "the workers differ: `learning_rate` is 0.003 for worker 0 and 0.5 for worker 1" in said
    assert not (together / "apart" / "adapter").exists()


def test_a_second_stage_begins_as_the_adapter_it_continues_from(
    undisturbed, together, tiny_model, tiny_prepared, tmp_path
):
    """With LoRA+, whose groups of parameters must come back from a checkpoint: alone, by DDP, and by ZeRO-2 after DDP."""
    first, first_output = undisturbed
    output = tmp_path / "r"
    stage = STAGE | {"lora_path": first_output}
    _, told = run_alone(tiny_model, tiny_prepared, output, **stage)
    heldout = [entry["heldout_loss"] for entry in told if "heldout_loss" in entry]
    assert heldout[0] == pytest.approx(first.values("heldout_loss")[-1], abs=1e-6)
    about = json.loads((output / "adapter" / "raystyle_adapter.json").read_text())
    assert (
        about["continues"]
        == json.loads((first_output / "adapter" / "raystyle_adapter.json").read_text())["fingerprint"]
    )
    assert distance(adapter(output), adapter(first_output)) > 1e-3
    assert continued_from(together / "stage by zero2") == [4]
    for name in ("stage", "stage by zero2"):
        assert distance(adapter(together / name), adapter(output)) < 1e-5
    shutil.rmtree(output / "adapter")
    with pytest.raises(RunError, match="`lora_path` was "):
        run(tiny_model, tiny_prepared, output, **stage | {"lora_path": first_output / "checkpoints" / "step-00000030"})
    with pytest.raises(ConfigError, match="`lora_r` is 8, and the adapter"):
        run(tiny_model, tiny_prepared, tmp_path / "other", **stage | {"lora_r": 8})


def test_a_mixture_of_experts_trains_continues_and_is_merged(together, tiny_prepared, tmp_path):
    """LoRA on attention and on the fused experts, with gradient checkpointing; one worker after a checkpoint of two."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from raystyle import models
    from raystyle.config import ExportConfig

    model, output = together / "mixtral-base", tmp_path / "r"
    shutil.copytree(together / "mixtral", output)
    found, whole = told_losses(output), adapter(output)
    assert sum(found[-5:]) < sum(found[:5]) - 0.1
    told = metrics.read(str(output))
    assert any(entry.get("isolation_logit_difference", 1) < 1e-4 for entry in told)
    assert any(".experts.base_layer.lora_B" in name and tensor.any() for name, tensor in whole.items())
    shutil.rmtree(output / "adapter")
    shutil.rmtree(output / "checkpoints" / "step-00000020")
    run_alone(model, tiny_prepared, output, **EXPERTS)
    assert continued_from(output) == [10]
    assert distance(adapter(output), whole) < 1e-4
    export = {"model_name_or_path": str(model), "lora_path": str(output), "output_dir": str(tmp_path / "merged")}
    merged = AutoModelForCausalLM.from_pretrained(pipeline.export(flags.from_dict(ExportConfig, export)))
    ids = AutoTokenizer.from_pretrained(tmp_path / "merged")("今日天气", return_tensors="pt").input_ids
    tuned = models.load_adapter(models.load_base(str(model), dtype=torch.float32), str(output / "adapter"))
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, tuned(ids).logits, atol=1e-5, rtol=1e-4)


def test_a_killed_worker_changes_nothing(undisturbed, tiny_model, tiny_prepared, tmp_path):
    reference, reference_output = undisturbed
    output = tmp_path / "r"
    killed = []

    def kill():
        wait_for_checkpoint(output, EVERY)
        killed.extend(train_workers()[:1])
        killed[0].kill()

    thread = threading.Thread(target=kill)
    thread.start()
    result = run(tiny_model, tiny_prepared, output)
    thread.join()
    assert killed
    assert any(entry.get("continued_from_step", 0) >= EVERY for entry in result.metrics)
    assert losses(result)[-1] == pytest.approx(losses(reference)[-1], abs=1e-5)
    assert distance(adapter(output), adapter(reference_output)) == 0


# Checkpoints take their time on the way to storage.
SLOW_UPLOADS = """
import time

upload = module.upload
module.upload = lambda *places: (time.sleep(6), upload(*places))
"""


@pytest.mark.slow
def test_steps_go_on_while_a_checkpoint_is_uploaded(undisturbed, tiny_model, tiny_prepared, tmp_path):
    """The last checkpoint is waited for, and one that comes while another is on its way."""
    _, reference_output = undisturbed
    site = builders.write_site(tmp_path / "site", "raystyle.training.checkpoints", SLOW_UPLOADS)
    command = [sys.executable, "-m", "raystyle", "train", *words(tiny_model, tiny_prepared, tmp_path / "r")]
    path = os.pathsep.join([str(site), str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {"PYTHONPATH": path}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = metrics.read(str(tmp_path / "r"))
    speeds = {entry["step"]: entry["tokens_per_second"] for entry in told if "loss" in entry}
    usual = statistics.median(speeds.values())
    assert speeds[EVERY + 1] > usual / 4, "a step of some milliseconds that waits for seconds"
    assert speeds[2 * EVERY + 1] < usual / 4, "the second one waited for the first"
    assert distance(adapter(tmp_path / "r"), adapter(reference_output)) == 0
    assert [p.name for p in sorted((tmp_path / "r/checkpoints").glob("step-*"))] == [
        checkpoints.name_of(step) for step in range(EVERY, STEPS + 1, EVERY)
    ]


@pytest.mark.slow
def test_a_killed_job_continues_by_the_same_command_past_a_torn_checkpoint(
    undisturbed, tiny_model, tiny_prepared, tmp_path
):
    reference, reference_output = undisturbed
    output = tmp_path / "r"
    command = [sys.executable, "-m", "raystyle", "train", *words(tiny_model, tiny_prepared, output)]
    job = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for_checkpoint(output, EVERY)
    workers = train_workers(job.pid)
    job.kill()
    job.wait()
    assert workers and not psutil.wait_procs(workers, timeout=120)[1]
    assert not (output / "adapter").exists()
    newest, _ = checkpoints.last_good(str(output / "checkpoints"))
    torn = output / "checkpoints" / checkpoints.name_of(STEPS - 5)
    shutil.copytree(newest, torn)
    (torn / "optimizer.safetensors").write_bytes((torn / "optimizer.safetensors").read_bytes()[:100])
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"continued from the checkpoint of step {int(newest[-8:])}" in done.stderr
    assert f"warning: not complete, or damaged, and deleted: {torn.name}" in done.stderr
    assert not torn.exists()
    metrics = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    steps = [entry["step"] for entry in metrics if "loss" in entry]
    assert steps == list(range(1, STEPS + 1))
    last = [entry["loss"] for entry in metrics if "loss" in entry][-1]
    assert last == pytest.approx(losses(reference)[-1], abs=1e-5)
    assert distance(adapter(output), adapter(reference_output)) == 0


def test_ctrl_c_leaves_a_run_that_says_how_to_go_on(tiny_model, tiny_prepared, tmp_path):
    command = [
        sys.executable,
        "-m",
        "raystyle",
        "train",
        *words(tiny_model, tiny_prepared, tmp_path / "r", max_steps=5000),
    ]
    job = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_for_checkpoint(tmp_path / "r", EVERY)
    job.send_signal(signal.SIGINT)
    _, said = job.communicate(timeout=300)
    assert job.returncode == 130
    assert "the same command continues" in said
    assert "Traceback" not in said
    assert not (tmp_path / "r" / "adapter").exists()


def test_a_worker_s_own_error_ends_the_run_with_its_reason(ray_local, tiny_model, tiny_prepared, tmp_path):
    with pytest.raises(ConfigError, match=r"transformers refuses these training arguments.*no-such-backend"):
        run(tiny_model, tiny_prepared, tmp_path / "r", ddp_backend="no-such-backend")
    assert sorted(p.name for p in (tmp_path / "r").iterdir()) == ["checkpoints", "config.json", "plan.json"]


def test_a_loss_that_is_not_finite_stops_the_run(tiny_model, tiny_prepared, tmp_path, capsys):
    AcceleratorState._reset_state()
    flags_ = words(tiny_model, tiny_prepared, tmp_path / "r", learning_rate=1e30, max_grad_norm=0)
    assert loop.main(flags_) == TrainingError.exit_code
    assert re.search(r"the loss of step \d+ is nan", capsys.readouterr().err)
    assert not (tmp_path / "r" / "adapter").exists()


@pytest.mark.parametrize("way", ["zero2", "zero3"])
def test_a_gradient_that_is_not_finite_stops_a_run_under_deepspeed(way, together):
    """DeepSpeed has taken the step, or left it out without a word, when the loss is known, which is finite."""
    [told] = [entry for entry in metrics.read(str(together / f"poisoned, {way}")) if "bad_loss" in entry]
    assert re.match("the gradient of step 2 is (nan|inf), at a loss of ", told["bad_loss"])
    assert not (together / f"poisoned, {way}" / "adapter").exists()


def test_bfloat16_and_gradient_checkpointing_train_too(tiny_model, tiny_prepared, tmp_path):
    settings = {"bf16": True, "gradient_checkpointing": True, "max_steps": 30}
    found, told = run_alone(tiny_model, tiny_prepared, tmp_path / "r", **settings)
    assert sum(found[-5:]) < sum(found[:5])
    assert any(entry.get("isolation_logit_difference", 1) < 0.05 for entry in told)


@pytest.mark.slow
def test_a_run_lives_in_object_storage(ray_local, s3_server, bucket, tiny_model, tiny_prepared):
    """Every file of a run goes to s3://, and a run there continues from there, though storage goes dumb for a while."""
    from raystyle import storage

    uri = f"{bucket}/runs/one"
    first = run(tiny_model, tiny_prepared, uri, max_steps=4, save_steps=2)
    assert not any("continued_from_step" in entry for entry in first.metrics)  # it came through at the first attempt
    names = {file.uri.removeprefix(f"{uri}/").split("/")[0] for file in storage.list_files(uri)}
    assert names >= {"adapter", "checkpoints", "config.json", "loss.png", "metrics.jsonl", "plan.json", "report.html",
                     "samples", "tensorboard"}  # fmt: skip
    storage.delete(f"{uri}/adapter")
    storage.delete(f"{uri}/checkpoints/step-00000004")
    with dumb_for(
        s3_server, OUTAGE_S, once=lambda: storage.exists(f"{uri}/checkpoints/step-00000002") and train_workers()
    ):
        again = run(tiny_model, tiny_prepared, uri, max_steps=4, save_steps=2)
    assert any(entry.get("continued_from_step") == 2 for entry in again.metrics)
    assert losses(again)[:2] == losses(first)[:2] and losses(again) == pytest.approx(losses(first), abs=1e-5)
    assert storage.exists(f"{uri}/adapter/adapter_model.safetensors")


def test_sample_and_export_use_the_run(undisturbed, tiny_model, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from raystyle import models
    from raystyle.config import ExportConfig, SampleConfig

    _, output = undisturbed
    base = {"model_name_or_path": str(tiny_model), "lora_path": str(output)}
    greedy = flags.from_dict(SampleConfig, base | {"temperature": 0.0, "max_new_tokens": 6, "prompt": ["今日", "天"]})
    samples = list(pipeline.sample(greedy, print))
    assert [(s.prompt, s.adapter is None) for s in samples] == [
        ("今日", True), ("天", True), ("今日", False), ("天", False)
    ]  # fmt: skip
    merged = pipeline.export(flags.from_dict(ExportConfig, base | {"output_dir": str(tmp_path / "merged")}))
    assert "adapter_config.json" not in os.listdir(merged)
    alone = AutoModelForCausalLM.from_pretrained(merged)
    ids = AutoTokenizer.from_pretrained(merged)("今日天气", return_tensors="pt").input_ids
    tuned = models.load_adapter(models.load_base(str(tiny_model), dtype=torch.float32), str(output / "adapter"))
    with torch.no_grad():
        torch.testing.assert_close(alone(ids).logits, tuned(ids).logits, atol=1e-5, rtol=1e-4)
    with pytest.raises(RunError, match="not empty"):
        pipeline.export(flags.from_dict(ExportConfig, base | {"output_dir": merged}))
