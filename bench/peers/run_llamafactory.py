"""LLaMA-Factory's `pt` stage with LoRA: texts joined and cut into rows of a length; documents are not isolated.

python run_llamafactory.py MODEL DOCUMENTS.jsonl OUTPUT STEPS ROWS LENGTH

It imports torchaudio, whose wheels need CUDA, for data that this stage does not have: an empty module stands in for it.
"""

import importlib.machinery
import json
import sys
import types
from pathlib import Path

import torch

stand_in = types.ModuleType("torchaudio")
stand_in.__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
sys.modules["torchaudio"] = stand_in

from llamafactory.train.tuner import run_exp  # noqa: E402


def main(model: str, documents: str, output: str, steps: int, rows: int, length: int) -> None:
    torch.set_num_threads(1)
    folder = Path(output).with_suffix(".data")
    folder.mkdir(parents=True, exist_ok=True)
    about = {"corpus": {"file_name": documents, "columns": {"prompt": "text"}}}
    (folder / "dataset_info.json").write_text(json.dumps(about))
    run_exp(
        {
            "stage": "pt", "do_train": True, "model_name_or_path": model, "dataset": "corpus", "dataset_dir": str(folder),
            "finetuning_type": "lora", "lora_rank": 16, "lora_alpha": 32, "lora_dropout": 0.0, "lora_target": "all",
            "cutoff_len": length, "packing": True, "output_dir": output, "per_device_train_batch_size": rows,
            "gradient_accumulation_steps": 1, "max_steps": steps, "learning_rate": 1e-4, "use_cpu": True,
            "report_to": "none", "save_strategy": "no", "logging_steps": 10**6, "flash_attn": "sdpa",
            "template": "default", "disable_gradient_checkpointing": True, "overwrite_cache": True,
        }
    )  # fmt: skip
    print(f"real tokens {steps * rows * length}")


if __name__ == "__main__":
    main(*sys.argv[1:4], *map(int, sys.argv[4:7]))
