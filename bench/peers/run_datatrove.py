"""datatrove's recipe: a formatter with the rules, JSON lines out; or its tokenizer behind the formatter.

    python run_datatrove.py clean|rows INPUT_DIR OUTPUT_DIR TOKENIZER_DIR NUM_CORES

Its rows are windows over the flat token files, cut when they are read. Documents are not shuffled and the batch is small:
with the default of 10,000 documents a batch holds everything.
"""

import os
import sys

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.formatters.base import BaseFormatter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer
from datatrove.pipeline.writers import JsonlWriter
from rules import clean


class Clean(BaseFormatter):
    name = "rules"

    def format(self, text: str) -> str:
        return clean(text)


def main(task: str, source: str, output: str, tokenizer: str, num_cores: int) -> None:
    last = (
        JsonlWriter(f"{output}/documents", compression=None)
        if task == "clean"
        else DocumentTokenizer(
            f"{output}/tokens",
            f"{tokenizer}/tokenizer.json",
            eos_token="<|endoftext|>",
            batch_size=100,
            shuffle_documents=False,
        )
    )
    LocalPipelineExecutor(
        [JsonlReader(source), Clean(), last],
        tasks=len(os.listdir(source)),
        workers=num_cores,
        logging_dir=f"{output}/logs",
    ).run()


if __name__ == "__main__":
    main(*sys.argv[1:5], num_cores=int(sys.argv[5]))
