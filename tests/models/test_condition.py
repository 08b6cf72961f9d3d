"""Conditions: classes, and a family whose condition is a pair of tensors, which trains and samples
without another line of the package."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dd2_fast.checkpoints.registry import KINDS
from dd2_fast.condition import ClassCondition, Condition, condition_of
from dd2_fast.losses import TeacherScore
from dd2_fast.models import DD2Generator, VQTokenizer
from dd2_fast.models.attached import Attached
from dd2_fast.models.causal.transformer import Block
from dd2_fast.models.checks import embed_tokens
from dd2_fast.models.families import FAMILIES
from dd2_fast.models.family import Family
from dd2_fast.models.sampling import Choose, TokenByToken
from dd2_fast.ops.philox import image_normal
from dd2_fast.sampling import Sampler
from dd2_fast.sampling.buckets import BucketedCall
from dd2_fast.training.config import TeacherConfig
from dd2_fast.training.recipes import distil
from dd2_fast.training.recipes.teachers import RANDOM
from dd2_fast.training.samples.make_shards import make_shards
from dd2_fast.training.samples.pool import PairPool
from dd2_fast.training.samples.shards import ShardedSamples
from dd2_fast.training.settings import configure
from dd2_fast.training.stages import PairsStage, TeacherStage

Pair = tuple[Tensor, Tensor]  # of text, say: one vector [B, 4] and a sequence [B, 3, 2]


class PairCondition(Condition):
    def check(
        self, rows: Any, count: int | None = None, device: torch.device | None = None
    ) -> None:
        if not isinstance(rows, tuple) or [r.shape[1:] for r in rows] != [(4,), (3, 2)]:
            raise ValueError("condition: expected tensors [B, 4] and [B, 3, 2]")
        assert count is None or len(rows[0]) == len(rows[1]) == count

    def null(self, rows: Pair) -> Pair:
        return torch.zeros_like(rows[0]), torch.zeros_like(rows[1])

    def draw(self, rule: str, seed: int, indices: Tensor) -> Pair:
        return (
            image_normal(seed, indices, (4,), stream=8),
            image_normal(seed, indices, (3, 2), stream=9),
        )


class PairBackbone(nn.Module):
    condition = PairCondition()
    apart = ()

    def __init__(self, *, num_tokens: int, dimension: int, adapted: bool = False) -> None:
        super().__init__()
        self.num_tokens, self.dimension, self.width = num_tokens, dimension, 16
        self.adapted = adapted
        self.backbone_config = {"num_tokens": num_tokens, "dimension": dimension}
        self.vector, self.sequence = nn.Linear(4, 16), nn.Linear(6, 16)
        self.input = nn.Linear(dimension, 16)
        self.positions = nn.Parameter(torch.randn(num_tokens, 16) / 10)
        self.blocks = nn.ModuleList(Block(16, 2) for _ in range(2))

    def network_config(self, exact: bool) -> dict[str, Any]:
        return {**self.backbone_config, "adapted": True}

    def forward(self, embeddings: Tensor, labels: Pair) -> Tensor:
        start = self.vector(labels[0]) + self.sequence(labels[1].flatten(1))
        h = torch.cat([start[:, None], self.input(embeddings[:, :-1])], 1) + self.positions
        for block in self.blocks:
            h = block(h)
        return h


class PairTeacher(TokenByToken, Attached):
    condition = PairBackbone.condition
    codebook: Tensor

    def __init__(self, codebook: Tensor, num_tokens: int) -> None:
        super().__init__()
        self.num_tokens, self.config = num_tokens, {"num_tokens": num_tokens}
        self.register_buffer("codebook", codebook)
        self.backbone = PairBackbone(num_tokens=num_tokens, dimension=codebook.shape[1])
        self.classifier = nn.Linear(16, len(codebook))

    def logits(self, tokens_or_embeddings: Tensor, labels: Pair) -> Tensor:
        x = embed_tokens(tokens_or_embeddings, self.codebook, self.num_tokens, "embeddings")
        self.condition.check(labels, len(x))
        return 4 * self.classifier(self.backbone(x, labels))

    @torch.no_grad()
    def generate(
        self,
        labels: Pair,
        choose: Choose,
        *,
        guided: bool = False,
        prefix: Tensor | None = None,
        drawn_steps: Any = None,
    ) -> Tensor:
        batch = self.condition.count(labels)
        tokens = torch.zeros(batch, self.num_tokens, dtype=torch.int64)
        first = 0 if prefix is None else prefix.shape[1]
        if prefix is not None:
            tokens[:, :first] = prefix
        rows = self.condition.with_null(labels) if guided else labels
        for here in self.steps[first:]:
            every = self.logits(torch.cat([tokens, tokens]) if guided else tokens, rows)[:, here]
            tokens[:, here] = choose(here, every[:batch], every[batch:] if guided else None)
        return tokens


def make_teacher() -> PairTeacher:
    tokenizer = VQTokenizer(vocabulary=16, dimension=4, image_size=8, width=8)
    nn.init.normal_(tokenizer.codebook)
    teacher = PairTeacher(tokenizer.codebook.detach().clone(), tokenizer.num_tokens)
    teacher.tokenizer = tokenizer.eval().requires_grad_(False)
    return teacher


def adapt(teacher: PairTeacher, seed: int) -> PairTeacher:
    adapted = copy.deepcopy(teacher)
    adapted.backbone.adapted = True
    return adapted


@pytest.fixture
def family(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a line in families.py does."""
    family = Family("pair", PairBackbone, {"pair_teacher": PairTeacher}, make_teacher, adapt=adapt)
    monkeypatch.setitem(FAMILIES, "pair", family)
    monkeypatch.setitem(RANDOM, "random-pair", family.random)
    path = f"{PairTeacher.__module__}:{PairTeacher.__qualname__}"
    monkeypatch.setitem(KINDS, "pair_teacher", path)


