"""`raystyle sweep` as a job: `ray job submit --working-dir . -- python jobs/sweep.py --config … `."""

import sys

from raystyle.cli import main

sys.exit(main(["sweep", *sys.argv[1:]]))
