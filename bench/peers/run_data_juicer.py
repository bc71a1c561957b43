"""Data-Juicer's recipe: its own operators in a config, run by its default executor or on Ray.

    python run_data_juicer.py clean|rows INPUT_DIR OUTPUT_DIR TOKENIZER_DIR NUM_CORES [ray]

It has no operator that makes rows: `rows` counts tokens, which is tokenizing without writing. On Ray it reads JSON with
pyarrow, whose blocks must be larger than the longest row.
"""

import json
import os
import sys

from rules import RULES

READ_BLOCK = 64 << 20


def main(task: str, source: str, output: str, tokenizer: str, num_cores: int, executor: str = "default") -> None:
    os.makedirs(output, exist_ok=True)
    process = [
        {
            "replace_content_mapper": {
                "pattern": [pattern for _, pattern, _ in RULES],
                "repl": [replacement for *_, replacement in RULES],
            }
        }
    ]
    if task == "rows":
        process.append({"token_num_filter": {"hf_tokenizer": tokenizer, "min_num": 0}})
    config = {
        "project_name": "bench",
        "dataset_path": source,
        "export_path": f"{output}/documents" if executor == "ray" else f"{output}/documents.jsonl",
        "export_type": "jsonl",
        "work_dir": f"{output}/work",
        "executor_type": executor,
        "np": num_cores,
        "keep_stats_in_res_ds": True,
        "open_tracer": False,
        "process": process,
    }
    if executor == "ray":
        config |= {"ray_address": "local", "read_options": {"block_size": READ_BLOCK}}
    path = f"{output}/config.json"
    with open(path, "w", encoding="utf-8") as file:
        json.dump(config, file, ensure_ascii=False)
    from data_juicer.tools.process_data import main as process_data

    sys.argv = ["dj-process", "--config", path]
    process_data()


if __name__ == "__main__":
    main(*sys.argv[1:5], int(sys.argv[5]), *sys.argv[6:])
