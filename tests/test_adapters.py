import json
import shutil
import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file

from raystyle import adapters, flags, models
from raystyle.config import TrainConfig
from raystyle.errors import ModelError


def adapted(tiny_model, **values):
    """A tiny model with a LoRA whose B is not zero."""
    from raystyle.training import lora

    needed = {"model_name_or_path": "m", "dataset_path": ["/d"], "output_dir": "/o", "lora_r": 4, "lora_alpha": 8}
    model = lora.attach(
        models.load_base(str(tiny_model), dtype=torch.float32), flags.from_dict(TrainConfig, needed | values)
    )
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    return model.eval()


@pytest.fixture
def saved(tmp_path, tiny_model):
    adapters.save(adapted(tiny_model), str(tmp_path / "adapter"), {"step": 3})
    return tmp_path / "adapter"


def rewrite(saved, change):
    tensors = load_file(saved / adapters.WEIGHTS)
    change(tensors)
    save_file(tensors, saved / adapters.WEIGHTS)


def test_a_saved_adapter_gives_the_same_logits_when_loaded(saved, tiny_model):
    ids = torch.arange(12)[None]
    base = models.load_base(str(tiny_model), dtype=torch.float32)
    with torch.no_grad():
        expected = adapted(tiny_model)(ids).logits
        found = models.load_adapter(base, str(saved))(ids).logits
    torch.testing.assert_close(found, expected)


def test_verify_counts_the_layers_of_each_target(saved):
    layers = dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"), 2)
    assert adapters.verify(str(saved), layers)["step"] == 3
    with pytest.raises(ModelError, match="2 of 3 `q_proj`"):
        adapters.verify(str(saved), {"q_proj": 3})


def test_an_empty_or_broken_adapter_is_refused(saved):
    rewrite(saved, lambda tensors: [t.zero_() for name, t in tensors.items() if "lora_B" in name])
    with pytest.raises(ModelError, match="all zero"):
        adapters.verify(str(saved))
    rewrite(saved, lambda tensors: next(iter(tensors.values())).fill_(float("nan")))
    with pytest.raises(ModelError, match="not finite"):
        adapters.verify(str(saved))
    (saved / adapters.WEIGHTS).write_bytes(b"\x80\x04pickle")
    with pytest.raises(ModelError, match="cannot be opened"):
        adapters.verify(str(saved))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_value_that_is_not_finite_is_found_wherever_it_is(saved, dtype, value):
    def spoil(tensors):
        name = sorted(tensors)[-1]
        tensors[name] = tensors[name].to(dtype)
        tensors[name].view(-1)[tensors[name].numel() // 2] = value

    rewrite(saved, spoil)
    with pytest.raises(ModelError, match="not finite"):
        adapters.verify(str(saved))


def test_tensors_are_looked_at_one_at_a_time(saved, monkeypatch):
    """Together they may be more than there is memory for."""
    alive = weakref.WeakSet()

    class Stored:
        def __init__(self, path, framework):
            self.names = list(load_file(path))

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def keys(self):
            return self.names

        def get_tensor(self, name):
            assert len(alive) <= 1  # the last one, until this one takes its place
            tensor = torch.ones(4, 4)
            alive.add(tensor)
            return tensor

    monkeypatch.setattr("safetensors.safe_open", Stored)
    adapters.verify(str(saved))


def test_a_pickled_adapter_is_never_opened(saved):
    (saved / adapters.WEIGHTS).rename(saved / "adapter_model.bin")
    with pytest.raises(ModelError, match="never pickle"), adapters.opened(str(saved)):
        pass


def test_an_adapter_with_tensors_that_find_no_place_is_refused(saved, tiny_model):
    rewrite(saved, lambda tensors: tensors.update({"base_model.model.other.q_proj.lora_A.weight": torch.ones(4, 32)}))
    with pytest.raises(ModelError, match="no place"):
        models.load_adapter(models.load_base(str(tiny_model), dtype=torch.float32), str(saved))


def test_an_adapter_of_another_base_is_refused(saved, tmp_path):
    import builders

    other = builders.write_model(tmp_path / "other", hidden=48)
    with pytest.raises(ModelError, match="does not fit"):
        models.load_adapter(models.load_base(str(other), dtype=torch.float32), str(saved))


def test_the_fingerprint_changes_with_weights_and_config(saved):
    before = adapters.fingerprint(str(saved))
    config = json.loads((saved / adapters.CONFIG).read_text())
    (saved / adapters.CONFIG).write_text(json.dumps(config | {"lora_alpha": 9}))
    assert adapters.fingerprint(str(saved)) != before


def test_a_run_a_checkpoint_and_an_adapter_are_found(saved, tmp_path):
    run = tmp_path / "run"
    for step in ("step-00000002", "step-00000010"):
        shutil.copytree(saved, run / "checkpoints" / step)
        (run / "checkpoints" / step / "checkpoint.json").write_text("{}")
    shutil.copytree(saved, run / "checkpoints" / "step-00000020")  # cut off before its marker
    shutil.copytree(saved, run / "adapter")
    (run / "adapter" / adapters.ABOUT).unlink()  # cut off before its last file
    assert adapters.find(str(run)).endswith("step-00000010")
    assert adapters.find(str(run / "checkpoints/step-00000002")).endswith("step-00000002")
    shutil.rmtree(run / "adapter")
    shutil.copytree(saved, run / "adapter")
    assert adapters.find(str(run)) == str(run / "adapter")


def test_no_adapter_says_where_it_looked(tmp_path):
    with pytest.raises(ModelError, match="does not exist"):
        adapters.find(str(tmp_path / "nothing"))
    with pytest.raises(ModelError, match=r"adapter_config\.json"):
        adapters.find(str(tmp_path))
