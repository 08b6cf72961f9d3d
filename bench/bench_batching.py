"""Requests of 64 callers, each of whom asks again when it has its image, against full batches.

pytest bench/bench_batching.py --benchmark-only: the time of five images for each caller;
``extra_info`` has the share of full batches' throughput and the 99th percentile of the waits. Full
batches are those of the same sampler when all requests are there before the first is drawn; beside
them the time of a batch in the main thread, which has torch's pool of threads to itself.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable
from concurrent.futures import wait
from typing import Any

import pytest
import torch

from dd2_fast.sampling import BatchingSampler, Sampler

CALLERS, EACH, DELAY = 64, 5, 0.005  # seconds
FULL = 5  # batches that wait at once


@pytest.mark.parametrize("model", ["digits", "fashion"])
@pytest.mark.parametrize("max_batch", [64, 32])
def bench_64_callers(benchmark: Any, model: str, max_batch: int) -> None:
    sampler = Sampler(model, batch_size=max_batch)
    labels = [i % 10 for i in range(max_batch)]
    sampler.warm_up([max_batch])
    alone = quickest(lambda: sampler(labels, seed=[0] * max_batch))
    waits: list[float] = []

    async def caller(images: BatchingSampler, number: int) -> list[Any]:
        found = []
        for seed in range(EACH):
            start = time.perf_counter()
            found.append(await images.draw(number % 10, seed=seed))
            waits.append(time.perf_counter() - start)
        return found

    async def everybody(images: BatchingSampler) -> list[list[Any]]:
        return await asyncio.gather(*(caller(images, number) for number in range(CALLERS)))

    with BatchingSampler(sampler, max_delay_ms=1000 * DELAY) as images:

        def full() -> None:
            asked = [images.submit(i % 10, seed=i) for i in range(FULL * max_batch)]
            wait(asked)

        full()
        batch = quickest(full) / FULL

        def run() -> list[list[Any]]:
            return asyncio.run(everybody(images))

        for number, found in enumerate(run()):  # right before it is timed
            wanted = sampler([number % 10] * EACH, seed=list(range(EACH)))
            torch.testing.assert_close(torch.stack(found), wanted, atol=1e-5, rtol=0)
        waits.clear()
        benchmark.pedantic(run, rounds=3)
    if benchmark.stats is not None:
        took = benchmark.stats.stats.min
        benchmark.extra_info.update(
            batch_ms=1e3 * batch,
            alone_ms=1e3 * alone,
            share=CALLERS * EACH / max_batch * batch / took,
            p99_ms=1e3 * statistics.quantiles(waits, n=100)[98],
        )
        print({name: round(value, 3) for name, value in benchmark.extra_info.items()})


def quickest(call: Callable[[], object]) -> float:
    """Seconds, the least of three."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)
