"""The teacher: KV cache against teacher forcing, sampling, dtypes, bad input."""

from __future__ import annotations

import copy

import pytest
import torch
from parity import llamagen_models as parity
from parity import var_models
from parity.llamagen_models import SIZES, relative

from dd2_fast.models.llamagen import LlamaGenBackbone, LlamaGenTeacher, LlamaGenTokenizer
from dd2_fast.models.llamagen.layers import rotary_table, rotate


@pytest.fixture(scope="module")
def teacher() -> LlamaGenTeacher:
    return parity.make_teacher().requires_grad_(False)


def test_rotation_is_the_formula_of_rows_and_columns():
    table = rotary_table(3, 12).double()
    assert table.shape == (10, 6, 2) and not table[0].any()
    x = torch.randn(2, 10, 5, 12, dtype=torch.float64)
    got = rotate(x, table)
    assert not got[:, 0].any(), "the class has no rotated query or key"
    for row, column, pair in [(0, 0, 0), (2, 1, 0), (2, 1, 2), (1, 2, 3), (1, 2, 5)]:
        place, k = (row, pair) if pair < 3 else (column, pair - 3)
        angle = torch.tensor(place * 10000.0 ** (-k / 3)).double()
        a, b = x[:, 1 + 3 * row + column, :, 2 * pair : 2 * pair + 2].unbind(-1)
        want = torch.stack([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()])
        turned = got[:, 1 + 3 * row + column, :, 2 * pair : 2 * pair + 2]
        torch.testing.assert_close(turned, want.permute(1, 2, 0), rtol=0, atol=1e-5)


def test_compiled_rotation_is_the_same():
    table, x = rotary_table(2, 8), torch.randn(2, 5, 3, 8)
    compiled = torch.compile(rotate, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, table), rotate(x, table))


def test_samples_follow_the_teachers_distribution():
    """One token of 8 codes: the frequencies of 4000 draws against the softmax of the logits."""
    sizes = {**SIZES, "grid": 1, "vocabulary": 8}
    teacher = LlamaGenTeacher(**sizes, codebook=torch.randn(8, 8)).requires_grad_(False)
    teacher.output.weight.mul_(3)
    labels = torch.full((4000,), 2)
    cond, uncond = (
        teacher.logits(torch.zeros(1, 1).long(), v[:1])[0, 0] for v in (labels, labels + 8)
    )
    for cfg, top_k in ((1.0, 0), (2.5, 5)):
        row = uncond + cfg * (cond - uncond)
        if top_k:
            row[row < row.topk(top_k).values[-1]] = -torch.inf
        drawn = teacher.sample(labels, cfg=cfg, top_k=top_k, seed=3)[:, 0].bincount(minlength=8)
        p = row.softmax(0)
        assert ((drawn / 4000 - p).abs() < 4 * (p * (1 - p) / 4000).sqrt() + 1e-9).all()


