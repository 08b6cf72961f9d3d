"""One image a request, from any number of threads or coroutines, drawn in batches."""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ..condition import Rows, integer
from ..ops.checks import check_number
from .arguments import image_seed
from .outputs import check_output
from .sampler import Sampler

if TYPE_CHECKING:
    from typing_extensions import Self


_LONGEST = 3_600_000  # milliseconds


@dataclass(frozen=True)
class _Request:
    label: Rows  # of one image
    seed: int
    index: int
    due: float  # by time.monotonic
    image: Future[Any] | asyncio.Future[Any]  # a coroutine's is settled by its loop alone

    def starts(self) -> bool:
        """Whether nobody has taken it back; a future of a thread's cannot be from here on."""
        if isinstance(self.image, asyncio.Future):
            return not self.image.cancelled()
        return self.image.set_running_or_notify_cancel()


class BatchingSampler:
    """A sampler for many callers who want one image each, such as the requests of a web service.

    A thread of its own draws a batch when `max_batch` requests wait, or when the first of them has
    waited `max_delay_ms`. Every caller gets the image that `sampler(label, seed=seed)` gives: the
    same bits where the sampler draws image by image (small float32 generators on a CPU), else up to
    the rounding that batches of other sizes have, which `Sampler` has everywhere. Who gives up
    before the batch is drawn takes no place in it. Where drawing fails the batch is halved until
    those are alone whose images fail, and they alone get the error.

    `with BatchingSampler(...) as images:` closes it at the end. Threads, coroutines of any event
    loop, and both at once may submit. Fork first, then make it: threads are not forked. What is
    waiting when the interpreter ends, or when the last reference goes, is drawn first.

    Args:
        sampler: draws them; `sampler.warm_up([1, max_batch])` first, or early callers wait longer.
        max_batch: images of a batch; None: the sampler's batch_size, which it may not exceed.
        max_delay_ms: milliseconds that a request waits for others.
        output: of every image, as of `Sampler`: "pt" [c, H, W], "np" [H, W, c], "pil", "png" ...

    Raises TypeError or ValueError for arguments out of range.
    """

    def __init__(
        self,
        sampler: Sampler,
        *,
        max_batch: int | None = None,
        max_delay_ms: float = 5.0,
        output: str = "pt",
    ) -> None:
        if not isinstance(sampler, Sampler):
            raise TypeError(f"sampler: expected a Sampler, got {type(sampler).__name__}")
        most = sampler.batch_size
        max_batch = most if max_batch is None else integer(max_batch, "max_batch")
        if not 1 <= max_batch <= most:
            raise ValueError(
                f"max_batch: expected 1 to {most}, the sampler's batch_size, got {max_batch}"
            )
        if not 0 <= check_number("max_delay_ms", max_delay_ms) <= _LONGEST:
            raise ValueError(f"max_delay_ms: expected 0 to {_LONGEST}, got {max_delay_ms}")
        check_output(output)
        self._queue = _Queue(max_batch)
        self._delay = max_delay_ms / 1000
        self._sampler = sampler
        self._thread = threading.Thread(
            target=_work, args=(self._queue, sampler, output), name="BatchingSampler", daemon=True
        )
        self._thread.start()
        # Nothing that the thread has refers to self, which may go; at exit, too, it ends cleanly.
        self._finish = weakref.finalize(self, _finish, self._queue, self._thread)

    def submit(self, label: Any, *, seed: int = 0, index: int = 0) -> Future[Any]:
        """Ask for an image; return its future at once.

        The future's callbacks run in the drawing thread, so they should be short. `cancel` takes a
        request back that is not being drawn yet.

        Args:
            label: a class; of a model that is conditioned on something else, one row of that.
            seed, index: the image is `sampler(label, seed=seed, indices=[index])`'s.

        Raises TypeError or ValueError for a wrong argument, RuntimeError once it is closed and in a
        process that was forked from its own. The future raises NotFiniteError, as `Sampler` does.
        """
        image: Future[Any] = Future()
        self._ask(label, seed, index, image)
        return image

    async def draw(self, label: Any, *, seed: int = 0, index: int = 0) -> Any:
        """Return to a coroutine the image that `submit` promises; cancelling takes it back."""
        image: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._ask(label, seed, index, image)
        return await image

    def _ask(self, label: Any, seed: int, index: int, image: Any) -> None:
        if not self._thread.is_alive() and not self._queue.closed:
            raise RuntimeError(
                "BatchingSampler: expected the process that made it, got one forked from it, which "
                "has no thread that draws; make it after the fork"
            )
        condition = self._sampler.condition
        rows = self._sampler.check_labels(label)
        if (count := condition.count(rows)) != 1:
            raise ValueError(f"label: expected one, got {count}; submit each")
        place = integer(index, "index")
        if not 0 <= place < 1 << 63:
            raise ValueError(f"index: expected 0 to {(1 << 63) - 1}, got {place}")
        due = time.monotonic() + self._delay
        self._queue.put(_Request(rows, image_seed(seed), place, due, image))

    def close(self) -> None:
        """Draw what is waiting, take no more, and end the thread; a second call does nothing."""
        self._finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()


