"""The tool that refines trained students: its losses against their definitions, and its table."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from result_files import BENCH
from torch import Tensor, nn

from dd2_fast import checkpoints
from dd2_fast.losses.target import TeacherDistribution
from dd2_fast.models import LogitStudent
from dd2_fast.sampling.sources import bundled_path


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(BENCH / "tools"))
    import quality
    import refinement_losses
    import refinements

    yield SimpleNamespace(losses=refinement_losses, tool=refinements, quality=quality)


def brute_field(x: Tensor, positive: Tensor, temperature: float) -> Tensor:
    """The paper's field by sums over pairs: every kernel over the root of its row's sum times its
    column's, then ``sum_jk to_j away_k (y_j - x_k)``."""
    everything = [*positive, *x]
    n, p = len(x), len(positive)

    def kernel(i: int, j: int) -> float:
        if j == p + i:
            return 0.0
        return math.exp(-float((x[i] - everything[j]).norm()) / temperature)

    rows = [sum(kernel(i, j) for j in range(n + p)) for i in range(n)]
    columns = [sum(kernel(i, j) for i in range(n)) for j in range(n + p)]
    field = torch.zeros_like(x)
    for i in range(n):
        a = [kernel(i, j) / math.sqrt(rows[i] * columns[j]) for j in range(n + p)]
        for j in range(p):
            for k in range(n):
                field[i] += a[j] * a[p + k] * (positive[j] - x[k])
    return field


@pytest.mark.parametrize(("count", "real"), [(5, 3), (2, 4)])
def test_the_drift_field_is_that_of_the_definition(tools: Any, count: int, real: int) -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(2, count, 3, generator=rng, dtype=torch.float64)
    positive = torch.randn(2, real, 3, generator=rng, dtype=torch.float64) + 1
    found = tools.losses.drift(x, positive, 0.7)
    for group in range(2):
        torch.testing.assert_close(found[group], brute_field(x[group], positive[group], 0.7))
    single = tools.losses.drift(x.float(), positive.float(), 0.7)
    torch.testing.assert_close(single.double(), found, atol=1e-5, rtol=1e-4)


def test_the_drift_losses_gradient_goes_to_the_real_ones(tools: Any) -> None:
    """It is minus twice the field over D and the count, of each temperature of mean square 1."""
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(1, 6, 4, generator=rng, dtype=torch.float64)
    positive = torch.randn(1, 8, 4, generator=rng, dtype=torch.float64) + 3
    moved = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(tools.losses.drift_loss(moved, positive), moved)
    distances = torch.cat([torch.cdist(x, y).flatten() for y in (x, positive)])
    scale = distances.mean() / 2
    fields = [tools.losses.drift(x / scale, positive / scale, 2 * t) for t in (0.1, 0.2, 0.5)]
    field = sum(v / v.square().mean().sqrt() for v in fields)
    torch.testing.assert_close(gradient, -2 * field / (24 * scale))
    assert bool((-gradient.sum((0, 1)) > 0).all())


def test_straight_through_is_codes_with_the_expectations_gradient(tools: Any) -> None:
    rng = torch.Generator().manual_seed(2)
    logits = torch.randn(2, 3, 5, generator=rng, dtype=torch.float64, requires_grad=True)
    codebook = torch.randn(5, 4, generator=rng, dtype=torch.float64)
    direction = torch.randn(2, 3, 4, generator=rng, dtype=torch.float64)
    tokens = torch.randint(5, (2, 3), generator=rng)
    x = tools.losses.straight_through(tokens, logits, codebook)
    assert torch.equal(x, codebook[tokens])
    (found,) = torch.autograd.grad((x * direction).sum(), logits)
    p = logits.detach().softmax(-1)
    along = direction @ codebook.T  # d(sum_j p_j c_j . w) / dl_k = p_k (c_k . w - mean)
    torch.testing.assert_close(found, p * (along - (p * along).sum(-1, keepdim=True)))


def test_r1_and_the_gradient_of_its_penalty(tools: Any) -> None:
    """Of a linear network the slope is its weight; the penalty's gradient is the weight again."""
    judge = tools.losses.Discriminator(3, seed=0)
    judge.layers = nn.Linear(3, 1).double()
    value = judge.r1(torch.randn(4, 2, 3, dtype=torch.float64))
    weight = judge.layers.weight
    torch.testing.assert_close(value, 0.5 * weight.square().sum())
    torch.testing.assert_close(torch.autograd.grad(value, weight)[0], weight)


def test_a_discriminator_learns_the_density_ratio(tools: Any) -> None:
    """Normals of means 1 and 0: its log is x - 1/2."""
    rng = torch.Generator().manual_seed(3)
    judge = tools.losses.Discriminator(1, seed=0, penalty=0.0)
    for _ in range(150):
        noise = torch.randn(2, 256, 1, generator=rng)
        judge.update(noise[0] + 1, noise[1])
    x = torch.linspace(-1, 2, 7)[:, None]
    assert float((judge(x) - (x[:, 0] - 0.5)).abs().mean()) < 0.2


def test_ratio_weights(tools: Any) -> None:
    """Ratios 1 and 3: 1/2 and 3/2 of their mean; r / (1 + r) is 1/2 and 3/4."""
    log_ratio = torch.tensor([[0.0], [math.log(3.0)]])
    forward = tools.losses.ratio_weights(log_ratio, "forward")
    symmetric = tools.losses.ratio_weights(log_ratio, "symmetric")
    torch.testing.assert_close(forward, torch.tensor([[0.5], [1.5]]))
    torch.testing.assert_close(symmetric, torch.tensor([[0.8], [1.2]]))
    far = tools.losses.ratio_weights(torch.tensor([200.0] + [0.0] * 99), "forward")
    assert float(far.mean()) == pytest.approx(1) and bool(far.isfinite().all())


