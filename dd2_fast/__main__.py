"""`python -m dd2_fast`: the command line."""

from __future__ import annotations

import sys

from dd2_fast.cli import main

if __name__ == "__main__":
    sys.exit(main())
