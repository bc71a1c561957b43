"""`raystyle evaluate` as a job: `ray job submit --working-dir . -- python jobs/evaluate.py --config … `."""

import sys

from raystyle.cli import main

sys.exit(main(["evaluate", *sys.argv[1:]]))