def test_sampling_is_a_function_of_seed_row_and_label(teacher):
    labels = torch.tensor([0, 1, 2, 3, 4, 5])
    before = torch.random.get_rng_state()
    first = teacher.sample(labels, cfg=1.5, top_k=20, top_p=0.9, seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first.shape == (6, 16) and first.dtype == torch.int64
    assert torch.equal(first, teacher.sample(labels, cfg=1.5, top_k=20, top_p=0.9, seed=1))
    assert torch.equal(first[:2], teacher.sample(labels[:2], cfg=1.5, top_k=20, top_p=0.9, seed=1))
    assert not torch.equal(first, teacher.sample(labels, cfg=1.5, top_k=20, top_p=0.9, seed=2))
    same = teacher.sample(torch.zeros(40, dtype=torch.int64), seed=-1)
    assert len({tuple(row.tolist()) for row in same}) == 40
    assert all(len(set(column.tolist())) > 1 for column in same.T)
    assert teacher.sample(labels[:0], cfg=2.0).shape == (0, 16)


def test_codebook_is_the_models_own_or_the_tokenizers(teacher):
    plain = LlamaGenTeacher(**SIZES)
    names = set(plain.state_dict())
    with pytest.raises(ValueError, match="codebook: LlamaGenTeacher has none; attach a tokenizer"):
        _ = plain.codebook
    assert plain.sample(torch.tensor([1])).shape == (1, 16), "tokens need no codebook"
    own = torch.randn(64, 8)
    given = LlamaGenTeacher(**SIZES, codebook=own)
    assert torch.equal(given.codebook, own) and set(given.state_dict()) == names
    given.tokenizer = teacher.tokenizer
    assert torch.equal(given.codebook, own)
    plain.tokenizer = teacher.tokenizer
    assert torch.equal(plain.codebook, teacher.tokenizer.codebook)
    assert set(plain.state_dict()) == names
    with pytest.raises(ValueError, match=r"tokenizer: expected codes \[32, 8\].*got \[64, 8\]"):
        LlamaGenTeacher(**{**SIZES, "vocabulary": 32}).tokenizer = teacher.tokenizer


def test_only_a_tokenizer_of_the_family_and_the_grid_is_attached(teacher):
    for other, name in ((var_models.tokenizer(), "VARTokenizer"), ([1], "list")):
        assert name == "list" or other.codebook.shape == teacher.codebook.shape
        with pytest.raises(TypeError, match=f"tokenizer: expected a LlamaGenTokenizer, got {name}"):
            teacher.tokenizer = other
    with pytest.raises(ValueError, match="tokenizer: expected grid 4, got 6"):
        teacher.tokenizer = LlamaGenTokenizer(vocabulary=64, channels=32, multiples=[1], grid=6)


def test_the_backbone_is_the_teacher_without_its_classifier(teacher):
    backbone = LlamaGenBackbone(**teacher.config)
    backbone.load_state_dict(
        {k: v for k, v in teacher.state_dict().items() if k != "output.weight"}
    )
    tokens, labels = torch.randint(64, (2, 16)), torch.tensor([0, 10])
    features = backbone(tokens, labels)
    assert features.shape == (2, 16, 64)
    assert torch.equal(teacher.head(features), teacher.logits(tokens, labels))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_casting_moves_the_weights_and_not_the_constants(teacher, dtype):
    want = parity.arrays("llamagen_tiny")
    half = LlamaGenTeacher(**SIZES, codebook=want["codebook"])
    half.load_state_dict(teacher.state_dict())
    half.to(dtype)
    assert half.constants.rotary.dtype == half.codebook.dtype == torch.float32
    assert torch.equal(half.codebook, want["codebook"])
    logits = half.logits(want["tokens"], want["labels"])
    assert logits.dtype == dtype
    assert relative(logits, want["logits"]) < {torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
    drawn = half.sample(want["labels"], cfg=2.0, top_k=1)
    agree = (drawn == want["greedy_tokens_cfg2.0"]).float().cumprod(1).mean()
    assert agree > {torch.bfloat16: 0.2, torch.float16: 0.6}[dtype]
    reduced = want["codebook"].to(dtype)[want["tokens"]]
    torch.testing.assert_close(half.logits(reduced, want["labels"]), logits)


def test_constants_survive_the_meta_device(teacher):
    with torch.device("meta"):
        model = LlamaGenTeacher(**SIZES)
    model.to_empty(device="cpu")
    model.load_state_dict(teacher.state_dict())
    tokens, labels = torch.randint(64, (2, 16)), torch.tensor([0, 10])
    assert torch.equal(model.logits(tokens, labels), teacher.logits(tokens, labels))
    assert copy.deepcopy(model).to("meta").constants.rotary.is_meta


def test_a_token_table_reads_codes_only(teacher):
    labels = torch.tensor([0, 1])
    tokens = torch.randint(64, (2, 16))
    codes = teacher.codebook[tokens]
    assert torch.equal(teacher.logits(codes, labels), teacher.logits(tokens, labels))
    last = codes.clone()
    last[:, -1] = torch.nan
    assert teacher.logits(last, labels).isfinite().all(), "the last token is not read"
    for bad in (codes + 1e-3, torch.randn(2, 16, 8), codes * torch.nan):
        with pytest.raises(ValueError, match=r"embeddings: a token table reads rows .*adapt\("):
            teacher.logits(bad, labels)
    with pytest.raises(ValueError, match=r"embeddings: a token table has no gradient .*adapt\("):
        teacher.logits(codes.requires_grad_(), labels)


@pytest.mark.parametrize(
    ("value", "labels", "error", "message"),
    [
        (torch.zeros(2, 15).long(), None, ValueError, r"tokens: expected shape \['B', 16\]"),
        (torch.full((2, 16), 64), None, ValueError, "tokens: expected values in 0..63, got 64"),
        (torch.zeros(2, 16).int(), None, TypeError, "tokens: expected dtype int64, got int32"),
        ([[0]], None, TypeError, "tokens: expected a torch.Tensor of int64, got list"),
        (torch.zeros(2, 16, 7), None, ValueError, r"embeddings: expected shape \['B', 16, 8\]"),
        (None, torch.tensor([0, 11]), ValueError, "labels: expected values in 0..10 .*got 11"),
        (None, torch.tensor([0]), ValueError, r"labels: expected shape \[2\]"),
        (None, torch.tensor([0.0, 1.0]), TypeError, "labels: expected dtype int64"),
    ],
)
def test_bad_input(teacher, value, labels, error, message: str):
    value = torch.zeros(2, 16).long() if value is None else value
    labels = torch.tensor([0, 1]) if labels is None else labels
    with pytest.raises(error, match=message):
        teacher.logits(value, labels)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"labels": [1]}, TypeError, "labels: expected a torch.Tensor of int64, got list"),
        ({"top_k": -1}, ValueError, "top_k: expected 0"),
        ({"top_p": 0.0}, ValueError, "top_p: expected a probability"),
        ({"cfg": "2"}, TypeError, "cfg: expected a number, got str"),
        ({"seed": 0.5}, TypeError, "seed: expected an int, got float"),
        ({"seed": True}, TypeError, "seed: expected an int, got bool"),
        ({"seed": 2**63}, ValueError, "seed: expected an integer of 64 bits"),
    ],
)
def test_bad_sampling_arguments(teacher, arguments: dict, error, message: str):
    with pytest.raises(error, match=message):
        teacher.sample(**({"labels": torch.tensor([1])} | arguments))


def test_choices_that_are_no_tokens(teacher):
    labels = torch.tensor([1, 2])
    for chosen, error in ((torch.zeros(2).long(), "shape"), (torch.full((2, 1), -1), "got -1")):
        with pytest.raises(ValueError, match=f"tokens: expected .*{error}"):
            teacher.generate(labels, lambda *_, chosen=chosen: chosen)
    broken = copy.deepcopy(teacher)
    broken.output.weight[3] = torch.nan
    with pytest.raises(ValueError, match="tokens: expected values in 0..63, got -1"):
        broken.sample(labels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 3}, "heads: expected heads of a multiple of 4 channels, got 3 over width = 64"),
        ({"heads": 32}, "heads: expected heads of a multiple of 4 channels, got 32"),
        ({"grid": 0}, "grid: expected at least 1, got 0"),
        ({"codebook": torch.ones(64, 7)}, r"codebook: expected shape \[64, 8\]"),
    ],
)
def test_bad_sizes(change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        LlamaGenTeacher(**{**SIZES, **change})
