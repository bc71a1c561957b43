"""Which runs a sweep makes, and what it says of them."""

import json

import pytest

from raystyle import flags
from raystyle.config import SweepConfig, TrainConfig
from raystyle.errors import ConfigError
from raystyle.training import sweep

NEEDED = ["--model_name_or_path", "m", "--dataset_path", "/d", "--output_dir", "/o"]


def config(*words):
    return flags.parse(SweepConfig, [*NEEDED, *words])


def test_each_rate_is_a_run_of_its_own_on_the_same_rows():
    runs = sweep.trials(config("--lora_r", "8", "--lora_alpha", "16", "--adam_beta2", "0.95"), ("/prepared",))
    assert [run.learning_rate for run in runs] == [5e-5, 1e-4, 2e-4]
    assert [run.output_dir for run in runs] == [f"/o/trials/lr-{rate}" for rate in ("5e-05", "0.0001", "0.0002")]
    assert {(run.lora_r, run.dataset_path, run.eval_style, type(run)) for run in runs} == {
        (8, ("/prepared",), "off", TrainConfig)
    }
    assert runs[0].training_args == {"adam_beta2": 0.95}
    assert flags.from_dict(TrainConfig, flags.to_dict(runs[0])) == runs[0]
    assert sweep.trials(config("--eval_style", "light"), ("/p",))[0].eval_style == "light"


def test_batches_are_tried_with_every_rate_by_accumulation():
    words = ["--learning_rates", "1e-4", "2e-4", "--global_batch_sizes", "32", "128", "--num_workers", "2"]
    runs = sweep.trials(config(*words), ("/p",))
    assert [(run.learning_rate, run.global_batch_size, run.gradient_accumulation_steps) for run in runs] == [
        (1e-4, 32, 2), (2e-4, 32, 2), (1e-4, 128, 8), (2e-4, 128, 8)
    ]  # fmt: skip
    assert runs[0].output_dir == "/o/trials/lr-0.0001-batch-32"
    with pytest.raises(ConfigError, match="names 24 rows, and 2 workers take 16 at a time\nhint"):
        sweep.trials(config(*words, "--global_batch_sizes", "24"), ("/p",))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--learning_rates", "0"], "different numbers above 0"),
        (["--learning_rates", "1e-4", "1e-4"], "different numbers above 0"),
        (["--learning_rates", "fast"], "it must be a number"),
        (["--global_batch_sizes", "1.5"], "it must be a whole number"),
        (["--max_concurrent_trials", "0"], "use 1 or more"),
        (["--lerning_rates", "1"], "did you mean `--learning_rate"),
    ],
)
def test_a_mistake_is_refused(words, message):
    with pytest.raises(ConfigError, match=message):
        config(*words)


def finished(run, losses):
    import pathlib

    place = pathlib.Path(run.output_dir)
    place.mkdir(parents=True)
    lines = [{"step": step, "loss": loss} for step, loss in enumerate(losses, 1)]
    lines += [{"step": 0, "heldout_loss": 3.0}, {"step": len(losses), "heldout_loss": losses[-1]}]
    (place / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (place / "plan.json").write_text(json.dumps({"base_parameters": 100}))


def test_the_best_held_out_loss_comes_first_and_failures_last(tmp_path):
    settings = config("--output_dir", str(tmp_path))
    runs = sweep.trials(settings, ("/p",))
    finished(runs[0], [2.9] * 40)
    finished(runs[1], [3 - 0.02 * step for step in range(40)])
    finished(runs[2], [3.0] * 3)
    records = [sweep.outcome(run, "the loss of step 4 is nan" if run is runs[2] else None) for run in runs]
    sweep.write(settings, records)
    written = json.loads((tmp_path / "sweep.json").read_text())["trials"]
    assert [record["learning_rate"] for record in written] == [1e-4, 5e-5, 2e-4]
    assert [record["heldout_loss"] for record in written] == [pytest.approx(2.22), 2.9, None]
    assert (
        sweep.described(written[0]) == "learning rate 0.0001, 128 rows a step: held-out loss 2.2200, falling smoothly"
    )
    assert sweep.described(written[2]).endswith("failed: the loss of step 4 is nan")
    page = (tmp_path / "report.html").read_text()
    assert "2.2200" in page and "the loss of step 4 is nan" in page