class _Queue:
    """Requests in the order they came, until it is closed."""

    def __init__(self, max_batch: int) -> None:
        self.closed = False
        self._max_batch = max_batch
        self._waiting: deque[_Request] = deque()
        self._changed = threading.Condition()

    def put(self, request: _Request) -> None:
        with self._changed:
            if self.closed:
                raise RuntimeError("BatchingSampler: expected an open one, got one that is closed")
            self._waiting.append(request)
            if len(self._waiting) in (1, self._max_batch):  # between them nothing is decided
                self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self.closed = True
            self._changed.notify()

    def batch(self) -> list[_Request]:
        """The next requests to draw, which nobody has taken back and nobody can any more; none
        once it is closed and empty."""
        with self._changed:
            while True:
                left = self._time_left()
                if left is not None and left <= 0 and (batch := self._take()):
                    return batch
                if self.closed and not self._waiting:
                    return []
                if left is None or left > 0:
                    self._changed.wait(left)

    def _time_left(self) -> float | None:
        """Seconds until a batch is to be drawn; None: nothing waits."""
        if not self._waiting:
            return None
        if self.closed or len(self._waiting) >= self._max_batch:
            return 0.0
        return self._waiting[0].due - time.monotonic()

    def _take(self) -> list[_Request]:
        batch: list[_Request] = []
        while self._waiting and len(batch) < self._max_batch:
            one = self._waiting.popleft()
            if one.starts():
                batch.append(one)
        return batch


def _finish(queue: _Queue, thread: threading.Thread) -> None:
    if not thread.is_alive():  # finished, or left behind by a fork, perhaps with the lock
        queue.closed = True
        return
    queue.close()
    if thread is not threading.current_thread():  # as where the last reference was a callback's
        thread.join()


def _work(queue: _Queue, sampler: Sampler, output: str) -> None:
    """Draw batches until the queue is closed and empty."""
    while batch := queue.batch():
        _serve(batch, sampler, output)
        del batch  # or its images would stay until the next


def _serve(batch: Sequence[_Request], sampler: Sampler, output: str) -> None:
    """Give every request its image, or the error that it meets alone."""
    try:
        images = sampler(
            sampler.condition.cat([one.label for one in batch]),
            seed=[one.seed for one in batch],
            indices=[one.index for one in batch],
            output=output,
        )
    except BaseException as error:  # whatever it is, somebody waits for it
        if len(batch) == 1:
            _settle(batch, [error])
            return
        half = len(batch) // 2
        _serve(batch[:half], sampler, output)
        _serve(batch[half:], sampler, output)
        return
    _settle(batch, [_own(image) for image in images])


def _settle(batch: Sequence[_Request], results: Sequence[Any]) -> None:
    """Give every request its image or error; coroutines those of their loop at once, as to wake a
    loop for each takes longer than small models do to draw it."""
    of_loops: dict[asyncio.AbstractEventLoop, list[tuple[Any, Any]]] = {}
    of_threads = []
    for one, result in zip(batch, results, strict=True):
        if isinstance(one.image, asyncio.Future):
            of_loops.setdefault(one.image.get_loop(), []).append((one.image, result))
        else:
            of_threads.append((one.image, result))
    for loop, pairs in of_loops.items():
        with suppress(RuntimeError):  # a loop that is closed waits for nothing
            loop.call_soon_threadsafe(_set_all, pairs)
    _set_all(of_threads)


def _set_all(pairs: Sequence[tuple[Any, Any]]) -> None:
    for image, result in pairs:
        settle = image.set_exception if isinstance(result, BaseException) else image.set_result
        with suppress(BaseException):  # whatever a caller's callback does; one that gave up
            settle(result)


def _own(image: Any) -> Any:
    """An image without the memory of the others of its batch."""
    if isinstance(image, Tensor):
        return image.clone()
    return image.copy() if isinstance(image, np.ndarray) else image
