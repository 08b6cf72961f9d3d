"""The command line, but each process notes in ``drawn-RANK`` how many images it drew."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from dd2_fast.cli import main
from dd2_fast.training.samples import make_shards as module

make_shards = module.make_shards


def counted(*arguments: Any, **settings: Any) -> int:
    drawn = make_shards(*arguments, **settings)
    Path(f"drawn-{os.environ['RANK']}").write_text(str(drawn))
    return drawn


if __name__ == "__main__":
    module.make_shards = counted
    sys.exit(main())
