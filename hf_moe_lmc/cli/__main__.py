"""`python -m hf_moe_lmc.cli`."""

import sys

from .main import main

sys.exit(main())
