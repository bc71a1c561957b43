"""`raystyle sample` as a job: `ray job submit --working-dir . -- python jobs/sample.py --config … `."""

import sys

from raystyle.cli import main

sys.exit(main(["sample", *sys.argv[1:]]))
