"""Calls at fixed batch sizes: what the network sees, and that its result is unchanged."""

from __future__ import annotations

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


def test_what_cannot_be_captured_runs_without(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = []

    def refuse(function, inputs, pool):
        attempts.append(len(inputs[0]))
        raise buckets.CaptureError("operation not permitted when stream is capturing")

    monkeypatch.setattr(buckets, "_CapturedCall", refuse)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
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
