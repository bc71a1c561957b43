"""`raystyle serve` as a job: `ray job submit --no-wait --working-dir . -- python jobs/serve.py --config …`.

It serves until the job is stopped. For a service that outlives its job, `serve deploy jobs/configs/serve.yaml`.
"""

import sys

from raystyle.cli import main

sys.exit(main(["serve", *sys.argv[1:]]))
