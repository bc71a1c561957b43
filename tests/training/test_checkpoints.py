"""Checkpoints: what is saved is what is loaded, and one that is not whole is never taken."""

import json
import random
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors.torch import load_file

from raystyle import flags, storage
from raystyle.config import Schedule, TrainConfig
from raystyle.errors import StorageError
from raystyle.training import checkpoints, loop, lora


@pytest.fixture
def trained(tiny_model):
    """A tiny model after three real optimizer steps, with its optimizer and schedule."""
    return make(tiny_model, steps=3)


def make(tiny_model, steps):
    from transformers import AutoModelForCausalLM, get_cosine_schedule_with_warmup

    needed = {"model_name_or_path": "m", "dataset_path": ["/d"], "output_dir": "/o"}
    config = flags.from_dict(TrainConfig, needed | {"lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.0})
    model = lora.attach(AutoModelForCausalLM.from_pretrained(tiny_model), config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    scheduler = get_cosine_schedule_with_warmup(optimizer, 2, 10)
    for step in range(steps):
        one_step(model, optimizer, scheduler, step)
    return model, optimizer, scheduler


def one_step(model, optimizer, scheduler, step):
    ids = torch.arange(20)[None] + 5 * step
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()


class State:
    def save_to_json(self, path):
        Path(path).write_text("{}")


def save(directory, trained, step=3):
    model, optimizer, _ = trained
    directory.mkdir(parents=True)
    tensors = checkpoints.collect_optimizer(model, optimizer)
    checkpoints.save(str(directory), step, model, tensors, State(), {"base_model": "m"})


def test_training_goes_on_from_a_checkpoint_as_if_nothing_had_happened(tmp_path, tiny_model, trained):
    save(tmp_path / "c", trained)
    model, optimizer, scheduler = make(tiny_model, steps=0)
    lora.load(str(tmp_path / "c"), model)
    checkpoints.restore_optimizer(checkpoints.read_optimizer(str(tmp_path / "c")), model, optimizer)
    checkpoints.restore_schedule(3, scheduler, optimizer)
    for parts in (trained, (model, optimizer, scheduler)):
        for step in (3, 4):
            one_step(*parts, step)
    for (name, ours), (_, theirs) in zip(model.named_parameters(), trained[0].named_parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_a_checkpoint_holds_no_pickle(tmp_path, trained):
    save(tmp_path / "c", trained)
    for file in (tmp_path / "c").iterdir():
        if file.suffix == ".json":
            json.loads(file.read_text())
        else:
            assert file.suffix == ".safetensors", file.name
            assert load_file(file)


def test_the_newest_whole_checkpoint_is_found_and_torn_ones_are_named(tmp_path, trained):
    for step in (1, 2, 3, 4):
        save(tmp_path / checkpoints.name_of(step), trained, step)
    (tmp_path / checkpoints.name_of(4) / checkpoints.MARKER).unlink()
    weights = tmp_path / checkpoints.name_of(3) / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    good, torn = checkpoints.last_good(str(tmp_path))
    assert good == str(tmp_path / checkpoints.name_of(2))
    assert torn == [str(tmp_path / checkpoints.name_of(step)) for step in (4, 3)]


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "optimizer.safetensors", "trainer_state.json"])
def test_one_flipped_byte_anywhere_makes_a_checkpoint_bad(tmp_path, trained, name):
    save(tmp_path / "c", trained)
    assert checkpoints.is_good(str(tmp_path / "c"))
    content = bytearray((tmp_path / "c" / name).read_bytes())
    content[random.Random(0).randrange(len(content))] ^= 1
    (tmp_path / "c" / name).write_bytes(content)
    assert not checkpoints.is_good(str(tmp_path / "c"))


def test_a_marker_that_is_not_one_makes_a_checkpoint_bad(tmp_path, trained):
    save(tmp_path / "c", trained)
    for marker in ("", "[]", json.dumps({"step": 1})):
        (tmp_path / "c" / checkpoints.MARKER).write_text(marker)
        assert not checkpoints.is_good(str(tmp_path / "c"))


def test_no_checkpoints_is_no_error(tmp_path):
    assert checkpoints.last_good(str(tmp_path / "nothing")) == (None, [])


def test_prune_keeps_the_newest(tmp_path, trained):
    for step in (1, 2, 10):
        save(tmp_path / checkpoints.name_of(step), trained, step)
    (tmp_path / "notes").mkdir()
    checkpoints.prune(str(tmp_path), 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes", checkpoints.name_of(2), checkpoints.name_of(10)]


@pytest.mark.parametrize("name", get_args(Schedule))
def test_every_schedule_is_put_back_to_its_step(name):
    from transformers import get_scheduler

    more = {"min_lr": 1e-4} if "min_lr" in name else {"num_decay_steps": 4} if "stable" in name else {}

    def make_schedule():
        optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], lr=0.01)
        return optimizer, get_scheduler(name, optimizer, 2, 12, scheduler_specific_kwargs=more)

    walked, put = make_schedule(), make_schedule()
    for _ in range(5):
        walked[0].step()
        walked[1].step()
    checkpoints.restore_schedule(5, put[1], put[0])
    for _ in range(4):
        assert put[0].param_groups[0]["lr"] == walked[0].param_groups[0]["lr"]
        assert put[1].get_last_lr() == walked[1].get_last_lr()
        for optimizer, schedule in (walked, put):
            optimizer.step()
            schedule.step()


def test_an_upload_that_ends_anywhere_leaves_no_checkpoint_that_looks_whole(tmp_path, trained, monkeypatch):
    save(tmp_path / "local", trained)
    original, names = storage.open_output, sorted(path.name for path in (tmp_path / "local").iterdir())
    for moment in range(len(names)):
        opened = []

        def ends(uri, moment=moment, opened=opened):
            opened.append(uri)
            if len(opened) > moment:
                raise StorageError("the connection is gone")
            return original(uri)

        monkeypatch.setattr(storage, "open_output", ends)
        with pytest.raises(StorageError):
            checkpoints.upload(str(tmp_path / "local"), f"{tmp_path}/run/step-00000003")
        assert not (tmp_path / "run" / "step-00000003" / checkpoints.MARKER).exists()
        if moment:
            assert checkpoints.last_good(f"{tmp_path}/run")[0] is None
    monkeypatch.setattr(storage, "open_output", original)
    checkpoints.upload(str(tmp_path / "local"), f"{tmp_path}/run/step-00000003")
    assert checkpoints.last_good(f"{tmp_path}/run") == (f"{tmp_path}/run/step-00000003", [])


def test_storage_that_does_not_answer_says_nothing_of_a_checkpoint(tmp_path, trained, monkeypatch):
    """And nothing is deleted: it may be the newest good one."""
    place = tmp_path / "checkpoints" / checkpoints.name_of(3)
    save(place, trained)
    original = storage.open_input

    def fails(uri):
        raise StorageError(f"cannot read `{uri}`: cannot reach it")

    monkeypatch.setattr(storage, "open_input", fails)
    with pytest.raises(StorageError, match="cannot reach"):
        loop.resume_point(str(tmp_path), 0)
    monkeypatch.setattr(storage, "open_input", original)
    assert loop.resume_point(str(tmp_path), 0) == (str(place), [])
