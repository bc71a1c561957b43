"""Adapters made by PEFT for the tiny model, and what can be done to a good one's folder so that it must be refused."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from raystyle import adapters, models, storage, tokens


def identity(model: Path) -> dict[str, str]:
    """What an adapter says of its base; the registry's arguments too, with `linears`."""
    digest = tokens.tokenizer_digest(tokens.load_tokenizer(str(model)))
    return {"base_identity": models.identity(str(model)), "tokenizer_digest": digest}


def linears(model: Path) -> dict[str, tuple[int, int]]:
    return models.linears(models.laid_out(str(model)))


def write_adapter(folder: Path, model: Path, *, seed: int = 1, r: int = 4, **values: Any) -> Path:
    """A LoRA with a B that is not zero, as training writes it."""
    from peft import LoraConfig, get_peft_model

    base = models.load_base(str(model), dtype=torch.float32)
    options: dict[str, Any] = {"target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"} | values
    tuned = get_peft_model(base, LoraConfig(r=r, lora_alpha=2 * r, **options))
    torch.manual_seed(seed)
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    adapters.save(tuned, str(folder), identity(model) | {"step": 3})
    return folder


def write_checkpoint(run: Path, adapter: Path, step: int) -> Path:
    """A checkpoint as training leaves it, with an adapter that is there already; its marker comes last."""
    import hashlib

    folder = run / "checkpoints" / f"step-{step:08d}"
    shutil.copytree(adapter, folder)
    save_file({"x|exp_avg": torch.zeros(2)}, folder / "optimizer.safetensors")
    (folder / "trainer_state.json").write_text("{}")
    digests = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}
    storage.write_json(str(folder / "checkpoint.json"), {"step": step, "sha256": digests})
    return folder


