"""A network called at a few fixed batch sizes, which compilation and CUDA graphs need."""

from __future__ import annotations

import bisect
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

Function = Callable[..., Tensor]


def bucket_sizes(largest: int) -> list[int]:
    """Return 1, 2, 4, ... and the largest batch itself: padding at most doubles the work."""
    sizes = [1]
    while sizes[-1] < largest:
        sizes.append(min(2 * sizes[-1], largest))
    return sizes


class BucketedCall:
    """``function`` of tensors ``[B, ...]``, or tuples or dicts of them, at every ``B`` up to the
    largest of its buckets.

    A batch between two buckets is padded with copies of its first row and the result is cut. With
    ``graphs`` each bucket is captured as a CUDA graph at its first use, all in one memory pool.

    Where that cannot be done it runs without, and a RuntimeWarning says why. Raises what the
    function raises. To be called outside autocast, whose cast weights a graph would not keep.
    """

    def __init__(self, function: Function, largest: int, *, graphs: bool = False) -> None:
        self._function, self._graphs = function, graphs
        self._sizes = bucket_sizes(largest)
        self._captured: dict[tuple[Any, ...], Function] = {}
        self._pool: Any = None

    def __call__(self, *arguments: Any) -> Tensor:
        function, inputs = self._function, arguments
        if not all(isinstance(value, Tensor) for value in arguments):
            flat, structure = tree_flatten(arguments)
            function, inputs = _nested(function, structure), tuple(flat)
        count = len(inputs[0])
        size = self._sizes[bisect.bisect_left(self._sizes, count)]
        if size > count:
            inputs = tuple(torch.cat([t, t[:1].expand(size - count, *t.shape[1:])]) for t in inputs)
        elif not self._graphs and torch.is_inference_mode_enabled():
            # As those padded, or the compiler would compile for each.
            inputs = tuple(t if t.is_inference() else t.clone() for t in inputs)
        result = self._replay(function, inputs) if self._graphs else function(*inputs)
        return result[:count]

    def _replay(self, function: Function, inputs: tuple[Tensor, ...]) -> Tensor:
        kind = tuple((t.dtype, t.shape) for t in inputs)
        with torch.cuda.device_of(inputs[0]), _turn_of(inputs[0].get_device()) as stream:
            if kind not in self._captured:
                if self._pool is None:
                    self._pool = torch.cuda.graph_pool_handle()
                self._captured[kind] = self._capture(function, inputs, stream)
            return self._captured[kind](*inputs)

    def _capture(self, function: Function, inputs: tuple[Tensor, ...], stream: Any) -> Function:
        try:
            return _CapturedCall(function, inputs, self._pool, stream)
        except CaptureError as error:
            warnings.warn(
                f"cuda_graphs: a batch of {len(inputs[0])} runs without a graph, because it cannot "
                f"be captured: {error}",
                RuntimeWarning,
                stacklevel=2,
            )
            return function


def _nested(function: Function, structure: TreeSpec) -> Function:
    """``function`` of the tensors that tuples and dicts among its arguments are made of."""
    return lambda *flat: function(*tree_unflatten(flat, structure))


class CaptureError(RuntimeError):
    """What a function does cannot be part of a CUDA graph."""


class _Turns:
    """One graph of a GPU after the other, whichever threads and streams call.

    A graph has one set of inputs, those of a call have one memory pool, and all that are captured
    on one stream have cuBLAS's workspace of that stream.
    """

    def __init__(self) -> None:
        # Not torch.cuda.graph's own stream, which is on the first GPU that was captured on.
        self._stream = torch.cuda.Stream()
        self._lock, self._done = threading.Lock(), torch.cuda.Event()

    @contextmanager
    def take(self) -> Iterator[Any]:
        """The stream to capture on; the caller's own waits for the last turn's, and ends this."""
        with self._lock:
            self._done.wait()
            try:
                yield self._stream
            finally:
                self._done.record()


_turns: dict[int, _Turns] = {}


def _turn_of(device: int) -> AbstractContextManager[Any]:
    """A turn on the current GPU, whose number is ``device``."""
    if device not in _turns:
        _turns.setdefault(device, _Turns())  # of several threads' the first
    return _turns[device].take()


class _CapturedCall:
    """One CUDA graph of a function, with the tensors it reads and the one it writes."""

    def __init__(
        self, function: Function, inputs: tuple[Tensor, ...], pool: Any, stream: Any
    ) -> None:
        self._inputs = [t.clone() for t in inputs]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):  # compiles, and lets libraries choose and allocate, outside
                function(*self._inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        try:
            # What the caller's other threads ask of CUDA meanwhile does not end the capture.
            with torch.cuda.graph(
                self._graph, pool=pool, stream=stream, capture_error_mode="thread_local"
            ):
                self._output = function(*self._inputs)
        except RuntimeError as error:
            raise CaptureError(str(error)) from error

    def __call__(self, *inputs: Tensor) -> Tensor:
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given)
        self._graph.replay()
        return self._output.clone()
