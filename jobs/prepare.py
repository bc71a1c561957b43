"""`raystyle prepare` as a job: `ray job submit --working-dir . -- python jobs/prepare.py --config … `."""

import sys

from raystyle.cli import main

sys.exit(main(["prepare", *sys.argv[1:]]))
