"""Philox against Random123's known answers, and the uniforms made of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dd2_fast.ops.philox import philox, row_uniform

ONES = 0xFFFFFFFF
# Random123's known answers for philox4x32-10: counter, key, words.
KNOWN = [
    ([0, 0, 0, 0], (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([ONES] * 4, (ONES, ONES), [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        (0xA4093822, 0x299F31D0),
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_philox_gives_the_known_answers(counter, key, words) -> None:
    by_torch = philox(*(torch.full((2, 3), c) for c in counter), key)
    by_numpy = philox(*(np.full((2, 3), c) for c in counter), key)
    for ours, theirs, word in zip(by_torch, by_numpy, words, strict=True):
        assert torch.equal(ours, torch.full((2, 3), word))
        assert np.array_equal(theirs, ours.numpy())
    tensor_key = tuple(map(torch.tensor, key))
    assert [w.item() for w in philox(*map(torch.tensor, counter), tensor_key)] == words


def test_row_uniforms_follow_the_counter_layout() -> None:
    """(0, row low, row high, stream) under (seed low, seed high), two words a number."""
    zero = torch.tensor(0)
    high, low, *_ = philox(zero, torch.tensor(6), zero, torch.tensor(9), (5, 7))
    uniform = row_uniform(torch.tensor((7 << 32) + 5), torch.arange(7), 9)
    assert uniform[6].item() == ((high.item() << 20) + (low.item() >> 12) + 0.5) / 2**52
    assert bool(((uniform > 0) & (uniform < 1)).all())


def test_row_uniforms_are_uniform() -> None:
    uniform = row_uniform(torch.tensor(1), torch.arange(100_000), 2)
    assert (uniform.mean() - 0.5).abs() < 4 * (1 / 12 / 100_000) ** 0.5
    counts = torch.histc(uniform.float(), 100, 0, 1)
    chi_square = ((counts - 1000).square() / 1000).sum()
    assert 50 < chi_square < 160
