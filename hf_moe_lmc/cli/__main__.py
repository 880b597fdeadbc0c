"""`python -m hf_moe_lmc.cli`."""

import sys

from .run import main

sys.exit(main())
