"""Losses against independent float64 sums over the codebook, values and gradients."""

from __future__ import annotations

import pytest
import torch
from parity import var_models

from dd2_fast.losses import (
    ImageRandom,
    TeacherDistribution,
    TeacherScore,
    TimeDistribution,
    csd_loss,
    dd1_loss,
    draw_noisy,
    fcs_loss,
    flow_pairs,
    gts_loss,
)
from dd2_fast.models import TableTeacher

ROWS, DRAWS, VOCABULARY, DIMENSION = 4, 3, 9, 2


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def posterior_mean(x_t, t, logits, codebook):
    """Eq. 1 for one noisy token, by the densities themselves."""
    density = torch.stack(
        [torch.exp(-(x_t - (1 - t) * c).square().sum() / (2 * t * t)) for c in codebook]
    )
    weight = logits.softmax(0) * density
    return (weight[:, None] * codebook).sum(0) / weight.sum()


@pytest.fixture
def case():
    codebook, logits = rand(VOCABULARY, DIMENSION, seed=1), rand(ROWS, VOCABULARY, seed=2)
    x = rand(ROWS, DIMENSION, seed=3)
    t = 0.2 + 0.7 * torch.rand(
        ROWS, DRAWS, generator=torch.Generator().manual_seed(4), dtype=torch.float64
    )
    noise = rand(ROWS, DRAWS, DIMENSION, seed=5)
    return codebook, logits, x, t, noise


def test_gts_is_the_distance_to_the_analytic_velocity(case):
    codebook, logits, x, t, noise = case
    x_t = (1 - t[..., None]) * x[:, None] + t[..., None] * noise
    velocity = rand(ROWS, DRAWS, DIMENSION, seed=6).requires_grad_()
    loss = gts_loss(velocity, x_t, t, TeacherDistribution(codebook, logits))
    loss.sum().backward()
    for i in range(ROWS):
        for m in range(DRAWS):
            x0 = posterior_mean(x_t[i, m], t[i, m], logits[i], codebook)
            difference = velocity[i, m].detach() - (x_t[i, m] - x0) / t[i, m]
            torch.testing.assert_close(loss[i, m].detach(), difference.square().sum())
            torch.testing.assert_close(velocity.grad[i, m], 2 * difference)


def test_gts_minimum_is_the_ar_diffusion_minimum():
    """Averaged over x_0 ~ p and eps at one x_t, ``eps - x_0`` is the analytic velocity."""
    codebook, logits = rand(5, 2, seed=1), rand(5, seed=2)
    x_t, t = rand(2, seed=3), torch.tensor(0.6, dtype=torch.float64)
    noises = (x_t - (1 - t) * codebook) / t
    weight = logits.softmax(0) * torch.exp(-noises.square().sum(-1) / 2)
    mean = (weight[:, None] * (noises - codebook)).sum(0) / weight.sum()
    loss = gts_loss(mean[None], x_t[None], t[None], TeacherDistribution(codebook, logits[None]))
    assert float(loss) < 1e-20


def test_fcs_compares_with_noise_minus_data(case):
    _, _, x, t, noise = case
    velocity = rand(ROWS, DRAWS, DIMENSION, seed=6)
    loss = fcs_loss(velocity, x.requires_grad_(), noise)
    assert loss.shape == (ROWS, DRAWS) and not loss.requires_grad
    want = sum((velocity[2, 1, c] - (noise[2, 1, c] - x[2, c])) ** 2 for c in range(DIMENSION))
    torch.testing.assert_close(loss[2, 1], want.detach())


def fake_x0(x_t, matrix):
    return torch.tanh(x_t @ matrix)


