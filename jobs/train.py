"""`raystyle train` as a job: `ray job submit --working-dir . -- python jobs/train.py --config … `."""

import sys

from raystyle.cli import main

sys.exit(main(["train", *sys.argv[1:]]))
