"""Calls at fixed batch sizes: what the network sees, and that its result is unchanged."""

from __future__ import annotations

import threading
import time
import warnings

import pytest
import torch
from torch import Tensor

from dd2_fast.sampling import Sampler, buckets
from dd2_fast.sampling.buckets import BucketedCall, bucket_sizes

LABELS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]


def test_sizes_double_up_to_the_largest() -> None:
    assert bucket_sizes(1) == [1]
    assert bucket_sizes(8) == [1, 2, 4, 8]
    assert bucket_sizes(12) == [1, 2, 4, 8, 12]


def test_the_function_sees_bucket_sizes_alone_and_the_result_is_cut() -> None:
    seen = []

    def function(x: Tensor, y: Tensor) -> Tensor:
        seen.append((len(x), len(y)))
        return x + y[:, None]

    call = BucketedCall(function, 6)
    for count in range(1, 7):
        x, y = torch.randn(count, 3), torch.randn(count)
        assert torch.equal(call(x, y), x + y[:, None])
    assert seen == [(size, size) for size in (1, 2, 4, 4, 6, 6)]


@pytest.mark.slow
def test_compiled_images_are_the_eager_ones(generator) -> None:
    """Two batches of 4 and one of 3, padded."""
    sampler = Sampler(generator, batch_size=4)
    eager = sampler(LABELS, seed=3)
    sampler.compile(backend="aot_eager")
    torch.testing.assert_close(sampler(LABELS, seed=3), eager, atol=1e-5, rtol=0)
    with pytest.raises(TypeError, match="compile: expected keyword arguments"):
        sampler.compile("inductor")


def test_a_sampler_is_a_module(generator) -> None:
    sampler = Sampler(generator, batch_size=4)
    eager = sampler(LABELS, seed=3)
    assert sampler.tokenizer in list(sampler.modules())
    half = sampler.to(torch.bfloat16)
    assert half is sampler and generator.head.output.weight.dtype == torch.bfloat16
    images = sampler(LABELS, seed=3)
    assert images.dtype == torch.float32
    assert 0 < (images - eager).abs().mean() < 0.05
    assert Sampler(generator, dtype=torch.float32).generator.head.output.weight.dtype == eager.dtype


def test_graphs_need_cuda(generator) -> None:
    with pytest.raises(ValueError, match="cuda_graphs: expected networks on CUDA, got cpu"):
        Sampler(generator, cuda_graphs=True)(LABELS)


def pretend_cuda(monkeypatch: pytest.MonkeyPatch, log: list[tuple[str, str]]) -> None:
    """Graphs without a GPU: what is done with the event of the turns goes to the log, with the
    thread, which stands for its stream."""

    class Event:
        def wait(self) -> None:
            log.append(("wait", threading.current_thread().name))

        def record(self) -> None:
            log.append(("record", threading.current_thread().name))

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "Stream", object)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(buckets, "_turns", {})


def test_threads_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph's inputs are read and its result copied before another thread writes them; what its
    stream still has to do, the other's waits for. Also between the graphs of two calls."""
    log: list[tuple[str, str]] = []
    pretend_cuda(monkeypatch, log)

    class Captured:
        def __init__(self, function, inputs, pool, stream) -> None:
            self.function, self.own = function, inputs[0].clone()

        def __call__(self, given: Tensor) -> Tensor:
            self.own.copy_(given)
            log.append(("replay", threading.current_thread().name))
            time.sleep(0.002)
            return self.function(self.own)

    monkeypatch.setattr(buckets, "_CapturedCall", Captured)
    calls = [BucketedCall(lambda x: 2 * x, 4, graphs=True) for _ in range(2)]
    wrong = []

    def work(number: int) -> None:
        for turn in range(10):
            x = torch.full((4,), 100.0 * number + turn)
            wrong.append(not torch.equal(calls[turn % 2](x), 2 * x))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [False] * 30
    for i in range(0, len(log), 3):
        names = {thread for _, thread in log[i : i + 3]}
        assert [event for event, _ in log[i : i + 3]] == ["wait", "replay", "record"]
        assert len(names) == 1, "another thread came between"
    assert len(log) == 90


def test_a_failing_call_ends_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[tuple[str, str]] = []
    pretend_cuda(monkeypatch, log)
    monkeypatch.setattr(buckets, "_CapturedCall", lambda function, *rest: function)
    call = BucketedCall(lambda x: x.view(-1, 3), 4, graphs=True)
    with pytest.raises(RuntimeError, match="shape"):
        call(torch.zeros(4))
    assert [event for event, _ in log] == ["wait", "record"]
    assert call(torch.zeros(2, 3)).shape == (2, 3)


def test_what_cannot_be_captured_runs_without(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = []

    def refuse(function, inputs, pool, stream):
        attempts.append(len(inputs[0]))
        raise buckets.CaptureError("operation not permitted when stream is capturing")

    pretend_cuda(monkeypatch, [])
    monkeypatch.setattr(buckets, "_CapturedCall", refuse)
    call = BucketedCall(lambda x: 2 * x, 4, graphs=True)
    x = torch.arange(3.0)
    with pytest.warns(RuntimeWarning, match="batch of 4 runs without a graph.*not permitted"):
        assert torch.equal(call(x), 2 * x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(call(x), 2 * x)
    assert attempts == [4], "one attempt a bucket"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
def test_replayed_images_are_the_eager_ones(generator) -> None:
    sampler = Sampler(generator, batch_size=4, device="cuda")
    eager = sampler(LABELS, seed=3)
    graphs = Sampler(generator, batch_size=4, cuda_graphs=True)
    for _ in range(2):  # captured, then replayed
        torch.testing.assert_close(graphs(LABELS, seed=3), eager, atol=1e-5, rtol=0)
    first = graphs(LABELS[:2], seed=3, output="latent")
    kept = first.clone()
    graphs(LABELS[2:4], seed=3, output="latent")
    assert torch.equal(first, kept), "a replay must not overwrite earlier results"
