"""The plain recipe with `datasets`: map the rules over the texts; for rows, tokenize and group as `run_clm` does.

    python run_datasets.py clean|rows INPUT_DIR OUTPUT_DIR TOKENIZER_DIR NUM_CORES

`group_texts` drops the remainder of every batch.
"""

import os
import sys
from itertools import chain
from typing import Any

from datasets import load_dataset
from rules import clean
from tokenizers import Tokenizer

ROW, BATCH = 4096, 100


def main(task: str, source: str, output: str, tokenizer_dir: str, num_cores: int) -> None:
    os.makedirs(output, exist_ok=True)
    files = [os.path.join(source, name) for name in sorted(os.listdir(source))]
    texts = load_dataset("json", data_files=files, split="train", cache_dir=f"{output}/cache", num_proc=num_cores)
    options: dict[str, Any] = {"batched": True, "batch_size": BATCH, "num_proc": num_cores}
    texts = texts.map(lambda batch: {"text": [clean(text) for text in batch["text"]]}, **options)
    if task == "clean":
        texts.to_parquet(f"{output}/documents.parquet")
        return
    tokenizer = Tokenizer.from_file(f"{tokenizer_dir}/tokenizer.json")
    end = tokenizer.token_to_id("<|endoftext|>")

    def tokenize(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {"input_ids": [[*encoding.ids, end] for encoding in tokenizer.encode_batch_fast(batch["text"])]}

    def group_texts(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        ids = list(chain.from_iterable(batch["input_ids"]))
        return {"input_ids": [ids[i : i + ROW] for i in range(0, len(ids) // ROW * ROW, ROW)]}

    tokens = texts.map(tokenize, remove_columns=texts.column_names, **options)
    tokens.map(group_texts, **options).to_parquet(f"{output}/rows.parquet")


if __name__ == "__main__":
    main(*sys.argv[1:5], num_cores=int(sys.argv[5]))