@pytest.mark.parametrize("alpha", [1.0, 0.5])
@pytest.mark.parametrize(("weight", "power"), [("none", 0.0), ("sid", 0.5), ("sid", 1.0)])
def test_sid_value_and_gradient(case, alpha: float, weight: str, power: float):
    """Value by the sum; gradient by central differences through x, x_t, D and F."""
    codebook, logits, x, t, noise = case
    matrix = rand(DIMENSION, DIMENSION, seed=8)

    def forms(x, frozen=None):
        total = torch.zeros((), dtype=torch.float64)
        weights = []
        for i in range(ROWS):
            for m in range(DRAWS):
                x_t = (1 - t[i, m]) * x[i] + t[i, m] * noise[i, m]
                d = posterior_mean(x_t, t[i, m], logits[i], codebook)
                f = fake_x0(x_t, matrix)
                weights.append((x[i] - d).abs().mean() ** -power)
                w = weights[-1] if frozen is None else frozen[len(weights) - 1]
                total = total + w * ((d - f) * (d - x[i] - alpha * (d - f))).sum()
        return total, weights

    x = x.clone().requires_grad_()
    x_t = torch.lerp(x[:, None].expand_as(noise), noise, t[..., None])
    teacher = TeacherDistribution(codebook, logits)
    settings = dict(alpha=alpha, weight=weight, weight_power=power)
    loss = csd_loss(x, x_t, t, fake_x0(x_t, matrix), teacher, **settings)
    assert loss.shape == (ROWS, DRAWS)
    loss.sum().backward()
    want, weights = forms(x.detach())
    torch.testing.assert_close(loss.detach().sum(), want)
    step = 1e-6
    for i in range(ROWS):
        for c in range(DIMENSION):
            shift = torch.zeros(ROWS, DIMENSION, dtype=torch.float64)
            shift[i, c] = step
            ahead, behind = forms(x.detach() + shift, weights), forms(x.detach() - shift, weights)
            numeric = (ahead[0] - behind[0]) / (2 * step)
            torch.testing.assert_close(x.grad[i, c], numeric, rtol=1e-6, atol=1e-8)


def test_sid_gradient_closed_form_at_alpha_one(case):
    """dL/dx = (1-t)[J_D u + J_F^T((D - F) - u)] - (D - F), u = F - x."""
    codebook, logits, x, t, noise = case
    matrix = rand(DIMENSION, DIMENSION, seed=8)
    i, m = 1, 2
    level, row = t[i, m], x[i].clone().requires_grad_()
    x_t = torch.lerp(row, noise[i, m], level)
    teacher = TeacherDistribution(codebook, logits[i])
    d = teacher.predict(x_t, level, "x0")
    f = fake_x0(x_t, matrix)
    csd_loss(row, x_t, level, f, teacher, weight="none").backward()
    with torch.no_grad():
        exponent = logits[i] - (x_t - (1 - level) * codebook).square().sum(-1) / (2 * level**2)
        w = exponent.softmax(0)
        spread = codebook - w @ codebook
        jacobian_d = (1 - level) / level**2 * (spread.T * w) @ spread
        jacobian_f = (1 - f.square())[:, None] * matrix.T
        u = f - row
        want = (1 - level) * (jacobian_d @ u + jacobian_f.T @ (d - f - u)) - (d - f)
    torch.testing.assert_close(row.grad, want)


def test_dmd_gradient_is_the_weighted_difference(case):
    codebook, logits, x, t, noise = case
    x = x.clone().requires_grad_()
    x_t = torch.lerp(x[:, None].expand_as(noise), noise, t[..., None])
    d = TeacherDistribution(codebook, logits).predict(x_t, t, "x0")
    f = fake_x0(x_t, rand(DIMENSION, DIMENSION, seed=8))
    teacher = TeacherDistribution(codebook, logits)
    loss = csd_loss(x, x_t, t, f, teacher, objective="dmd", weight_power=0.5)
    loss.sum().backward()
    factor = (x[:, None] - d).abs().mean(-1, keepdim=True) ** -0.5
    torch.testing.assert_close(x.grad, (factor * (f - d)).sum(1).detach())


def test_csd_is_zero_where_the_fake_score_is_the_teachers(case):
    codebook, logits, x, t, noise = case
    x_t = torch.lerp(x[:, None].expand_as(noise), noise, t[..., None])
    teacher = TeacherDistribution(codebook, logits)
    loss = csd_loss(x, x_t, t, teacher.predict(x_t, t, "x0"), teacher)
    assert float(loss.abs().max()) < 1e-20


def one_token(probabilities: list[float], codes: list[float]) -> TableTeacher:
    return TableTeacher(
        num_tokens=1,
        vocabulary=len(codes),
        dimension=1,
        joint=torch.tensor(probabilities),
        codebook=torch.tensor(codes)[:, None],
    )


