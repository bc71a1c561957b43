"""Raw text to a judged adapter, and to a service: prepares, plans, trains and evaluates in one job, from one config.

Takes `raystyle train`'s flags, and `--deploy FILE`: a Serve config such as jobs/configs/serve.yaml, given to `serve deploy`
when all is well. What is done already is not done again: prepared rows, a finished training, measured checkpoints.

    ray job submit --working-dir . -- python jobs/pipeline.py --config … --dataset_path … --output_dir …
"""

import os
import subprocess
import sys

from raystyle.cli import main
from raystyle.config import TrainConfig
from raystyle.flags import parse
from raystyle.storage import exists, join, read_json

# What of a training's flags its evaluation takes, too.
SHARED = (
    "model_name_or_path", "tokenizer_name_or_path", "trust_remote_code", "contrast_path", "eval_style", "eval_timeout_s",
    "ray_address", "shared_paths",
)  # fmt: skip
words = sys.argv[1:]
deploy = None
if "--deploy" in words:
    at = words.index("--deploy")
    deploy = "".join(words[at + 1 : at + 2])
    del words[at : at + 2]
    if not os.path.isfile(deploy):  # `serve deploy` would take a name that is no file for a Python module
        print(f"raystyle: error: `--deploy {deploy}` is not a file\nhint: give a Serve config", file=sys.stderr)
        sys.exit(2)

status = main(["train", *words])
if status == 0 and "--help" not in words and "-h" not in words:
    config = parse(TrainConfig, words)
    # `train` measures its checkpoints; where that failed or was left out, this says why, and fails. A stream keeps no
    # text to judge them by.
    judged = join(config.output_dir, "evaluation.json")
    if config.eval_style != "off" and not config.streaming and (not exists(judged) or read_json(judged)["failed"]):
        evaluated = ["evaluate", "--lora_path", config.output_dir]
        for name in SHARED:
            values = getattr(config, name)
            values = values if isinstance(values, tuple) else (values,)
            if values not in [(), (None,)]:
                evaluated += [f"--{name}", *map(str, values)]
        status = main(evaluated)
if status == 0 and deploy:
    status = subprocess.run(["serve", "deploy", deploy]).returncode
sys.exit(status)