def test_divergences_are_those_of_the_definitions(tools: Any) -> None:
    rng = torch.Generator().manual_seed(4)
    p, q = (torch.randn(3, 6, generator=rng, dtype=torch.float64) * 2 for _ in range(2))

    def kl(a: Tensor, b: Tensor) -> Tensor:
        return (a * (a / b).log()).sum(-1).mean()

    def told(kind: str, student: Tensor, teacher: Tensor) -> float:
        distribution = TeacherDistribution(torch.zeros(6, 2, dtype=torch.float64), teacher)
        return float(tools.losses.divergence(kind, student, distribution))

    of_p, of_q = p.softmax(-1), q.softmax(-1)
    middle = (of_p + of_q) / 2
    both = float(kl(of_p, middle) + kl(of_q, middle)) / 2
    assert told("forward", q, p) == pytest.approx(float(kl(of_p, of_q)), rel=1e-9)
    assert told("reverse", q, p) == pytest.approx(float(kl(of_q, of_p)), rel=1e-9)
    assert told("symmetric", q, p) == pytest.approx(both, rel=1e-6)
    assert told("symmetric", p, q) == pytest.approx(both, rel=1e-6) and both < math.log(2)
    for kind in ("forward", "reverse", "symmetric"):
        assert told(kind, p, p) == pytest.approx(0, abs=1e-7)


def row(fd: float) -> dict[str, float]:
    return {name: fd for name in ("accuracy", "fd", "fd_class", "fd_pixel", "to_teacher",
                                  "to_teacher_class", "to_teacher_pixel", "recall", "nll",
                                  "copies")}  # fmt: skip


def write(folder: Path, name: str, seed: int, one: tuple[float, float], two: float) -> None:
    rows = {"0": {f"{name}+1": row(one[0]), f"{name}+2": row(two)}, "1": {f"{name}+1": row(one[1])}}
    teacher = {"0": row(0.5), "1": row(0.7)}
    report = {"seed": seed, "rows": rows, "teacher": teacher, "steps": 10, "cpu_seconds": 4.0}
    (folder / f"{name}-{seed}.json").write_text(json.dumps(report))


def test_the_table(tools: Any, tmp_path: Path) -> None:
    """Means of evaluations, then over seeds; a variant of one seed is in the first table alone."""
    write(tmp_path, "plain", 0, (1.0, 2.0), 3.0)
    write(tmp_path, "plain", 1, (2.0, 2.0), 5.0)
    write(tmp_path, "reverse", 0, (4.0, 4.0), 6.0)
    first, second = tools.quality.refinements(tmp_path).split("\n\n")
    cells = [[c.strip() for c in line.split("|")[1:-1]] for line in first.split("\n")[2:]]
    assert [line[1] for line in cells] == ["16 steps", "1", "2", "1", "2", "1"]
    assert [line[5] for line in cells] == ["0.600", "1.500", "3.000", "4.000", "6.000", "0.500"]
    assert cells[1][2:4] == ["10", "4"]
    cells = [[c.strip() for c in line.split("|")[1:-1]] for line in second.split("\n")[2:]]
    assert len(cells) == 2 and cells[0][1:3] == ["1", "2"]
    assert cells[0][4] == "1.750 (1.500 to 2.000)" and cells[1][4] == "4.000 (3.000 to 5.000)"


@pytest.mark.slow
def test_every_kind_of_variant_runs(
    tools: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a student that is a copy of its teacher, some steps each; a second call makes none."""
    bundle = checkpoints.load_bundle(bundled_path("digits"))
    checkpoints.save(tmp_path / "generator.safetensors", LogitStudent.from_teacher(bundle.teacher))
    monkeypatch.setattr(tools.tool, "CATCH_UP", 2)
    monkeypatch.setattr(tools.tool, "SAMPLES", 200)
    names = ["start", "plain", "symmetric", "ratio", "adversarial_real", "drift", "csd_ratio",
             "dd2_drift_real"]  # fmt: skip
    arguments = ["refinements.py", "--student", tmp_path, "--out", tmp_path / "out", "--work",
                 tmp_path / "work", "--steps", 2, "--samples", 200, "--only", *names]  # fmt: skip
    monkeypatch.setattr(sys, "argv", [str(a) for a in arguments])
    assert tools.tool.main() == 0
    files = {path.stem: path.read_bytes() for path in (tmp_path / "out").glob("*.json")}
    assert files.keys() == {f"{name}-0" for name in names}
    for name, text in files.items():
        rows = json.loads(text)["rows"]
        if name != "start-0":
            assert rows["0"].keys() == {f"{name[:-2]}+1", f"{name[:-2]}+2"}
        assert all(0 <= r["copies"] <= r["accuracy"] <= 1 for r in rows["0"].values())
    weights = [torch.load(path, weights_only=True) for path in (tmp_path / "work").glob("*-0.pt")]
    made = [w["weights"] for w in weights if "weights" in w and "head.weight" in w["weights"]]
    for i, one in enumerate(made):
        for other in made[:i]:
            assert not torch.equal(one["head.weight"], other["head.weight"])
    (tmp_path / "generator.safetensors").touch()
    assert tools.tool.main() == 0
    assert files == {path.stem: path.read_bytes() for path in (tmp_path / "out").glob("*.json")}
    assert tools.quality.refinements(tmp_path / "out").count("\n") >= len(names) + 4
