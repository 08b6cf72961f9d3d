"""Requests of 64 callers, each of whom asks again when it has its image, against full batches.

pytest bench/bench_batching.py --benchmark-only: the time of five images for each caller;
``extra_info`` has the share of full batches' throughput and the 99th percentile of the waits. Full
batches are those of the same sampler when all requests are there before the first is drawn; they
and the callers take turns, since the machine's pace drifts.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from concurrent.futures import wait
from contextlib import closing
from typing import Any

import pytest
import torch

from dd2_fast.sampling import BatchingSampler, Sampler

CALLERS, EACH, DELAY = 64, 5, 0.01  # seconds


@pytest.mark.parametrize("model", ["digits", "fashion"])
@pytest.mark.parametrize("max_batch", [64, 32])
def bench_64_callers(benchmark: Any, model: str, max_batch: int) -> None:
    sampler = Sampler(model, batch_size=max_batch)
    sampler.warm_up([max_batch])
    waits: list[float] = []
    times: list[float] = []  # of as many images in full batches

    async def caller(images: BatchingSampler, number: int) -> list[Any]:
        found = []
        for seed in range(EACH):
            start = time.perf_counter()
            found.append(await images.draw(number % 10, seed=seed))
            waits.append(time.perf_counter() - start)
        return found

    async def everybody(images: BatchingSampler) -> list[list[Any]]:
        return await asyncio.gather(*(caller(images, number) for number in range(CALLERS)))

    loop = asyncio.new_event_loop()  # one for the life of a service
    with closing(loop), BatchingSampler(sampler, max_delay_ms=1000 * DELAY) as images:

        def full() -> None:
            start = time.perf_counter()
            wait([images.submit(i % 10, seed=i) for i in range(CALLERS * EACH)])
            times.append(time.perf_counter() - start)

        def run() -> list[list[Any]]:
            return loop.run_until_complete(everybody(images))

        for number, found in enumerate(run()):  # right before it is timed
            wanted = sampler([number % 10] * EACH, seed=list(range(EACH)))
            torch.testing.assert_close(torch.stack(found), wanted, atol=1e-5, rtol=0)
        waits.clear()
        benchmark.pedantic(run, setup=full, rounds=5)
    if benchmark.stats is not None:
        whole = statistics.median(times)
        benchmark.extra_info.update(
            batch_ms=1e3 * whole * max_batch / (CALLERS * EACH),
            share=whole / benchmark.stats.stats.median,
            p99_ms=1e3 * statistics.quantiles(waits, n=100)[98],
        )
        print({name: round(value, 3) for name, value in benchmark.extra_info.items()})
