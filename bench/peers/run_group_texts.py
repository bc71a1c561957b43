"""The recipe of transformers' own examples: documents joined, cut into rows (`group_texts`), Trainer and PEFT; not isolated.

python run_group_texts.py MODEL DOCUMENTS.parquet OUTPUT STEPS ROWS LENGTH
"""

import sys
from itertools import chain

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments, default_data_collator

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def main(model: str, documents: str, output: str, steps: int, rows: int, length: int) -> None:
    torch.set_num_threads(1)

    def group_texts(batch: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        joined = list(chain.from_iterable(batch["input_ids"]))
        cut = [joined[start : start + length] for start in range(0, len(joined) - length + 1, length)]
        return {"input_ids": cut, "labels": [list(row) for row in cut]}

    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="sdpa")
    arguments = TrainingArguments(
        output_dir=output, per_device_train_batch_size=rows, max_steps=steps, use_cpu=True, report_to="none",
        save_strategy="no", logging_steps=10**6, disable_tqdm=True, learning_rate=1e-4,
    )  # fmt: skip
    Trainer(
        model=get_peft_model(base, LoraConfig(r=16, lora_alpha=32, target_modules=TARGETS, task_type="CAUSAL_LM")),
        args=arguments,
        train_dataset=Dataset.from_parquet(documents).map(group_texts, batched=True, remove_columns=["input_ids"]),
        data_collator=default_data_collator,
    ).train()
    print(f"real tokens {steps * rows * length}")


if __name__ == "__main__":
    main(*sys.argv[1:4], *map(int, sys.argv[4:7]))