def write_run(run: Path, adapter: Path, steps: tuple[int, ...] = ()) -> Path:
    storage.write_json(str(run / "plan.json"), {})
    shutil.copytree(adapter, run / "adapter")
    for step in steps:
        write_checkpoint(run, adapter, step)
    return run


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Other tensors, and a fingerprint that stands for them."""
    tensors = load_file(folder / adapters.WEIGHTS)
    change(tensors)
    save_file(tensors, folder / adapters.WEIGHTS)
    sign(folder)


def change_config(folder: Path, **values: Any) -> None:
    config = json.loads((folder / adapters.CONFIG).read_text())
    (folder / adapters.CONFIG).write_text(json.dumps(config | values))
    sign(folder)


def change_header(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """The same bytes under another header."""
    data = (folder / adapters.WEIGHTS).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    raw = json.dumps(header).encode()
    (folder / adapters.WEIGHTS).write_bytes(len(raw).to_bytes(8, "little") + raw + data[8 + length :])
    sign(folder)


def change_about(folder: Path, **values: Any) -> None:
    """Fields of raystyle_adapter.json; one that is None is taken out."""
    about = json.loads((folder / adapters.ABOUT).read_text()) | values
    (folder / adapters.ABOUT).write_text(json.dumps({k: v for k, v in about.items() if v is not None}))


def sign(folder: Path) -> None:
    change_about(folder, fingerprint=adapters.fingerprint(str(folder)))


def _first(header: dict[str, Any], half: str = "lora_A") -> dict[str, Any]:
    return next(entry for name, entry in header.items() if half in name)


def _fill(half: str, value: float) -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        change_weights(folder, lambda ts: next(t for name, t in ts.items() if half in name)[0].fill_(value))

    return fill


def _zero_b(folder: Path) -> None:
    change_weights(folder, lambda tensors: [t.zero_() for name, t in tensors.items() if "lora_B" in name] and None)


def _header(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    return lambda folder: change_header(folder, change)


def _weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    return lambda folder: change_weights(folder, change)


def _config(**values: Any) -> Callable[[Path], None]:
    return lambda folder: change_config(folder, **values)


def _file(name: str, data: bytes = b"") -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes(data)


def _replace(name: str, make: Callable[[Path], Any]) -> Callable[[Path], None]:
    def replace(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return replace


def _link_outside(path: Path) -> None:
    outside = path.parents[2] / "outside.safetensors"
    outside.write_bytes(b"x" * 100)
    path.symlink_to(outside)


def _truncate(folder: Path) -> None:
    path = folder / adapters.WEIGHTS
    path.write_bytes(path.read_bytes()[:-7])


def _drop_lora_b(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[next(name for name in tensors if "lora_B" in name)]


def _widen(tensors: dict[str, torch.Tensor]) -> None:
    for half, dim in (("lora_A", 0), ("lora_B", 1)):
        name = next(name for name in tensors if f"q_proj.{half}" in name)
        tensors[name] = torch.cat([tensors[name]] * 2, dim=dim).contiguous()


def _of_a_wider_base(tensors: dict[str, torch.Tensor]) -> None:
    for half, dim in (("lora_A", 1), ("lora_B", 0)):
        name = next(name for name in tensors if f"q_proj.{half}" in name)
        tensors[name] = torch.cat([tensors[name]] * 2, dim=dim).contiguous()


def _of_another_layer(tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if ".layers.1." in name]:
        tensors[name.replace(".layers.1.", ".layers.7.")] = tensors.pop(name)


def _wrong_rank_of_b(tensors: dict[str, torch.Tensor]) -> None:
    name = next(name for name in tensors if "lora_B" in name)
    tensors[name] = tensors[name][:, :2].contiguous()


def _overlapping(header: dict[str, Any]) -> None:
    entries = sorted((e for name, e in header.items() if name != "__metadata__"), key=lambda e: e["data_offsets"])
    entries[1]["data_offsets"] = entries[0]["data_offsets"]


def _huge_shape(header: dict[str, Any]) -> None:
    _first(header)["shape"] = [1 << 40, 1 << 20]


# What is done to a good adapter's folder, and a pattern of the reason that must be given.
HOSTILE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "pickled weights beside": (_file("adapter_model.bin", b"\x80\x04."), r"adapter_model\.bin may hold code"),
    "pickled optimizer": (_file("optimizer.pt"), r"optimizer\.pt may hold code"),
    "pickle in capitals": (_file("Extra.PKL"), r"Extra\.PKL may hold code"),
    "python file": (_file("modeling.py", b"print()"), r"modeling\.py may hold code"),
    "linked weights": (_replace(adapters.WEIGHTS, _link_outside), r"adapter_model\.safetensors is a link .*outside"),
    "linked config": (_replace(adapters.CONFIG, _link_outside), r"adapter_config\.json is a link .*outside"),
    "weights are a folder": (_replace(adapters.WEIGHTS, Path.mkdir), r"adapter_model\.safetensors is a folder"),
    "weights are a pipe": (_replace(adapters.WEIGHTS, os.mkfifo), r"adapter_model\.safetensors is a pipe"),
    "config is a pipe": (_replace(adapters.CONFIG, os.mkfifo), r"adapter_config\.json is a pipe"),
    "no config": (lambda folder: (folder / adapters.CONFIG).unlink(), r"adapter_config\.json is missing"),
    "no weights": (lambda folder: (folder / adapters.WEIGHTS).unlink(), r"adapter_model\.safetensors is missing"),
    "config is no JSON": (_file(adapters.CONFIG, b"{"), r"adapter_config\.json is no JSON"),
    "config is a list": (_file(adapters.CONFIG, b"[]"), r"adapter_config\.json holds no JSON object"),
    "config is bytes": (_file(adapters.CONFIG, b"\xff\xfe\xfd"), r"adapter_config\.json is no JSON"),
    "deep config": (_file(adapters.CONFIG, b'{"r":' + b"[" * 200_000), r"nested too deeply"),
    "huge config": (_file(adapters.CONFIG, b" " * (1 << 21)), r"adapter_config\.json has 2097152 bytes"),
    "no LoRA": (_config(peft_type="IA3"), r"type 'IA3'"),
    "auto_map": (_config(auto_map={"AutoModel": "x.Y"}), r"Python code to run \(`auto_map`\)"),
    "DoRA": (_config(use_dora=True), r"`use_dora` true"),
    "modules_to_save": (_config(modules_to_save=["lm_head"]), r"`modules_to_save`"),
    "bias": (_config(bias="all"), r"`bias` \"all\""),
    "lora_bias": (_config(lora_bias=True), r"`lora_bias`"),
    "trainable tokens": (_config(trainable_token_indices=[1]), r"`trainable_token_indices`"),
    "layer replication": (_config(layer_replication=[[0, 2], [1, 2]]), r"`layer_replication`"),
    "activated LoRA": (_config(alora_invocation_tokens=[5]), r"`alora_invocation_tokens`"),
    "parameters": (_config(target_parameters=["experts.w"]), r"`target_parameters`"),
    "megatron": (_config(megatron_config={"a": 1}), r"`megatron_config`"),
    "changes the base": (_config(init_lora_weights="pissa"), r"`init_lora_weights` \"pissa\""),
    "transposed": (_config(fan_in_fan_out=True), r"`fan_in_fan_out`"),
    "unknown field": (_config(use_surprise=1), r"`use_surprise` 1"),
    "regular expression": (_config(target_modules="(a+)+$"), r"`target_modules`"),
    "expression for ranks": (_config(rank_pattern={"(a+)+": 4}), r"`rank_pattern`"),
    "huge rank": (_config(r=1 << 30), r"`r` 1073741824"),
    "rank of nothing": (
        _config(r=512, rank_pattern={"q_proj": 4, "down_proj": 4}),
        r"rank 512, and the highest .* is 4",
    ),
    "rank not a number": (_config(r="4"), r"`r` \"4\""),
    "no alpha": (_config(lora_alpha=float("nan")), r"`lora_alpha`"),
    "another rank": (_config(r=8), r"has rank 4, its lora_B 4, and adapter_config\.json says 8"),
    "another rank in one": (_weights(_widen), r"q_proj\.lora_A\.weight` has rank 8, its lora_B 8"),
    "halves of two ranks": (_weights(_wrong_rank_of_b), r"has rank 4, its lora_B 2"),
    "a wider base": (
        _weights(_of_a_wider_base),
        r"q_proj\.lora_A\.weight` and its lora_B are for 64 -> 64, .* 32 -> 32",
    ),
    "another layer": (_weights(_of_another_layer), r"layers\.7\..* is for a linear layer that this base does not have"),
    "half a pair": (_weights(_drop_lora_b), r"lora_A\.weight` has no lora_B beside it"),
    "another tensor": (
        _weights(lambda ts: ts.update({"lm_head.weight": torch.ones(2, 2)})),
        r"`lm_head\.weight` is no LoRA",
    ),
    "no tensors": (_weights(lambda tensors: tensors.clear()), r"has no tensors"),
    "empty": (_file(adapters.WEIGHTS), r"it has 0 bytes"),
    "truncated": (_truncate, r"header speaks of \d+ bytes, and the file has \d+"),
    "pickle by another name": (_file(adapters.WEIGHTS, b"\x80\x04" + b"x" * 60), r"its header alone needs"),
    "header beyond the file": (
        _file(adapters.WEIGHTS, (1 << 60).to_bytes(8, "little") + b"{}"),
        r"its header alone needs",
    ),
    "huge header": (
        _file(adapters.WEIGHTS, (17 << 20).to_bytes(8, "little") + b" " * (17 << 20)),
        r"header has 17825792 bytes, more than",
    ),
    "deep header": (
        _file(adapters.WEIGHTS, (200_000).to_bytes(8, "little") + b"[" * 200_000),
        r"header cannot be understood",
    ),
    "overlapping": (_header(_overlapping), r"puts `base_model.*` at bytes"),
    "beyond the end": (
        _header(lambda h: _first(h).update(data_offsets=[0, 1 << 50])),
        r"the one before it ends at|speaks of",
    ),
    "negative": (_header(lambda h: _first(h).update(data_offsets=[-8, 8])), r"has -8 for a size or a place"),
    "huge shape": (_header(_huge_shape), r"which needs \d+ bytes"),
    "integers": (_header(lambda h: _first(h).update(dtype="I32")), r"is of dtype I32"),
    "unknown dtype": (_header(lambda h: _first(h).update(dtype="F99")), r"is of dtype F99"),
    "a name that is no text": (_header(lambda h: h.update({"\ud800": _first(h)})), r"header cannot be understood"),
    "NaN": (_fill("lora_A", float("nan")), r"not finite, in `base_model.*lora_A"),
    "infinite": (_fill("lora_B", float("inf")), r"not finite, in `base_model.*lora_B"),
    "zero B": (_zero_b, r"all zero: it would change nothing"),
    "another base": (
        lambda f: change_about(f, base_identity="b 0123456789abcdef"),
        r"another base: `b 0123456789abcdef`",
    ),
    "another tokenizer": (lambda f: change_about(f, tokenizer_digest="f" * 64), r"another tokenizer: ffffffffffff"),
    "no base": (lambda f: change_about(f, base_identity=None), r"does not say which base .*`--allow_unverified_base`"),
    "no tokenizer": (lambda f: change_about(f, tokenizer_digest=None), r"does not say which base"),
    "nothing of raystyle": (lambda f: (f / adapters.ABOUT).unlink(), r"does not say which base"),
    "base by hub name": (
        lambda f: change_about(f, base_identity="some/base"),
        r"`some/base`, which cannot be compared",
    ),
    "other weights than said": (
        lambda f: change_about(f, fingerprint="0" * 64),
        r"not the ones raystyle_adapter\.json",
    ),
    "about is no JSON": (_file(adapters.ABOUT, b"{"), r"raystyle_adapter\.json is no JSON"),
}
