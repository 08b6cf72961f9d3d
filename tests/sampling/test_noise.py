"""The counter-based noise against published vectors and the normal distribution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from dd2_fast.sampling.noise import image_noise, image_uniform, philox

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


def test_uniforms_follow_the_counter_layout() -> None:
    """(block, index low, index high, stream) under (seed low, seed high)."""
    seed, index = (7 << 32) + 5, (3 << 32) + 2
    u = image_uniform(seed, torch.tensor([0, index]), 6, stream=9)
    words = torch.cat(philox(*torch.tensor([[1], [2], [3], [9]]), (5, 7)))
    assert torch.equal(u[1, 4:], (words[:2].double() + 0.5) / 2**32)
    assert bool(((u > 0) & (u < 1)).all())


def test_noise_is_standard_normal_and_uncorrelated() -> None:
    z = image_noise(0, torch.arange(2000), (5, 3))
    assert z.shape == (2000, 5, 3) and z.dtype == torch.float32
    assert stats.kstest(z.flatten().numpy(), "norm").pvalue > 0.01
    correlation = torch.corrcoef(z.flatten(1).T) - torch.eye(15)
    assert correlation.abs().max() < 5 / 2000**0.5


def test_each_image_has_its_own_noise_whatever_the_company() -> None:
    together = image_noise(4, torch.arange(6), (3, 3))
    for i in range(6):
        assert torch.equal(image_noise(4, torch.tensor([i]), (3, 3))[0], together[i])
    assert not torch.equal(together, image_noise(5, torch.arange(6), (3, 3)))
    assert len({row.sum().item() for row in together}) == 6
    far = image_noise(4, torch.tensor([2**32]), (3, 3))
    assert not torch.equal(far[0], together[0])
