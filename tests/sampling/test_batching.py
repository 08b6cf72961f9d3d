"""Requests of many callers in batches: each gets its own image, and none the fault of another."""

from __future__ import annotations

import asyncio
import gc
import os
import statistics
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models.test_dd2_families import TEACHERS, tiny_generator
from processes import run_python

from dd2_fast.checkpoints import load_bundle
from dd2_fast.sampling import BatchingSampler, Sampler, resolve_path

WAIT = 300  # seconds that nothing here takes


class Recorded(Sampler):
    """A sampler that notes its batches and, where told to, waits in them for `going_on`."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.batches: list[list[int]] = []
        self.drawing, self.going_on = threading.Event(), threading.Event()
        self.going_on.set()

    def forward(self, labels: Any, **settings: Any) -> Any:
        self.batches.append(list(settings["seed"]))
        self.drawing.set()
        assert self.going_on.wait(WAIT)
        return super().forward(labels, **settings)


def held(images: BatchingSampler, sampler: Recorded) -> Future[Any]:
    """A request that is being drawn until `sampler.going_on` is set."""
    sampler.going_on.clear()
    sampler.drawing.clear()
    first = images.submit(0)
    assert sampler.drawing.wait(WAIT)
    return first


@pytest.mark.parametrize("output", ["pt", "np", "png", "tokens"])
def test_threads_get_their_own_images(output: str) -> None:
    alone, requests = Sampler("digits"), [(i % 10, 3 * i - 40, i % 3) for i in range(64)]
    sampler = Recorded("digits")
    with (
        BatchingSampler(sampler, max_batch=16, max_delay_ms=20, output=output) as images,
        ThreadPoolExecutor(64) as callers,
    ):
        found = list(
            callers.map(lambda r: images.submit(r[0], seed=r[1], index=r[2]).result(WAIT), requests)
        )
    for image, (label, seed, index) in zip(found, requests, strict=True):
        wanted = alone(label, seed=seed, indices=[index], output=output)[0]
        if output == "png":
            assert image == wanted
        else:
            assert type(image) is type(wanted) and np.array_equal(image, wanted)
            memory = image.untyped_storage().nbytes() if output == "pt" else None
            assert memory in (None, wanted.nbytes), "one image holds no others in memory"
    assert sum(map(len, sampler.batches)) == 64 and max(map(len, sampler.batches)) <= 16


@pytest.mark.parametrize("family", ["var", "llamagen"])
def test_networks_of_torch_and_the_teachers_steps(family: str) -> None:
    generator = tiny_generator(family)
    generator.teacher = TEACHERS[family]()
    sampler = Sampler(generator, teacher_steps=3, top_k=5, batch_size=8)
    with BatchingSampler(sampler, max_delay_ms=50) as images:
        futures = [images.submit(i % 4, seed=i) for i in range(10)]
        for i, future in enumerate(futures):
            wanted = sampler(i % 4, seed=i)[0]
            torch.testing.assert_close(future.result(WAIT), wanted, atol=1e-5, rtol=0)


def test_coroutines_get_their_own_images() -> None:
    sampler, alone = Recorded("digits"), Sampler("digits")

    async def everybody() -> list[Any]:
        return await asyncio.gather(*(images.draw(i % 10, seed=i) for i in range(40)))

    with BatchingSampler(sampler, max_batch=20, max_delay_ms=3_000_000) as images:
        for _ in range(2):  # loops come and go
            found = asyncio.run(everybody())
    assert all(torch.equal(x, alone(i % 10, seed=i)[0]) for i, x in enumerate(found))
    assert [len(batch) for batch in sampler.batches] == [20] * 4


def test_a_loop_is_woken_once_a_batch_and_a_closed_one_harms_nobody() -> None:
    """Waking it for every image takes as long as the digits do."""
    sampler, alone = Recorded("digits"), Sampler("digits")
    gone = asyncio.new_event_loop()

    async def scene() -> tuple[list[Any], int]:
        loop, wakes = asyncio.get_running_loop(), 0

        def wake(*arguments: Any, **settings: Any) -> Any:
            nonlocal wakes
            wakes += 1
            return original(*arguments, **settings)

        original, loop.call_soon_threadsafe = loop.call_soon_threadsafe, wake  # type: ignore
        tasks = [asyncio.create_task(images.draw(1, seed=seed)) for seed in range(1, 10)]
        await asyncio.sleep(0.05)
        sampler.going_on.set()
        return await asyncio.gather(*tasks), wakes

    with BatchingSampler(sampler, max_batch=10, max_delay_ms=1) as images:
        first = held(images, sampler)
        lost = gone.create_task(images.draw(1, seed=0))
        gone.run_until_complete(asyncio.sleep(0.05))
        lost._log_destroy_pending = False  # type: ignore[attr-defined]
        gone.close()
        found, wakes = asyncio.run(scene())
        assert first.result(WAIT) is not None
    assert wakes == 1 and [len(batch) for batch in sampler.batches] == [1, 10]
    assert all(torch.equal(x, alone(1, seed=i)[0]) for i, x in enumerate(found, 1))


def test_a_batch_is_drawn_when_it_is_full_or_its_first_has_waited() -> None:
    sampler = Recorded("digits")
    with BatchingSampler(sampler, max_batch=4, max_delay_ms=3_000_000) as images:
        futures = [images.submit(1, seed=seed) for seed in range(9)]
        for future in futures[:8]:
            future.result(WAIT)
        assert not futures[8].done()
    assert sampler.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8]], "closing draws what waits"
    with BatchingSampler(sampler, max_batch=4, max_delay_ms=0) as images:
        images.submit(1, seed=10).result(WAIT)
    with BatchingSampler(sampler, max_delay_ms=1000) as images:
        start = time.monotonic()
        early = images.submit(1, seed=11)
        time.sleep(0.05)
        late = images.submit(1, seed=12)
        late.result(WAIT)
        assert early.done() and time.monotonic() - start > 0.99
    assert sampler.batches[3:] == [[10], [11, 12]]


def test_who_gives_up_takes_no_place_and_harms_nobody() -> None:
    sampler, alone = Recorded("digits"), Sampler("digits")
    with BatchingSampler(sampler, max_batch=4, max_delay_ms=1) as images:
        first = held(images, sampler)
        futures = [images.submit(1, seed=seed) for seed in range(8)]
        assert all(futures[i].cancel() for i in (0, 2, 3, 7)) and not first.cancel()
        sampler.going_on.set()
        for seed in (1, 4, 5, 6):
            assert torch.equal(futures[seed].result(WAIT), alone(1, seed=seed)[0])
        with pytest.raises(CancelledError):
            futures[0].result(WAIT)
        assert first.result(WAIT) is not None
        assert sampler.batches == [[0], [1, 4, 5, 6]]
        assert all(one.cancel() for one in [images.submit(1)])  # the only one that waits
        assert images.submit(2, seed=9).result(WAIT) is not None


def test_coroutines_that_give_up_while_and_before_they_are_drawn() -> None:
    sampler, alone = Recorded("digits"), Sampler("digits")

    async def scene() -> None:
        first = held(images, sampler)
        drawn = asyncio.wrap_future(first)
        tasks = [asyncio.create_task(images.draw(i, seed=i)) for i in range(5)]
        await asyncio.sleep(0.05)
        tasks[1].cancel()
        drawn.cancel()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(images.draw(5, seed=5), 0.01)
        sampler.going_on.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(found[1], asyncio.CancelledError)
        for i in (0, 2, 3, 4):
            assert torch.equal(found[i], alone(i, seed=i)[0])

    with BatchingSampler(sampler, max_delay_ms=1) as images:
        asyncio.run(scene())
        assert sampler.batches == [[0], [0, 2, 3, 4]]


def test_only_those_whose_images_fail_get_the_error() -> None:
    bundle, good = load_bundle(resolve_path("digits")), Sampler("digits")
    with torch.no_grad():
        bundle.generator.backbone.class_embedding.weight[4] = torch.nan
    sampler = Recorded(bundle)
    with BatchingSampler(sampler, max_batch=16, max_delay_ms=3_000_000) as images:
        futures = [images.submit(i % 10, seed=i) for i in range(16)]
        for i, future in enumerate(futures):
            if i % 10 == 4:
                with pytest.raises(FloatingPointError, match=rf"of seed {i} \(label 4\); its"):
                    future.result(WAIT)
            else:
                assert torch.equal(future.result(WAIT), good(i % 10, seed=i)[0])
    # 16, 8 + 8, then at most 4 + 4, 2 + 2 and 1 + 1 for each of the two.
    assert len(sampler.batches) <= 3 + 2 * 6


def test_callbacks_that_fail_harm_nobody(caplog: pytest.LogCaptureFixture) -> None:
    def fail(future: Future[Any]) -> None:
        raise SystemExit(1)

    with BatchingSampler(Sampler("digits"), max_delay_ms=20) as images:
        futures = [images.submit(1, seed=seed) for seed in range(4)]
        futures[1].add_done_callback(fail)
        assert all(future.result(WAIT) is not None for future in futures)
        assert images.submit(1).result(WAIT) is not None


def test_closing() -> None:
    images = BatchingSampler(Sampler("digits"), max_delay_ms=3_000_000)
    future, thread = images.submit(1), images._thread
    images.close()
    assert future.done() and not thread.is_alive()
    images.close()
    with pytest.raises(RuntimeError, match="expected an open one, got one that is closed"):
        images.submit(1)


def test_forgotten_ones_end_and_draw_what_waits() -> None:
    images = BatchingSampler(Sampler("digits"), max_delay_ms=3_000_000)
    future, thread, gone = images.submit(1), images._thread, weakref.ref(images)
    del images
    gc.collect()
    thread.join(WAIT)
    assert gone() is None and not thread.is_alive() and future.result(0) is not None


@pytest.mark.slow
def test_the_end_of_the_interpreter_draws_what_waits(tmp_path: Path) -> None:
    program = (
        "from dd2_fast.sampling import *\n"
        "images = BatchingSampler(Sampler('digits'), max_delay_ms=3_000_000)\n"
        "images.submit(1).add_done_callback(lambda f: print(tuple(f.result().shape), flush=True))\n"
    )
    assert run_python("-c", program, folder=tmp_path, timeout=WAIT) == "(3, 8, 8)\n"


def test_a_forked_child_is_told() -> None:
    with BatchingSampler(Sampler("digits")) as images:
        child = os.fork()
        if not child:
            try:
                images.submit(1)
            except RuntimeError as error:
                os._exit(0 if "forked from it" in str(error) else 2)
            os._exit(3)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert images.submit(1).result(WAIT) is not None


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda s: BatchingSampler("digits"), TypeError, "sampler: expected a Sampler, got str"),
        (lambda s: BatchingSampler(s, max_batch=0), ValueError, "max_batch: expected 1 to 8,.* 0"),
        (lambda s: BatchingSampler(s, max_batch=9), ValueError, "max_batch: expected 1 to 8,.* 9"),
        (lambda s: BatchingSampler(s, max_delay_ms=-1), ValueError, "max_delay_ms: .* got -1"),
        (lambda s: BatchingSampler(s, max_delay_ms="1"), TypeError, "max_delay_ms: .* got str"),
        (lambda s: BatchingSampler(s, output="gif"), ValueError, "output: expected one of"),
    ],
)
def test_bad_settings(call: Callable[[Sampler], Any], error: type, message: str) -> None:
    before = threading.active_count()
    with pytest.raises(error, match=message):
        call(Sampler("digits", batch_size=8))
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"label": 10}, ValueError, r"labels: expected values in 0\.\.9, got 10"),
        ({"label": "1"}, TypeError, "labels: expected an int"),
        ({"label": [1, 2]}, ValueError, "label: expected one, got 2"),
        ({"label": []}, ValueError, "label: expected one, got 0"),
        ({"label": 1, "seed": 2**63}, ValueError, "seed: expected an integer of 64 bits"),
        ({"label": 1, "seed": [1]}, TypeError, r"seed: expected an integer, got \[1\]"),
        ({"label": 1, "index": -1}, ValueError, "index: expected 0 to 9223372036854775807, got -1"),
        (
            {"label": 1, "index": 2**63},
            ValueError,
            "index: expected 0 to .* got 9223372036854775808$",
        ),
        ({"label": 1, "index": 0.5}, TypeError, "index: expected an integer, got 0.5"),
    ],
)
def test_bad_requests_are_refused_where_they_are_made(
    arguments: dict[str, Any], error: type, message: str
) -> None:
    with BatchingSampler(Sampler("digits")) as images, pytest.raises(error, match=message):
        images.submit(**arguments)


BATCH, DELAY = 0.25, 0.02  # seconds


class Busy(Sampler):
    """A sampler that takes as long as a large network on a GPU, and no processor."""

    def forward(self, labels: Any, **settings: Any) -> Any:
        time.sleep(BATCH)
        return torch.zeros(len(labels), 3)


def test_64_callers_fill_the_batches() -> None:
    """Each asks again when it has its image: at least 0.9 of what full batches would give, and 99
    of 100 wait less than twice the delay and a batch, where nothing else takes the processor."""
    waits: list[float] = []

    async def caller(images: BatchingSampler, number: int) -> None:
        for i in range(5):
            start = time.monotonic()
            await images.draw(number % 10, seed=i)
            waits.append(time.monotonic() - start)

    async def everybody(images: BatchingSampler) -> None:
        await asyncio.gather(*(caller(images, number) for number in range(64)))

    sampler = Busy("digits", batch_size=64)
    for _ in range(4):
        waits.clear()
        start = time.monotonic()
        with BatchingSampler(sampler, max_delay_ms=1000 * DELAY) as images:
            asyncio.run(everybody(images))
        share = 5 * BATCH / (time.monotonic() - start)
        late = statistics.quantiles(waits, n=100)[98]
        assert len(waits) == 64 * 5
        if share > 0.9 and late < 2 * DELAY + BATCH:
            return
    found = f"{share:.3f} of full batches, and {late:.3f} s"
    if os.getloadavg()[0] > 1.5 * (os.cpu_count() or 1):
        pytest.skip(f"the machine is too busy: {found}")
    pytest.fail(found)