@pytest.fixture
def teacher() -> PairTeacher:
    torch.manual_seed(0)
    return make_teacher().eval().requires_grad_(False)


SETTINGS = {
    "source": {"teacher": "random-pair"},
    "samples": {"cfg": 1.5, "top_k": 12},
    "score": {"cfg": 2.0},
    "network": {"head_width": 8, "head_depth": 1},
    "adaptation": {"steps": 2, "batch": 4, "label_dropout": 0.5},
    "stage1": {"head_steps": 1, "steps": 2, "batch": 4, "rate": 1e-2, "warmup": 0},
    "regression": {"steps": 2, "batch": 4, "rate": 1e-2, "warmup": 0},
    "distill": {"guidance_start": 1, "steps": 3, "guidance_updates": 2, "batch": 4}
    | {"align_steps": 1, "aligned_steps": 2, "auxiliary": 0.5},
    "execution": {"micro_batch": 2},
    "watch": {"images_every": 2, "images": 3, "tensorboard": False},
    "ode_steps": 2,
}


def test_a_family_with_another_condition_trains_and_samples(family: None, tmp_path: Path) -> None:
    out = distil.run(configure(distil.DistilConfig(), SETTINGS), tmp_path / "run", progress=False)
    losses = json.loads((out / "run.json").read_text())["losses"]
    stages = {"adaptation", "stage1", "regression", "guidance", "distill", "align", "aligned"}
    assert losses.keys() == stages
    sampler = Sampler(out)
    rows = sampler.condition.draw("uniform", 5, torch.arange(5))
    images = sampler(rows, seed=3)
    assert images.shape == (5, 3, 8, 8) and images.isfinite().all()
    alone = sampler(sampler.condition.take(rows, slice(3, 5)), seed=3, start_index=3)
    torch.testing.assert_close(alone, images[3:], atol=1e-5, rtol=0)
    x, other = (sampler(y, seed=3, output="latent") for y in (rows, sampler.condition.null(rows)))
    assert (other - x).abs().amax((1, 2)).min() > 1e-6
    assert sampler(sampler.condition.take(rows, slice(0, 0))).shape == (0, 3, 8, 8)
    with pytest.raises(ValueError, match="condition: expected tensors"):
        sampler([1, 2])
    with pytest.raises(AttributeError, match="num_classes"):
        _ = sampler.generator.num_classes


def test_its_teacher_refines_and_says_where_it_is_not_finite(
    family: None, teacher: PairTeacher
) -> None:
    generator = DD2Generator.from_teacher(adapt(teacher, 0), head_width=8, head_depth=1)
    generator.teacher = teacher
    sampler = Sampler(generator, teacher_steps=4, cfg=2.0, batch_size=2)
    rows = sampler.condition.draw("uniform", 5, torch.arange(3))
    tokens = sampler(rows, output="tokens")
    assert tokens.shape == (3, teacher.num_tokens)
    teacher.classifier.bias[0] = torch.nan
    with pytest.raises(FloatingPointError, match="of image 0$"):
        sampler(rows)


def test_its_samples_on_disk(family: None, teacher: PairTeacher, tmp_path: Path) -> None:
    score = TeacherScore(teacher, cfg=1.5)
    make_shards(score, tmp_path, num=7, seed=3, batch_size=2, shard_size=4)
    samples = ShardedSamples(tmp_path, verify=True)
    samples.check_teacher(teacher, weights=True)
    indices = torch.tensor([6, 0, 5])
    tokens, rows = samples.read(indices)
    wanted = teacher.condition.draw("balanced", 3, indices)
    assert isinstance(rows, tuple)
    assert all(torch.equal(a, b) for a, b in zip(rows, wanted, strict=True))
    every = teacher.condition.draw("balanced", 3, torch.arange(7))
    assert torch.equal(teacher.sample(every, cfg=1.5, seed=3)[indices], tokens)


