"""TRL's SFTTrainer on documents that are token ids: `bfd_split` isolates them, `wrapped` does not.

python run_trl.py MODEL DOCUMENTS.parquet OUTPUT STEPS ROWS LENGTH bfd_split|wrapped
"""

import sys

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def main(model: str, documents: str, output: str, steps: int, rows: int, length: int, packing: str) -> None:
    torch.set_num_threads(1)
    arguments = SFTConfig(
        output_dir=output, per_device_train_batch_size=rows, max_steps=steps, max_length=length, packing=True,
        packing_strategy=packing, use_cpu=True, gradient_checkpointing=False, report_to="none", save_strategy="no",
        logging_steps=10**6, disable_tqdm=True, learning_rate=1e-4,
    )  # fmt: skip
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="sdpa"),
        args=arguments,
        train_dataset=Dataset.from_parquet(documents),
        processing_class=AutoTokenizer.from_pretrained(model),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules=TARGETS),
    )
    real, collate = [0], trainer.data_collator

    def counted(batch: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        real[0] += sum(len(row["input_ids"]) for row in batch)
        return collate(batch)  # type: ignore[no-any-return]

    trainer.data_collator = counted
    trainer.train()
    print(f"real tokens {real[0]}")


if __name__ == "__main__":
    main(*sys.argv[1:4], *map(int, sys.argv[4:7]), sys.argv[7])