def test_pairs_carry_noise_to_the_teachers_probabilities():
    """Two codes ±1 in one dimension: the ODE is monotone, so it splits at the normal quantile."""
    noise = torch.linspace(-3, 3, 4001)[:, None, None]
    labels = torch.zeros(4001, dtype=torch.int64)
    tokens = flow_pairs(noise, labels, TeacherScore(one_token([0.7, 0.3], [-1.0, 1.0])), steps=50)
    boundary = float(noise[int(tokens[:, 0].argmax())])
    assert abs(boundary - float(torch.special.ndtri(torch.tensor(0.7)))) < 0.02


def test_pairs_are_among_the_codes_that_the_filters_keep():
    """One step ends at the mean of the outer codes, -0.125: next to the one that top-k drops."""
    teacher = one_token([0.45, 0.2, 0.35], [-1.0, 0.0, 1.0])
    noise, labels = torch.randn(5, 1, 1), torch.zeros(5, dtype=torch.int64)
    assert flow_pairs(noise, labels, TeacherScore(teacher, top_k=2), steps=1).tolist() == [[0]] * 5
    assert flow_pairs(noise, labels, TeacherScore(teacher), steps=1).tolist() == [[1]] * 5


def test_pairs_take_the_guidance_of_their_token():
    """One step ends at the mean of the guided probabilities, whatever the noise."""

    class Two:
        codebook = rand(6, 2, seed=1)
        num_classes, logits = 1, None

        def guidance_scale(self, cfg):
            return torch.tensor([1.0, cfg], dtype=torch.float64)

        def generate(self, labels, choose, *, guided):
            assert guided
            rows = [rand(2, len(labels), 6, seed=2 + i) for i in range(2)]
            parts = [choose(slice(i, i + 1), *row[:, :, None]) for i, row in enumerate(rows)]
            return torch.cat(parts, dim=1)

    noise, labels = rand(7, 2, 2, seed=9), torch.zeros(7, dtype=torch.int64)
    tokens = flow_pairs(noise, labels, TeacherScore(Two(), cfg=3.0), steps=1)
    for i, scale in enumerate([1.0, 3.0]):
        cond, uncond = rand(2, 7, 6, seed=2 + i)
        mean = (uncond + scale * (cond - uncond)).softmax(-1) @ Two.codebook
        assert torch.equal(tokens[:, i], torch.cdist(mean, Two.codebook).argmin(-1))


def test_a_teacher_that_lacks_parts_is_told_all_of_them():
    class Half:
        codebook, num_classes = torch.zeros(2, 1), 1

    with pytest.raises(TypeError, match="^teacher: .*; Half lacks logits, guidance_scale$"):
        TeacherScore(Half())
    Half.logits = Half.guidance_scale = lambda *_: 1.0
    score = TeacherScore(Half())
    with pytest.raises(
        TypeError, match="^teacher: expected one with generate; Half lacks generate$"
    ):
        flow_pairs(torch.zeros(1, 1, 1), torch.zeros(1, dtype=torch.int64), score)


def test_no_cfg_is_no_guidance_for_every_family():
    """VAR's scale at cfg 1 rises from 1 to 2; None is none."""
    teacher = var_models.teacher()
    tokens, labels = torch.zeros(1, teacher.num_tokens, dtype=torch.int64), torch.tensor([1])
    assert TeacherScore(teacher)(tokens, labels).uncond_logits is None
    assert TeacherScore(teacher, cfg=1.0)(tokens, labels).uncond_logits is not None


def test_pairs_of_invalid_noise_are_refused():
    noise, labels = torch.zeros(4, 1, 1), torch.zeros(4, dtype=torch.int64)
    noise[2] = torch.nan
    with pytest.raises(ValueError, match="noise, score: .* at token 0 of image 2"):
        flow_pairs(noise, labels, TeacherScore(one_token([0.5, 0.5], [-1.0, 1.0])))