def test_stages_over_its_pairs_and_images(teacher: PairTeacher) -> None:
    pool = PairPool(6, teacher.num_tokens, 4, teacher.condition)
    rng = torch.Generator().manual_seed(0)
    stage = PairsStage(pool, TeacherScore(teacher, cfg=2.0), batch=4, ode_steps=2)
    for index in range(stage.steps):
        stage.step(index, rng)
    noise, _, rows = pool.take(torch.tensor([5, 1]))
    assert [row.shape for row in rows] == [(2, 4), (2, 3, 2)]
    assert all(tensor.abs().sum() > 0 for tensor in (noise, *rows))
    images = torch.rand(5, 3, 8, 8, generator=rng)
    every = teacher.condition.random(5, rng)
    config = TeacherConfig(steps=3, batch=4, label_dropout=0.5)
    teacher.requires_grad_(True)
    teaching = TeacherStage(teacher, teacher.tokenizer, images, every, config)
    before = [p.detach().clone() for p in teacher.parameters()]
    teaching.prepare()
    for index in range(3):
        assert float(teaching.step(index, rng)["nll"]) > 0
    assert all(not torch.equal(a, b) for a, b in zip(teacher.parameters(), before, strict=True))


ROWS = {
    "tensor": torch.arange(10.0).view(5, 2),
    "pair": (torch.arange(5), torch.arange(30.0).view(5, 3, 2)),
    "dict": {"text": torch.arange(10.0).view(5, 2), "mask": torch.arange(5) > 2},
}


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_rows_are_taken_apart_and_put_together(rows: Any) -> None:
    """Whatever they are made of, as one tensor after the other."""

    class Zero(Condition):
        def null(self, rows: Any) -> Any:
            named = {name: torch.zeros_like(t) for name, t in self.tensors(rows).items()}
            return self.of_tensors(named)

    condition = Zero()
    tensors = condition.tensors(rows)
    assert all(name.startswith("condition") for name in tensors)
    same = condition.of_tensors({**tensors, "tokens": torch.zeros(1)})
    assert type(same) is type(rows) and condition.count(rows) == 5
    with pytest.raises(KeyError, match="condition"):
        condition.of_tensors({"tokens": torch.zeros(1)})
    chosen, dropped = torch.tensor([4, 0]), torch.tensor([True, False, False, True, False])
    parts = condition.split(rows, 2)
    assert [condition.count(part) for part in parts] == [2, 2, 1]
    for name, tensor in tensors.items():
        assert torch.equal(condition.tensors(same)[name], tensor)
        assert torch.equal(condition.tensors(condition.take(rows, chosen))[name], tensor[chosen])
        assert torch.equal(condition.tensors(condition.cat(parts))[name], tensor)
        both = condition.tensors(condition.with_null(rows))[name]
        assert torch.equal(both, torch.cat([tensor, torch.zeros_like(tensor)]))
        left = condition.tensors(condition.drop(rows, dropped))[name]
        assert torch.equal(left[~dropped], tensor[~dropped]) and not left[dropped].any()
        assert condition.tensors(condition.to(rows, "meta"))[name].is_meta


def test_nested_rows_are_padded_like_tensors() -> None:
    seen = []

    def function(x: Tensor, rows: Any) -> Tensor:
        seen.append(len(x))
        return x + rows["a"] + rows["b"][:, 0]

    call = BucketedCall(function, 4)
    x, a, b = torch.arange(3), torch.arange(3) * 10, torch.arange(6).view(3, 2) * 100
    assert call(x, {"a": a, "b": b}).tolist() == [0, 211, 422] and seen == [4]


def test_classes() -> None:
    ten = ClassCondition(10)
    labels = torch.tensor([3, 9])
    assert ten.with_null(labels).tolist() == [3, 9, 10, 10]
    assert ten.drop(labels, torch.tensor([False, True])).tolist() == [3, 10]
    rng = torch.Generator().manual_seed(0)
    assert torch.equal(ten.random(50, rng), torch.randint(10, (50,), generator=rng.manual_seed(0)))
    assert ten.tensors(labels).keys() == {"labels"} and ten.about(labels, 1) == "label 9"


def test_the_condition_of_a_model() -> None:
    class Own:
        num_classes = 3
        condition = nn.Linear(2, 2)  # of one's own, something else

    assert condition_of(Own()) == ClassCondition(3)
    assert isinstance(condition_of(PairBackbone(num_tokens=2, dimension=2)), PairCondition)
