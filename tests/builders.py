"""Small real things that tests build on: a tiny Llama with its tokenizer, and prepared rows of random text for it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ALPHABET = "天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏今日天气阴沉，。"


def write_model(
    directory: Path,
    *,
    layers: int = 2,
    hidden: int = 32,
    positions: int = 512,
    seed: int = 0,
    family: str = "llama",
    **settings: Any,
) -> Path:
    """A Llama (grouped-query attention) with random weights and a byte-level tokenizer that puts a token in front, as a Hugging Face folder.

    `family` may be another of transformers' model types; `settings` are its config's.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>", "<|begin|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([ALPHABET], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        "<|begin|> $A", special_tokens=[("<|begin|>", tokenizer.token_to_id("<|begin|>"))]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    fast.save_pretrained(directory)
    torch.manual_seed(seed)
    mixture = {
        "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
        "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": hidden, "head_dim": 8},
    }
    settings = {"tie_word_embeddings": False, **mixture.get(family, {}), **settings}
    config = AutoConfig.for_model(
        family,
        vocab_size=len(fast),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=positions,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
        **settings,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    return directory


def metaspace_tokenizer() -> Any:
    """As Llama 2 and Mistral have it: `▁` for a space, bytes for the rest, and no space at a text's start."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<unk>": 0, "▁the": 1, "▁": 2, "气": 3} | {f"<0x{byte:02X}>": 4 + byte for byte in range(256)}
    core = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")


def write_prepared(directory: Path, model: Path, *, rows: int = 22, length: int = 64, seed: int = 0) -> Path:
    """A `prepare` output with rows of two to four documents each and a held-out document, in two shards."""
    from raystyle import tokens

    tokenizer = tokens.load_tokenizer(str(model))
    random = np.random.default_rng(seed)
    shards, row_number = [], 0
    type_ = pa.schema(
        [
            ("row", pa.int64()),
            ("input_ids", pa.list_(pa.int32(), length)),
            ("segment_lengths", pa.list_(pa.int32())),
            (
                "pieces",
                pa.list_(pa.struct([("doc_id", pa.string()), ("char_start", pa.int64()), ("char_end", pa.int64())])),
            ),
        ]
    )
    (directory / "rows").mkdir(parents=True)
    for shard, count in enumerate([rows // 2, rows - rows // 2]):
        records: list[dict[str, Any]] = []
        for _ in range(count):
            # The same few ids over and over, so that training has something to learn.
            ids = random.choice(np.arange(260, 280), size=length).tolist()
            cuts = sorted(random.choice(np.arange(4, length - 4), size=int(random.integers(1, 4)), replace=False))
            lengths = np.diff([0, *cuts, length]).tolist()
            pieces = [{"doc_id": f"d{row_number}-{i}", "char_start": 0, "char_end": n} for i, n in enumerate(lengths)]
            records.append({"row": row_number, "input_ids": ids, "segment_lengths": lengths, "pieces": pieces})
            row_number += 1
        path = f"rows/part-{shard:05d}.parquet"
        pq.write_table(pa.Table.from_pylist(records, schema=type_), directory / path, row_group_size=4)
        shards.append({"path": path, "rows": count, "tokens": count * length, "sha256": ""})
    (directory / "heldout").mkdir()
    heldout = pa.table({"doc_id": ["h"], "source": ["h"], "title": ["h"], "text": [ALPHABET * 4]})
    pq.write_table(heldout, directory / "heldout" / "part-00000.parquet")
    manifest = {
        "format": 1,
        "max_seq_length": length,
        "segment_length": length,
        "records": "documents",
        "document_unit": "work",
        "tokenizer": {
            "name": str(model),
            "digest": tokens.tokenizer_digest(tokenizer),
            "vocab_size": len(tokenizer),
            "eos_id": tokenizer.eos_token_id,
        },
        "counts": {"rows": rows, "tokens": rows * length, "documents": rows * 3, "heldout": 1},
        "shards": shards,
        "digest": f"test-{seed}-{rows}-{length}",
    }
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return directory


def write_adapter(directory: Path, model: Path, *, seed: int = 0, strength: float = 0.3, **settings: Any) -> Path:
    """A LoRA adapter for a model, with random weights strong enough to change its texts; `settings` are PEFT's."""
    import torch
    from peft import LoraConfig, get_peft_model

    from raystyle import models

    base = models.load_base(str(model), dtype=torch.float32)
    defaults: dict[str, Any] = {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "v_proj"],
        "task_type": "CAUSAL_LM",
    }
    torch.manual_seed(seed)
    tuned = get_peft_model(base, LoraConfig(**(defaults | settings)))
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=strength)
    tuned.save_pretrained(directory)
    return directory


SITE = """
import importlib.abc, importlib.util, sys

class Patching(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != {module!r}:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            exec({patch!r}, {{"module": module}})

        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Patching())
"""


def write_site(folder: Path, module: str, patch: str) -> Path:
    """A folder for `PYTHONPATH` from which every Python process runs `patch`, where `module` is the module of that name, as soon as
    it has loaded it: a change to processes that others start."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(SITE.format(module=module, patch=patch))
    return folder
