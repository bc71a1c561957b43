"""The loss from the last hidden state is the model's own loss, also for models that change their logits after the head."""

import threading

import pytest
import torch

from raystyle.training import attention


@pytest.fixture(params=["llama", "gemma2"])
def model(request, tiny_model):
    """A plain head, and one whose logits are capped after it."""
    from transformers import AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM

    if request.param == "llama":
        return AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation="sdpa")
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, final_logit_softcapping=0.01, attn_implementation="eager",
    )  # fmt: skip
    return Gemma2ForCausalLM(config)


def trainer_for(model, tmp_path, name="m"):
    from transformers import TrainingArguments

    from raystyle import flags
    from raystyle.config import TrainConfig
    from raystyle.training import lora
    from raystyle.training.rows import Order
    from raystyle.training.trainer import PackedTrainer, Run, Task, Worker

    needed = {"model_name_or_path": name, "dataset_path": ["/d"], "output_dir": str(tmp_path)}
    config = flags.from_dict(TrainConfig, needed | {"lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.0})
    manifest = {"counts": {}, "digest": "d", "tokenizer": {"digest": "t"}}
    task = Task({}, "", manifest, 1, 0, [1], {}, False)
    run = Run(
        config,
        task,
        Worker(0, 1, lambda step, directory: None),
        Order(1, 1, 1, 0, 1, 1, 0),
        None,
        attention.PACKED_SDPA,
        (),
    )
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[], disable_tqdm=True)
    return PackedTrainer(model=lora.attach(model, config), args=arguments, train_dataset=[0], run=run)


def test_the_loss_is_the_model_s_own(model, tmp_path):
    trainer = trainer_for(model, tmp_path)
    trainer.is_head_plain = trainer.check_head()
    assert trainer.is_head_plain == (model.config.model_type == "llama")
    ids = torch.randint(0, 256, (1, 30))
    labels = ids.clone()
    labels[0, [0, 7]] = -100
    trainer.model.eval()
    expected = trainer.model(input_ids=ids, labels=labels, use_cache=False).loss * 28
    found = trainer.loss_sum(trainer.model, {"input_ids": ids, "labels": labels})
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    [ours] = torch.autograd.grad(found, [next(p for n, p in trainer.model.named_parameters() if "lora_B" in n)])
    [theirs] = torch.autograd.grad(expected, [next(p for n, p in trainer.model.named_parameters() if "lora_B" in n)])
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_storage_that_does_not_answer_keeps_training_waiting_for_nothing(model, tmp_path, monkeypatch, capfd):
    from raystyle import storage
    from raystyle.errors import StorageError
    from raystyle.training import metrics

    trainer, answers, asked = trainer_for(model, tmp_path), threading.Event(), []
    original = storage.read_json

    def read_json(uri):
        asked.append(uri)
        assert answers.wait(10)
        if len(asked) == 1:
            raise StorageError("storage does not answer")
        return original(uri)

    monkeypatch.setattr(storage, "read_json", read_json)
    metrics.write_failure(str(tmp_path), 1, "killed")
    for _ in range(3):  # one look at a time
        trainer.read_evaluations()
    trainer.write_metrics()
    answers.set()
    trainer.reading.join()
    assert len(asked) == 1 and not trainer.evaluated and "does not answer" in capfd.readouterr().err
    trainer.read_evaluations()
    trainer.reading.join()
    assert [record["step"] for record in trainer.evaluated.values()] == [1]


def test_an_adapter_says_which_base_it_was_trained_on_as_it_was_then(tiny_model, tmp_path):
    import shutil

    from transformers import AutoModelForCausalLM

    from raystyle import models

    shutil.copytree(tiny_model, tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base", attn_implementation="sdpa")
    trainer = trainer_for(model, tmp_path / "run", str(tmp_path / "base"))
    (tmp_path / "base" / "config.json").write_text("{}")
    about = trainer.about()
    assert models.is_same_base(about["base_identity"], models.identity(str(tiny_model)))
    assert (about["tokenizer_digest"], about["data_digest"], about["step"]) == ("t", "d", 0)
