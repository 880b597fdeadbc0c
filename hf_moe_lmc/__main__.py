"""`python -m hf_moe_lmc`: the command line."""

import sys

from .cli import main

sys.exit(main())
