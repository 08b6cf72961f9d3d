"""Stage 0: the MLP of code vectors equals the token table, and gradients flow through it."""

from __future__ import annotations

import copy

import pytest
import torch
from parity import llamagen_models as parity
from parity.llamagen_models import relative
from torch.nn import functional as F

from dd2_fast.losses import TeacherScore
from dd2_fast.models.llamagen import EmbeddingMLP, LlamaGenTeacher, adapt, fit_embedding_mlp


def problem(vocabulary: int = 300, width: int = 24, noise: float = 1.0):
    """Unit codes, and a table that is a smooth map of them plus unstructured noise."""
    codes = F.normalize(torch.randn(vocabulary, 8), dim=-1)
    smooth = torch.tanh(codes @ torch.randn(8, 16)) @ torch.randn(16, width) / 4
    return codes, smooth + noise * torch.randn(vocabulary, width)


@torch.no_grad()
def error(mlp: EmbeddingMLP, codes: torch.Tensor, table: torch.Tensor) -> float:
    left = (mlp(codes).double() - table.double()).square().sum(-1).mean().sqrt()
    center = (table - table.mean(0)).double().square().sum(-1).mean().sqrt()
    return float(left / center)


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_a_unit_a_code_interpolates_any_table(noise: float):
    codes, table = problem(noise=noise)
    mlp, fit = fit_embedding_mlp(codes, table, smooth=16)
    assert (mlp.hidden.out_features, mlp.code_units.out_features) == (16, 300)
    assert error(mlp, codes, table) < 1e-5
    assert fit.relative == pytest.approx(error(mlp, codes, table), rel=1e-3)
    worst = (
        (mlp(codes).detach() - table).norm(dim=-1).max() / (table - table.mean(0)).norm() * 300**0.5
    )
    assert fit.worst == pytest.approx(float(worst), rel=1e-3)


def test_without_it_the_trend_explains_what_is_smooth():
    codes, table = problem(2000, noise=0.0)
    mlp, fit = fit_embedding_mlp(codes, table, smooth=256, exact=False)
    assert mlp.hidden.out_features == 256 and mlp.code_units is None
    assert fit.trend == fit.relative == pytest.approx(error(mlp, codes, table), rel=1e-3)
    assert fit.relative < 0.25, "0.93 without structure"
    codes, table = codes, torch.randn(2000, 24)
    _, fit = fit_embedding_mlp(codes, table, smooth=256, exact=False)
    assert abs(fit.relative - (1 - 256 / 2000) ** 0.5) < 0.03


def test_the_smooth_part_is_what_is_left_without_units_of_codes():
    codes, table = problem(noise=0.3)
    mlp, fit = fit_embedding_mlp(codes, table, smooth=16)
    smooth = EmbeddingMLP(8, 16, 24)
    smooth.load_state_dict({k: v for k, v in mlp.state_dict().items() if "code_" not in k})
    assert fit.trend == pytest.approx(error(smooth, codes, table), rel=1e-3)
    assert fit.trend > 100 * fit.relative


def test_the_seed_fixes_the_fit():
    codes, table = problem()
    first, again, other = (fit_embedding_mlp(codes, table, smooth=8, seed=s)[0] for s in (0, 0, 1))
    assert torch.equal(first.hidden.weight, again.hidden.weight)
    assert not torch.equal(first.hidden.weight, other.hidden.weight)


def test_between_codes_and_far_away_it_stays_of_the_tables_size():
    codes, table = problem(2000, noise=0.3)
    mlp, _ = fit_embedding_mlp(codes, table, smooth=64)
    size = table.square().mean().sqrt()
    for vectors in (F.normalize(codes + 0.2 * torch.randn(2000, 8)), torch.randn(2000, 8)):
        assert mlp(vectors).square().mean().sqrt() < 3 * size
    near = F.normalize(codes + 1e-3 * torch.randn(2000, 8))
    assert relative(mlp(near), table) < 0.05
    assert relative(mlp(0.9 * codes), table) < 0.2, "a shorter code is still that code"
    assert mlp(torch.zeros(1, 8)).isfinite().all()


def test_codes_that_cannot_be_told_apart_get_the_trend():
    codes, table = problem()
    codes[1] = codes[0]
    mlp, fit = fit_embedding_mlp(codes, table, smooth=16)
    assert torch.equal(mlp(codes[0]), mlp(codes[1]))
    assert fit.worst > 0.1
    assert relative(mlp(codes[2:]), table[2:]) < 1e-5


def test_one_code():
    codes, table = problem(1)
    mlp, fit = fit_embedding_mlp(codes, table, smooth=4)
    torch.testing.assert_close(mlp(codes).detach(), table)
    assert fit.relative < 1e-5


@pytest.fixture(scope="module")
def adapted() -> LlamaGenTeacher:
    return adapt(parity.make_teacher(), smooth=32)[0]


