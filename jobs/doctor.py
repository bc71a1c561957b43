"""`raystyle doctor` as a job, on every node: `ray job submit --working-dir . -- python jobs/doctor.py --ray_address auto`."""

import sys

from raystyle.cli import main

sys.exit(main(["doctor", *sys.argv[1:]]))
