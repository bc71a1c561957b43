"""`python -m raystyle VERB` does what `raystyle VERB` does."""

import sys

from raystyle.cli import main

sys.exit(main(sys.argv[1:]))