@torch.no_grad()
def test_adapted_logits_equal_those_of_tokens(adapted):
    want = parity.arrays("llamagen_tiny")
    embeddings = adapted.tokenizer.embed(want["tokens"])
    for value in (embeddings, want["tokens"]):
        assert relative(adapted.logits(value, want["labels"]), want["logits"]) < 1e-5
    assert torch.equal(
        adapted.sample(want["labels"], cfg=2.0, top_k=1), want["greedy_tokens_cfg2.0"].long()
    )
    assert adapted.config["adapter_width"] == 32 and adapted.config["adapter_codes"]
    again = LlamaGenTeacher(**adapted.config)
    again.load_state_dict(adapted.state_dict())
    again.tokenizer = adapted.tokenizer
    assert torch.equal(
        again.logits(embeddings, want["labels"]), adapted.logits(embeddings, want["labels"])
    )


def test_adapting_leaves_the_teacher_alone():
    teacher = parity.make_teacher().requires_grad_(False)
    before = copy.deepcopy(teacher.state_dict())
    adapted, _ = adapt(teacher, smooth=8)
    with torch.no_grad():
        for parameter in adapted.parameters():
            assert parameter.requires_grad
            parameter.zero_()
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert teacher.tokenizer is adapted.tokenizer
    with pytest.raises(ValueError, match="teacher: expected one with a token table"):
        adapt(adapted)


def test_features_are_causal_and_differentiable_in_the_embeddings(adapted):
    model = copy.deepcopy(adapted).double()
    x = torch.randn(1, 16, 8, dtype=torch.float64).requires_grad_()
    labels = torch.tensor([3])
    features = model(x, labels)
    for i in (0, 1, 7, 15):
        (gradient,) = torch.autograd.grad(features[0, i].sum(), x, retain_graph=True)
        assert (gradient[0].abs().sum(-1) > 0).tolist() == [j < i for j in range(16)]
    direction = torch.randn_like(x)
    analytic = (torch.autograd.grad(features.square().sum(), x)[0] * direction).sum()
    ahead, behind = (model(x + s * direction, labels).square().sum() for s in (1e-6, -1e-6))
    torch.testing.assert_close(analytic, (ahead - behind) / 2e-6, rtol=1e-5, atol=1e-5)


def test_the_score_of_noisy_tokens_given_continuous_prefixes(adapted):
    prefix, labels = torch.randn(2, 16, 8), torch.tensor([3, 7])
    distribution = TeacherScore(adapted, cfg=2.0, top_k=20)(prefix, labels)
    x_t = torch.randn(2, 16, 8).requires_grad_()
    x0 = distribution.predict(x_t, torch.full((2, 16), 0.3), "x0")
    assert x0.isfinite().all() and x0.norm(dim=-1).max() <= 1 + 1e-4, "a mean of unit vectors"
    assert torch.autograd.grad(x0.sum(), x_t)[0].abs().sum() > 0


def test_the_adapted_teacher_is_one_graph(adapted):
    prefix, labels = torch.randn(2, 16, 8), torch.tensor([3, 7])
    compiled = torch.compile(adapted.logits, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(prefix, labels), adapted.logits(prefix, labels))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_keeps_the_units_apart(adapted, dtype):
    """The hidden layer stays in float32, so half weights cost what they cost with the table."""
    want = parity.arrays("llamagen_tiny")
    half = copy.deepcopy(adapted).to(dtype)
    mlp = half.tok_embeddings
    assert mlp.hidden.weight.dtype == mlp.code_units.weight.dtype == torch.float32
    assert mlp.output.weight.dtype == mlp.code_output.weight.dtype == dtype
    table = parity.make_teacher().to(dtype)
    got = relative(half.logits(want["tokens"], want["labels"]), want["logits"])
    plain = relative(table.logits(want["tokens"], want["labels"]), want["logits"])
    assert got < 2 * plain and plain < {torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = adapted.logits(want["tokens"], want["labels"])
    assert relative(logits, want["logits"]) < 2e-2


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"codebook": torch.ones(3)}, ValueError, r"codebook: expected shape \[V, C\]"),
        (
            {"codebook": torch.ones(300, 8).index_fill(0, torch.tensor(7), 2.0)},
            ValueError,
            "codes of one length of at least 0.5, got a mean of 2.84 and one that is off by 2.82",
        ),
        ({"codebook": 0.1 * problem()[0]}, ValueError, "codes of one length of at least 0.5"),
        ({"codebook": [1.0]}, TypeError, "codebook: expected a torch.Tensor, got list"),
        ({"table": torch.ones(299, 4)}, ValueError, r"table: expected shape \[300, 'D'\].*299"),
        ({"table": torch.ones(300, 4).long()}, TypeError, "table: expected dtype .*int64"),
        ({"smooth": 0}, ValueError, "smooth: expected an int of at least 1, got 0"),
        ({"smooth": 2.0}, ValueError, "smooth: expected an int of at least 1, got 2.0"),
    ],
)
def test_bad_arguments(change: dict, error, message: str):
    codes, table = problem()
    with pytest.raises(error, match=message):
        fit_embedding_mlp(**({"codebook": codes, "table": table} | change))
