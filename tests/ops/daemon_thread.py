"""Ends while daemon threads are in a compiled kernel, which comes back to an interpreter that is
gone; argv: the seconds that the interpreter's end takes."""

from __future__ import annotations

import sys
import threading
import time

import torch

from dd2_fast.ops.native import cpu_launcher
from dd2_fast.ops.nearest_code.native import NearestCodeParams

ROWS, DIM, CODES = 4096, 8, 64


class SlowEnd:
    """Holds what it needs: modules are empty by then."""

    sleep, seconds = staticmethod(time.sleep), float(sys.argv[1])

    def __del__(self) -> None:
        self.sleep(self.seconds)


def forever() -> None:
    x, codebook = torch.randn(ROWS, DIM), torch.randn(CODES, DIM)
    out = torch.empty(ROWS, dtype=torch.int64)
    params = NearestCodeParams(
        out=out.data_ptr(),
        x=x.data_ptr(),
        codebook=codebook.data_ptr(),
        rows=ROWS,
        vocabulary=CODES,
        dim=DIM,
    )
    launch = cpu_launcher("nearest_code")
    started.release()
    while True:
        launch(params)


if __name__ == "__main__":
    started = threading.Semaphore(0)
    for _ in range(4):
        threading.Thread(target=forever, daemon=True).start()
    for _ in range(4):
        started.acquire()
    time.sleep(0.05)
    sys.modules["slow_end"] = SlowEnd()  # type: ignore[assignment]
