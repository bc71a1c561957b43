"""Bad steps are told with their rows and sources, stop the run or change nothing; speed is counted as LoRA's mathematics has it."""

import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers

from raystyle import flags, storage
from raystyle.config import TrainConfig
from raystyle.errors import ModelError, TrainingError
from raystyle.training import attention, guard, lora, metrics, speed
from raystyle.training import trainer as trainer_module
from raystyle.training.follow import _milestone, note
from raystyle.training.rows import Order, Placed, Rows, flat_batch

STEPS, BAD_STEP = 8, 3


def trainer_for(
    model_path, prepared, output, tokenizer=None, hand_over=lambda step, directory: None, is_leaving=None, **values
):
    """The trainer on real rows, without Ray: no checkpoint is planned."""
    from transformers import AutoModelForCausalLM, TrainingArguments

    from raystyle.training.trainer import PackedTrainer, Run, Task, Worker

    attention.register()
    needed = {"model_name_or_path": str(model_path), "dataset_path": [str(prepared)], "output_dir": str(output)}
    settings = {
        "lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2, "learning_rate": 0.01,
    } | values  # fmt: skip
    config = flags.from_dict(TrainConfig, needed | settings)
    manifest = storage.read_json(storage.join(str(prepared), "manifest.json"))
    manifest["counts"]["heldout"] = 0
    rows = Rows(str(prepared), manifest)
    order = Order(len(rows), 4, 2, 0, 1, STEPS, 42)
    task = Task({}, str(prepared), manifest, STEPS, 0, [], {}, False, model_flops=(2e6, 3e3))
    base = AutoModelForCausalLM.from_pretrained(model_path, attn_implementation=attention.PACKED_SDPA)
    arguments = TrainingArguments(
        output_dir=str(output), use_cpu=True, report_to=[], disable_tqdm=True, max_steps=STEPS, save_strategy="no",
        per_device_train_batch_size=2, gradient_accumulation_steps=2, learning_rate=0.01, logging_steps=1,
        remove_unused_columns=False, logging_nan_inf_filter=False, lr_scheduler_type="constant",
    )  # fmt: skip
    return PackedTrainer(
        model=lora.attach(base, config),
        args=arguments,
        train_dataset=Placed(rows, order),
        data_collator=lambda batch: flat_batch(batch, config.isolation, attention.PACKED_SDPA),
        run=Run(config, task, Worker(0, 1, hand_over, None, is_leaving), order, tokenizer, attention.PACKED_SDPA, ()),
    )


def poison(trainer, what):
    """Spoil the second micro-batch of one step; returns its rows."""
    numbers = trainer.run.order.rows_at(4 * (BAD_STEP - 1) + 2)
    ids = torch.from_numpy(trainer.train_dataset.rows[numbers[0]].input_ids.astype("int64"))
    original = trainer.loss_sum

    def loss_sum(model, inputs):
        loss = original(model, inputs)
        if not torch.equal(inputs["input_ids"][0, : len(ids)], ids) or trainer.state.global_step != BAD_STEP - 1:
            return loss
        if what == "gradient":
            loss.register_hook(lambda gradient: gradient * math.nan)
            return loss
        return loss * what

    trainer.loss_sum = loss_sum
    return numbers


def weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}


@pytest.fixture
def prepared(tiny_prepared, tmp_path):
    """The tiny rows, with documents that say where they come from."""
    import shutil

    place = tmp_path / "prepared"
    shutil.copytree(tiny_prepared, place)
    (place / "documents").mkdir()
    ids = [f"d{row}-{i}" for row in range(22) for i in range(4)]
    table = pa.table({"doc_id": ids, "source": [f"novel-{doc_id[1:].split('-')[0]}.txt" for doc_id in ids]})
    pq.write_table(table, place / "documents" / "part-00000.parquet")
    return place


@pytest.mark.parametrize("what", [math.nan, math.inf, "gradient"])
def test_a_bad_step_stops_the_run_and_names_its_rows_and_their_source(what, tiny_model, prepared, tmp_path):
    trainer = trainer_for(tiny_model, prepared, tmp_path / "r")
    numbers = poison(trainer, what)
    with pytest.raises(TrainingError, match=rf"of step {BAD_STEP} is .*\nhint: .*on_bad_loss skip") as stopped:
        trainer.train()
    assert all(torch.isfinite(tensor).all() for tensor in weights(trainer).values())
    [entry] = [entry for entry in metrics.read(str(tmp_path / "r")) if "bad_loss" in entry]
    assert (entry["step"], entry["left_out"]) == (BAD_STEP, False)
    if what != "gradient":  # whose losses say nothing
        assert entry["rows"] == numbers
        assert entry["sources"] == [f"novel-{number}.txt" for number in numbers]
        assert f"rows {numbers[0]}, {numbers[1]} of novel-{numbers[0]}.txt" in str(stopped.value)


