"""Raw text to samples in one job: prepares, plans, trains, then continues the neutral prompt with base and adapter.

Takes `raystyle train`'s flags; what is done already is not done again.

    ray job submit --working-dir . -- python jobs/pipeline.py --config … --dataset_path … --output_dir …
"""

import sys

from raystyle.cli import main
from raystyle.config import TrainConfig
from raystyle.flags import parse

status = main(["train", *sys.argv[1:]])
if status == 0:
    config = parse(TrainConfig, sys.argv[1:])
    status = main(["sample", "--model_name_or_path", config.model_name_or_path, "--lora_path", config.output_dir])
sys.exit(status)
