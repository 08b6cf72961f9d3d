"""The counter-based noise: its counter layout and the normal distribution."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from dd2_fast.ops.philox import philox
from dd2_fast.sampling.noise import image_noise, image_uniform


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


@pytest.mark.parametrize("seed", [5, -3, 2**63 - 1, -(2**63)])
def test_a_seed_in_a_tensor_draws_the_same_numbers(seed: int) -> None:
    """As captured graphs give it."""
    index = torch.tensor([0, 7, 2**33 + 1])
    seeds = torch.full_like(index, seed)
    wanted = image_uniform(seed, index, 10, stream=2)
    assert torch.equal(image_uniform(seeds, index, 10, stream=2), wanted)
    noise = image_noise(seeds, index, (5, 3))
    torch.testing.assert_close(noise, image_noise(seed, index, (5, 3)), atol=1e-6, rtol=0)
    with torch.inference_mode():
        assert torch.equal(image_noise(seeds, index, (5, 3)), noise)