def test_pairs_are_samples_of_the_teacher_and_follow_from_the_noise():
    rng = torch.Generator().manual_seed(0)
    joint = torch.rand(3, 3, generator=rng) ** 2
    teacher = TableTeacher(
        num_tokens=2,
        vocabulary=3,
        dimension=2,
        joint=joint,
        codebook=torch.tensor([[-1.0, -1.0], [1.0, -1.0], [0.0, 1.0]]),
    )
    noise = torch.randn(8000, 2, 2, generator=rng)
    labels = torch.zeros(8000, dtype=torch.int64)
    tokens = flow_pairs(noise, labels, TeacherScore(teacher), steps=20)
    assert torch.equal(tokens, flow_pairs(noise, labels, TeacherScore(teacher), steps=20))
    counts = torch.zeros(3, 3)
    counts.index_put_(tuple(tokens.T), torch.ones(8000), accumulate=True)
    assert float((counts / 8000 - joint / joint.sum()).abs().sum() / 2) < 0.03
    same = flow_pairs(noise.roll(1, 0), labels, TeacherScore(teacher), steps=20)
    assert torch.equal(same, tokens.roll(1, 0))


def test_guided_score_uses_both_passes():
    class Two:
        codebook = rand(4, 2)
        num_classes = 1

        def guidance_scale(self, cfg):
            return torch.tensor([1.0, cfg], dtype=torch.float64)

        def logits(self, tokens, labels):
            return rand(2, 2, 4, seed=9) * (1 + labels.double())[:, None, None]

    distribution = TeacherScore(Two(), cfg=3.0)(torch.zeros(2, 2), torch.zeros(2).long())
    x_t, t = rand(2, 2, 2, seed=7), torch.full((2, 2), 0.5, dtype=torch.float64)
    got = distribution.predict(x_t, t, "x0")
    cond, uncond = rand(2, 2, 4, seed=9), 2 * rand(2, 2, 4, seed=9)
    for i, scale in enumerate([1.0, 3.0]):
        logits = uncond[1, i] + scale * (cond[1, i] - uncond[1, i])
        want = posterior_mean(x_t[1, i], t[1, i], logits, Two.codebook)
        torch.testing.assert_close(got[1, i], want)


def test_noise_levels_have_their_density():
    u = torch.rand(50000, generator=torch.Generator().manual_seed(0))
    uniform = TimeDistribution(0.1, 1.0).of(u)
    linear = TimeDistribution(0.1, 1.0, "linear").of(u)
    assert abs(float(uniform.mean()) - 0.55) < 5e-3
    assert abs(float(linear.mean()) - (2 / 3) * (1 - 0.1**3) / (1 - 0.1**2)) < 5e-3
    assert float(uniform.min()) >= 0.1 and float(linear.max()) <= 1
    with pytest.raises(ValueError, match="density"):
        TimeDistribution(density="cosine")
    with pytest.raises(ValueError, match="low, high"):
        TimeDistribution(low=0.0)


def test_numbers_of_an_image_do_not_depend_on_the_batch():
    whole = ImageRandom(3, torch.arange(5))
    u, z = whole.uniform(7), whole.normal(7, 2)
    part = ImageRandom(3, torch.tensor([4, 2]))
    assert torch.equal(part.uniform(7), u[[4, 2]]) and torch.equal(part.normal(7, 2), z[[4, 2]])
    assert not torch.equal(ImageRandom(4, torch.arange(5)).uniform(7), u)
    assert not torch.equal(whole.uniform(7), u), "each call has numbers of its own"
    many = ImageRandom(0, torch.arange(4000)).normal(5)
    assert abs(float(many.mean())) < 0.03 and abs(float(many.std()) - 1) < 0.03


def test_draws_share_the_token():
    x = rand(2, 3, 4).float()
    x_t, t, noise = draw_noisy(x, 5, TimeDistribution(), ImageRandom(0, torch.arange(2)))
    assert x_t.shape == (2, 3, 5, 4)
    want = (1 - t[1, 2, 4]) * x[1, 2] + t[1, 2, 4] * noise[1, 2, 4]
    torch.testing.assert_close(x_t[1, 2, 4], want)


def test_dd1_is_the_squared_distance_a_token():
    torch.testing.assert_close(
        dd1_loss(torch.zeros(1, 2, 3), torch.tensor([[[1.0, 2, 2], [0, 0, 1]]])),
        torch.tensor([[9.0, 1.0]]),
    )
