"""`raystyle attribute` as a job: `ray job submit --working-dir . -- python jobs/attribute.py --config … `."""

import sys

from raystyle.cli import main

sys.exit(main(["attribute", *sys.argv[1:]]))
