"""The command line, but whatever the first process alone writes at the end takes seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from dd2_fast.cli import main
from dd2_fast.sampling import NpzFile
from dd2_fast.training.recipes import distil
from dd2_fast.training.samples import make_shards

_SECONDS = 3.0


def slowly(function: Callable[..., Any]) -> Callable[..., Any]:
    def slow(*arguments: Any, **settings: Any) -> Any:
        time.sleep(_SECONDS)
        return function(*arguments, **settings)

    return slow


if __name__ == "__main__":
    distil.save = slowly(distil.save)
    make_shards._finish = slowly(make_shards._finish)
    NpzFile.finish = slowly(NpzFile.finish)  # type: ignore[method-assign]
    sys.exit(main())