@pytest.mark.parametrize("what", [math.nan, "gradient"])
def test_a_bad_step_that_is_skipped_changes_nothing(what, tiny_model, prepared, tmp_path):
    trainer = trainer_for(tiny_model, prepared, tmp_path / "r", on_bad_loss="skip")
    poison(trainer, what)
    seen = {}

    class Watch(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            seen[state.global_step] = weights(trainer)

    trainer.add_callback(Watch())
    trainer.train()
    before, after, later = seen[BAD_STEP - 1], seen[BAD_STEP], seen[BAD_STEP + 1]
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert any(not torch.equal(after[name], later[name]) for name in after)
    entries = metrics.read(str(tmp_path / "r"))
    assert [entry["step"] for entry in entries if "loss" in entry] == [1, 2, *range(BAD_STEP + 1, STEPS + 1)]
    assert all(math.isfinite(value) for entry in entries for value in entry.values() if isinstance(value, float))
    assert [entry["left_out"] for entry in entries if "bad_loss" in entry] == [True]


def test_a_run_whose_every_step_is_bad_ends(tiny_model, prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(guard, "MAX_SKIPPED", 3)
    trainer = trainer_for(tiny_model, prepared, tmp_path / "r", on_bad_loss="skip")
    trainer.loss_sum = lambda model, inputs, original=trainer.loss_sum: original(model, inputs) * math.nan
    with pytest.raises(TrainingError, match="the loss of step 4 is nan"):
        trainer.train()


def test_an_undisturbed_run_is_measured_and_lora_plus_has_its_rates(tiny_model, prepared, tmp_path):
    trainer = trainer_for(tiny_model, prepared, tmp_path / "r", loraplus_lr_ratio=4)
    trainer.meter.peak = 1e9
    trainer.train()
    entries = [entry for entry in metrics.read(str(tmp_path / "r")) if "loss" in entry]
    assert len(entries) == STEPS
    assert {"tokens_per_second", "model_flop_utilisation", "peak_memory_gb"} <= entries[-1].keys()
    assert entries[-1]["seconds_left"] == 0 and "seconds_left" not in entries[0]
    assert sorted({group["lr"] for group in trainer.optimizer.param_groups}) == pytest.approx([0.01, 0.04])


def test_what_is_bad():
    usual = [2.0 + 0.01 * (i % 2) for i in range(40)]
    assert guard.what_is_bad(7, 2.5, 1.0, usual, 3) is None
    assert guard.what_is_bad(7, 5.5, 1.0, usual, 3) == (
        "the loss of step 7 is 5.500 nats per token, after a median of 2.005"
    )
    assert guard.what_is_bad(7, 5.5, 1.0, usual, 0) is None
    assert guard.what_is_bad(7, 5.5, 1.0, usual[: guard.LEAST - 1], 3) is None
    assert guard.what_is_bad(7, 5.5, 1.0, [5.0] * 8 + usual[:32], 3) is not None
    assert "loss of step 7 is nan" in (guard.what_is_bad(7, math.nan, 1.0, [], 0) or "")
    assert "gradient of step 7 is inf" in (guard.what_is_bad(7, 2.0, math.inf, [], 0) or "")


def test_the_worst_micro_batches():
    a, b, c = (guard.MicroBatch(place, loss) for place, loss in ((0, 2.0), (2, 7.0), (4, math.nan)))
    assert guard.worst([a, b]) == [b]
    assert guard.worst([a, b, c]) == [c]


def test_the_rows_of_a_place_are_the_order_s_own():
    for workers in (1, 2):
        orders = [Order(21, 4, 2, rank, workers, 7, 3) for rank in range(workers)]
        for order in orders:
            for batch in order:
                real = [row for _, row in batch if row >= 0]
                assert order.rows_at(batch[0][0]) == real


def test_documents_without_sources_are_named_by_their_ids(tiny_prepared):
    manifest = storage.read_json(str(tiny_prepared / "manifest.json"))
    names = guard.sources(Rows(str(tiny_prepared), manifest), [0, 1])
    assert names[0] == "d0-0" and names[-1].startswith("d1-")
    assert guard.described([3], ["a.txt"]) == "row 3 of a.txt"
    assert guard.described(list(range(10)), []) == "rows 0, 1, 2, 3, 4, 5, 6, 7 and 2 more of no document"


@pytest.mark.parametrize(
    ("name", "flops"),
    [
        ("NVIDIA H200", 989e12), ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12), ("NVIDIA L40S", 362e12), ("NVIDIA L4", 121e12), ("NVIDIA GeForce RTX 4090", 165e12),
        ("", None), ("Quadro P400", None),
    ],
)  # fmt: skip
def test_peaks_by_the_name_of_the_device(name, flops):
    assert speed.peak_flops(name) == flops


def test_utilisation_is_tokens_times_the_model_s_flops_over_the_peak(monkeypatch):
    """Llama-3-8B with LoRA r 128: 32.8 GFLOP a token with 1,024 keys, so 15,060 tokens a second are half of an H200."""
    now_s = [0.0]
    monkeypatch.setattr(speed.time, "monotonic", lambda: now_s[0])
    meter = speed.Meter(32.0e9, 0.524e6, 989e12)
    meter.count(torch.arange(1024).repeat(8)[None])
    now_s[0] = 8192 / 15_060
    found = meter.read(share=1 / 2, step=1, steps=10)
    assert found["tokens_per_second"] == pytest.approx(2 * 15_060, rel=1e-3)
    assert found["model_flop_utilisation"] == pytest.approx(15_060 * (32.0e9 + 0.524e6 * 512.5) / 989e12, rel=1e-3)
    now_s[0] += 5
    assert meter.read(1 / 2, 2, 10)["seconds_left"] == 40
    assert "model_flop_utilisation" not in speed.Meter(1, 1, None).read(1, 1, 1)


def test_the_bar_says_what_there_is():
    assert note({"loss": 2.0}) == "loss 2.000, 0 tokens/s"
    full = {
        "loss": 2,
        "tokens_per_second": 9000,
        "model_flop_utilisation": 0.5,
        "peak_memory_gb": 70,
        "seconds_left": 120,
    }
    assert note(full) == "loss 2.000, 9,000 tokens/s, 50.0% of peak, 70.0 GB, 2 min left"


def test_a_machine_that_is_announced_to_go_means_a_checkpoint_at_once_and_once(
    tiny_model, prepared, tmp_path, monkeypatch
):
    monkeypatch.setattr(trainer_module, "ASK_INTERVAL_S", 0.0)
    asked, kept = [], []
    trainer = trainer_for(
        tiny_model, prepared, tmp_path / "r", hand_over=lambda step, _: kept.append(step), sample_prompt="",
        is_leaving=lambda: asked.append(1) or len(asked) >= 3,
    )  # fmt: skip
    trainer.train()
    assert kept == [3]
    [entry] = [entry for entry in metrics.read(str(tmp_path / "r")) if "leaving_at_step" in entry]
    assert "a checkpoint is kept after step 3" in (_milestone(entry) or "")


@pytest.mark.parametrize("what", ["not finite", "missing"])
def test_a_checkpoint_whose_adapter_is_broken_is_not_handed_over(what, tiny_model, prepared, tmp_path):
    kept = []
    trainer = trainer_for(tiny_model, prepared, tmp_path / "r", hand_over=lambda *_: kept.append(1), sample_prompt="")
    trainer.train()
    if what == "missing":
        trainer.run.task.layer_counts["q_proj"] = 3
    else:
        next(p for name, p in trainer.model.named_parameters() if "lora_B" in name).data[0, 0] = math.nan
    with pytest.raises(ModelError, match="not finite" if what == "not finite" else "of 3 `q_proj` layers"):
        trainer._save_checkpoint(trainer.model, None)
    assert kept == []


def test_the_first_of_three_workers_speaks_for_all_four_micro_batches(monkeypatch):
    """It has two of them, and the others one each."""
    monkeypatch.setattr(speed.time, "monotonic", lambda: 0.0)
    meter = speed.Meter(1, 1, None)
    monkeypatch.setattr(speed.time, "monotonic", lambda: 1.0)
    order = Order(100, 8, 2, 0, 3, 5, 42)
    for micro in range(order.accumulation):
        meter.count(torch.arange(len(order.micro_batch(micro)) * 10)[None])
    share = order.per_device_batch * order.accumulation / order.global_batch
    assert meter.read(share, 1, 5)["tokens_per_second"] == 80


def test_checkpoints_that_nobody_can_continue_from_are_told():
    entry = {"continued_from_step": 40, "num_workers": 2, "torn_checkpoints": ["step-00000060", "step-00000050"]}
    assert (_milestone(entry) or "").endswith(
        "by 2 workers\nwarning: not complete, or damaged, and deleted: step-00000060, step-00000050"
    )
    assert (_milestone({"num_workers": 1, "torn_checkpoints": ["step-00000060"]}) or "").endswith(
        "; training starts over"
    )
