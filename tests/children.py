"""Forked children that hold something until they are killed."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager


@contextmanager
def holding(context: AbstractContextManager) -> Iterator[int]:
    """A child that has entered ``context``; it is killed at the end of the block, as by kill -9."""
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with context:
                os.write(tell, b"in")
                signal.pause()
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        os._exit(1)
    os.close(tell)
    try:
        assert os.read(told, 2) == b"in", "the child did not get there"
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(told)
