"""Models: causality, shapes, the KV cache and the head against plain code; bad input."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from dd2_fast.models import (
    ARTeacher,
    DD2Generator,
    DD2Guidance,
    FlowHead,
    TableTeacher,
    VQTokenizer,
)
from dd2_fast.models.sampling import categorical, step_seed
from dd2_fast.ops.philox import row_uniform

SIZES = dict(num_tokens=5, dimension=3, num_classes=4, width=16, layers=2, heads=2)


def make_teacher(seed: int = 0) -> ARTeacher:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ARTeacher(vocabulary=7, codebook=torch.randn(7, 3), **SIZES)


def make_network(kind: type, seed: int = 0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = kind(head_width=12, head_depth=2, **SIZES)
        for parameter in network.head.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return network


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_generator_is_noise_minus_velocity_at_t_one():
    network = make_network(DD2Generator)
    noise, labels = rand(2, 5, 3), torch.tensor([0, 4])
    features = network.backbone(noise, labels)
    for i in range(5):
        single = network.head(noise[:, i], torch.ones(2), features[:, i])
        torch.testing.assert_close(network(noise, labels)[:, i], noise[:, i] - single)


def test_new_network_predicts_zero_velocity():
    network = DD2Generator(**SIZES)
    noise = rand(2, 5, 3)
    assert torch.equal(network(noise, torch.tensor([0, 1])), noise)


def plain_head(head: FlowHead, x_t: torch.Tensor, t: float, f: torch.Tensor) -> torch.Tensor:
    """The formula of the docstring for one token, a scalar at a time where it matters."""
    width = head.input.out_features
    rates = [math.exp(-math.log(1000) * k / 15) for k in range(16)]
    time = torch.tensor(
        [math.cos(100 * t * r) for r in rates] + [math.sin(100 * t * r) for r in rates]
    )
    c = F.silu(head.time(time) + f @ head.condition.weight.T + head.condition.bias)
    modulation = head.modulation.weight @ c + head.modulation.bias
    rows = [modulation[k * width : (k + 1) * width] for k in range(3 * head.blocks + 2)]

    def normed(h):
        return (h - h.mean()) / (h.var(correction=0) + 1e-5).sqrt()

    h = head.input(x_t)
    for i in range(head.blocks):
        inner = normed(h) * (1 + rows[3 * i + 1]) + rows[3 * i]
        h = h + rows[3 * i + 2] * head.contract[i](F.silu(head.expand[i](inner)))
    return head.output(normed(h) * (1 + rows[-1]) + rows[-2])


def test_head_matches_its_formula_with_and_without_draws():
    head = make_network(DD2Guidance).head
    features, x_t = rand(2, 5, 16), rand(2, 5, 3, 3, seed=1)
    t = torch.rand(2, 5, 3, generator=torch.Generator().manual_seed(2))
    together = head(x_t, t, features)
    for b, i, m in [(0, 0, 0), (1, 4, 2), (0, 3, 1)]:
        want = plain_head(head, x_t[b, i, m], float(t[b, i, m]), features[b, i])
        torch.testing.assert_close(together[b, i, m], want, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            head(x_t[:, :, m], t[:, :, m], features)[b, i], want, rtol=1e-4, atol=1e-4
        )
    with pytest.raises(ValueError, match=r"x_t: expected shape"):
        head(x_t[0, 0, 0], 1.0, features)


def test_from_teacher_copies_the_backbone_and_from_guidance_everything():
    teacher = make_teacher()
    guidance = DD2Guidance.from_teacher(teacher, head_width=12, head_depth=1)
    x, labels = rand(2, 5, 3), torch.tensor([0, 3])
    assert torch.equal(guidance.features(x, labels), teacher.backbone(x, labels))
    generator = DD2Generator.from_guidance(guidance)
    assert all(
        torch.equal(a, b)
        for a, b in zip(generator.parameters(), guidance.parameters(), strict=True)
    )
    assert not {id(p) for p in generator.parameters()} & {id(p) for p in guidance.parameters()}


def test_attached_tokenizer_and_teacher_are_no_submodules():
    generator = make_network(DD2Generator)
    names = set(generator.state_dict())
    tokenizer = VQTokenizer(dimension=3)
    with pytest.raises(ValueError, match="tokenizer: expected 5 tokens, got 16"):
        generator.tokenizer = tokenizer
    tokenizer.num_tokens = 5
    generator.teacher, generator.tokenizer = make_teacher(), tokenizer
    assert set(generator.state_dict()) == names
    generator.double()
    assert generator.teacher.codebook.dtype == torch.float32


def test_tokens_and_their_embeddings_give_the_same_logits():
    teacher = make_teacher()
    tokens = torch.randint(7, (3, 5), generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 3, 4])
    torch.testing.assert_close(
        teacher.logits(tokens, labels), teacher.logits(teacher.codebook[tokens], labels)
    )


@torch.no_grad()
def test_a_cast_teacher_reads_float32_embeddings():
    """As the trainer in bfloat16 gives them."""
    x, labels = rand(3, 5, 3), torch.tensor([0, 3, 4])
    wanted = make_teacher().logits(x, labels)
    got = make_teacher().bfloat16().logits(x, labels)
    assert got.dtype == torch.bfloat16
    assert float((got.float() - wanted).norm() / wanted.norm()) < 0.05


@pytest.mark.parametrize(
    ("cfg", "top_k", "top_p"), [(1.0, 0, 1.0), (2.5, 0, 1.0), (1.0, 3, 1.0), (1.5, 5, 0.7)]
)
def test_cached_sampling_follows_the_full_pass(cfg: float, top_k: int, top_p: float):
    teacher = make_teacher()
    labels = torch.tensor([0, 1, 2, 3] * 8)
    tokens = teacher.sample(labels, cfg=cfg, top_k=top_k, top_p=top_p, seed=3)
    uniform = torch.stack(
        [row_uniform(torch.tensor(step_seed(3, i)), torch.arange(32), 2) for i in range(5)], dim=1
    )
    cond = teacher.logits(tokens, labels).double()
    uncond = teacher.logits(tokens, torch.full_like(labels, 4)).double()
    logits = uncond + cfg * (cond - uncond)
    agree = 0
    for b in range(32):
        for i in range(5):
            row = logits[b, i]
            order = row.argsort(descending=True)
            kept = order[: top_k or 7]
            p = row[kept].softmax(0)
            kept = kept[(p.cumsum(0) - p) < top_p].sort().values
            p = row[kept].softmax(0)
            drawn = int(kept[min(int((p.cumsum(0) <= uniform[b, i]).sum()), len(kept) - 1)])
            agree += drawn == int(tokens[b, i])
    assert agree >= 159


def test_sampling_depends_on_the_seed_alone_and_leaves_the_global_state():
    teacher = make_teacher()
    labels = torch.tensor([0, 1, 2])
    before = torch.random.get_rng_state()
    first = teacher.sample(labels, seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first, teacher.sample(labels, seed=1))
    many = torch.tensor([0, 1, 2] * 20)
    assert not torch.equal(teacher.sample(many, seed=1), teacher.sample(many, seed=2))
    assert torch.equal(teacher.sample(many, seed=1)[:3], first)


def test_table_teacher_factorises_its_joint():
    rng = torch.Generator().manual_seed(0)
    joint = torch.rand(3, 3, 3, generator=rng)
    joint[0, 1] = 0
    teacher = TableTeacher(
        num_tokens=3, vocabulary=3, dimension=2, joint=joint, codebook=rand(3, 2)
    )
    tokens = torch.cartesian_prod(*[torch.arange(3)] * 3)
    logits = teacher.logits(tokens, torch.zeros(27, dtype=torch.int64))
    log_p = logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0].sum(-1)
    torch.testing.assert_close(log_p.exp().reshape(3, 3, 3), joint / joint.sum())
    near = teacher.codebook[tokens] + 1e-3
    torch.testing.assert_close(teacher.logits(near, torch.zeros(27, dtype=torch.int64)), logits)
    drawn = teacher.sample(torch.zeros(20000, dtype=torch.int64), seed=0)
    counts = torch.zeros(3, 3, 3)
    counts.index_put_(tuple(drawn.T), torch.ones(20000), accumulate=True)
    assert float((counts / 20000 - joint / joint.sum()).abs().sum() / 2) < 0.02


def test_tokenizer_normalises_codes_and_snaps_to_the_nearest():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer = VQTokenizer(vocabulary=16, dimension=4, width=8)
    raw = 3 * rand(16, 4) + 5
    tokenizer.set_raw_codebook(raw)
    torch.testing.assert_close(tokenizer.codebook.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(tokenizer.codebook.square().mean(0), torch.ones(4))
    torch.testing.assert_close(tokenizer.raw_codebook(), raw)
    images = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    want = torch.cdist(tokenizer.latents(images).double(), raw.double()).argmin(-1)
    tokens = tokenizer.encode(images)
    assert torch.equal(tokens, want)
    gray = images.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    assert torch.equal(tokenizer.encode(gray), tokens)
    decoded = tokenizer.decode(tokenizer.embed(tokens))
    assert decoded.shape == (6, 3, 8, 8) and decoded.min() >= 0 and decoded.max() <= 1
    assert torch.equal(decoded[:, 0], decoded[:, 2])


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        ([0, 1], TypeError, "labels: expected a torch.Tensor of int64, got list"),
        (torch.tensor([0.0, 1.0]), TypeError, "labels: expected dtype int64, got float32"),
        (torch.tensor([0, 5]), ValueError, r"labels: expected values in 0..4 .*got 5"),
        (torch.tensor([-1, 0]), ValueError, r"labels: expected values in 0..4 .*got -1"),
        (torch.tensor([0]), ValueError, r"labels: expected shape \[2\], got \[1\]"),
    ],
)
def test_bad_labels(labels, error, message):
    with pytest.raises(error, match=message):
        make_teacher().logits(rand(2, 5, 3), labels)
    with pytest.raises(error, match=message):
        make_network(DD2Generator)(rand(2, 5, 3), labels)


def test_bad_shapes():
    labels = torch.tensor([0, 1])
    teacher = make_teacher()
    with pytest.raises(ValueError, match=r"noise: expected shape \['B', 5, 3\].*got \[2, 4, 3\]"):
        make_network(DD2Generator)(rand(2, 4, 3), labels)
    with pytest.raises(ValueError, match=r"tokens: expected values in 0..6, got 7"):
        teacher.logits(torch.full((2, 5), 7), labels)
    with pytest.raises(ValueError, match=r"tokens: expected shape"):
        teacher.logits(torch.zeros(2, 4, dtype=torch.int64), labels)
    with pytest.raises(ValueError, match=r"images: expected shape \['B', 3, 8, 8\]"):
        VQTokenizer().encode(torch.rand(1, 1, 8, 8))
    with pytest.raises(ValueError, match="codebook: expected shape"):
        ARTeacher(vocabulary=7, codebook=torch.zeros(6, 3), **SIZES)
    with pytest.raises(ValueError, match="joint: expected non-negative"):
        TableTeacher(num_tokens=1, vocabulary=2, dimension=1, joint=torch.tensor([1.0, -1.0]))


def test_a_prefix_is_kept_and_the_cache_filled_from_it():
    """The same draws given the teacher's own first tokens give its own last ones."""
    teacher, labels = make_teacher(), torch.tensor([0, 3, 1])
    choose = categorical(2.0, 0, 1.0, 5)
    whole = teacher.generate(labels, choose, guided=True)
    for count in range(6):
        again = teacher.generate(labels, choose, guided=True, prefix=whole[:, :count])
        assert torch.equal(again, whole)
    with pytest.raises(ValueError, match=r"prefix: expected shape \[3, 'm'\] with m at most 5"):
        teacher.generate(labels, choose, prefix=torch.zeros(3, 6, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"tokens: expected values in 0..6, got 7"):
        teacher.generate(labels, choose, prefix=torch.full((3, 1), 7))
