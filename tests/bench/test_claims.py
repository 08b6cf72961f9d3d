"""The tool that measures the paper's claims and its tables, against figures worked out by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from result_files import BENCH
from torch import Tensor, nn

from dd2_fast.models import ARTeacher, DD2Generator, DD2Guidance, VQTokenizer

NAMES = ("fd_teacher", "fd", "fd_teacher_codes", "fd_codes")


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(BENCH / "tools"))
    import claim_tables
    import claims
    import trajectories

    yield SimpleNamespace(tables=claim_tables, claims=claims, trajectories=trajectories)


def cells(table: str) -> list[list[str]]:
    return [[c.strip() for c in line.split("|")[1:-1]] for line in table.split("\n")[2:]]


def curve(*points: tuple[float, float]) -> list[dict[str, float]]:
    return [{"seconds": s, **dict.fromkeys(NAMES, fd)} for s, fd in points]


def test_speed(tools: Any, tmp_path: Path) -> None:
    """DD1: 200 s to 0.5, 10 of them for its pairs; DD2 is below after 50, 30 of them before stage
    2, at one seed, and never at the other."""
    for seed, last in enumerate((0.45, 0.6)):
        report = {
            "seed": seed,
            "dd1": {"before": 10.0, "curve": curve((100, 0.8), (150, 0.54), (200, 0.5))},
            "dd2": {"before": 30.0, "curve": curve((40, 0.9), (50, last), (60, 0.7))},
        }
        (tmp_path / f"speed-{seed}.json").write_text(json.dumps(report))
    row = cells(tools.tables.speed(tmp_path))[0]
    two = "{0} ({0} to {0})".format
    assert row[:2] == ["averages along the training", "to the teacher"]
    assert row[2:5] == [two("0.500"), two("200"), two("150")]
    assert row[5:] == ["1 of 2", "50", "4.0", "9.5"]


def test_steadiness(tools: Any, tmp_path: Path) -> None:
    """Deviations of 1, 2, 3 and of 2, 2.5, 3 are 1 and 0.5, ranges 2 and 1."""
    ways = {"continued": [1.0, 2.0, 3.0], "aligned": [3.0, 2.0, 2.5]}
    report = {
        name: {"seconds": 5.0, **{k: {"fd_teacher": v, "fd": v} for k in ("raw", "average")}}
        for name, v in ways.items()
    }
    (tmp_path / "steadiness-0.json").write_text(json.dumps({"seed": 0, **report}))
    row = cells(tools.tables.steadiness(tmp_path).partition("\n\n")[0])[0]
    assert row[3:] == ["2.000", "2.500", "1.000", "0.500", "50", "2.000", "1.000", "50"]


def test_updates(tools: Any, tmp_path: Path) -> None:
    """Error 2 and signal 4 at a mean over the times; one point is both equal updates and time."""
    distances = {k: {"fd_teacher": 0.5, "fd": 0.7} for k in ("raw", "average")}
    errors = {"error": [1.0, 2, 2, 2, 3], "excess": [3.0] * 5, "signal": [4.0] * 5}
    point = {"updates": 42, "seconds": 20.0, **errors, **distances}
    report = {"seed": 0, "times": [0.1, 0.3, 0.5, 0.7, 0.9], "K=8": [point]}
    (tmp_path / "updates-0.json").write_text(json.dumps(report))
    rows = cells(tools.tables.updates(tmp_path))
    assert [row[0] for row in rows] == ["equal updates", "equal time"]
    means = ["2.000", "3.000", "1.000", "2.000", "3.000", "0.50"]
    assert rows[0][1:] == rows[1][1:] == ["8", "42", "20", *means, "0.50", "0.70", "0.50", "0.70"]


class _Velocity(nn.Module):
    """The prediction of ``codes`` whatever it is asked, and a constant."""

    def __init__(self, code: Tensor, off: float) -> None:
        super().__init__()
        self.code, self.off = code, off

    def forward(self, x_t: Tensor, t: Tensor, x: Tensor, labels: Tensor) -> Tensor:
        return (x_t - self.code) / t[..., None] + self.off


class _OneCode:
    """A teacher that is certain of code 0 and the tokenizer's codes."""

    num_classes, num_tokens = 10, 4

    def __init__(self, codebook: Tensor) -> None:
        self.codebook = codebook

    def logits(self, x: Tensor, labels: Tensor) -> Tensor:
        return torch.tensor([0.0, -1e4]).expand(*x.shape[:2], 2)

    def guidance_scale(self, cfg: float) -> float:
        return 1.0


def test_errors_of_a_velocity_that_is_off_by_a_constant(tools: Any) -> None:
    """Generator and teacher make one code: the mean is known, and so are error, excess, signal."""
    codebook = torch.tensor([[1.0, -1.0, 2.0], [0.0, 0.0, 0.0]])
    found = SimpleNamespace(
        seed=0,
        data=SimpleNamespace(test_labels=torch.arange(500) % 10),
        models={
            "teacher": _OneCode(codebook),
            "tokenizer": SimpleNamespace(codebook=codebook),
        },
    )
    generator = nn.Module()
    generator.forward = lambda noise, labels: codebook[0].expand_as(noise)  # type: ignore[method-assign]
    guidance, exact = (_Velocity(codebook[0], off) for off in (0.5, 0.0))
    told = tools.claims.errors(found, generator, guidance, exact)
    assert told["error"] == pytest.approx([3 * 0.25] * 5, rel=1e-5)
    assert told["excess"] == pytest.approx([3 * 0.25] * 5, rel=1e-4)
    assert told["signal"] == pytest.approx([0.0] * 5, abs=1e-6)
    doubled = tools.claims.errors(found, generator, exact, guidance)
    assert doubled["signal"] == pytest.approx([3 * 0.25] * 5, rel=1e-4)
    assert doubled["excess"] == pytest.approx([-3 * 0.25] * 5, rel=1e-4)


def test_what_a_training_passes_through(tools: Any) -> None:
    """A copy of the average every 40 steps and at the last; seconds do not count copying."""
    network = nn.Linear(1, 1)
    stage = SimpleNamespace(
        name="distill", steps=100, ema=network, generator=network, guidance=network
    )
    along = tools.trajectories.Along("distill")
    for index in range(100):
        nn.init.constant_(network.weight, index + 1.0)
        along(stage, index)
    assert [p["step"] for p in along.points] == [40, 80, 100]
    assert [float(p["weights"]["weight"]) for p in along.points] == [40, 80, 100]
    assert along.seconds.keys() == {"distill"} and along.networks == {}
    clock = tools.trajectories.Clock()
    before = clock()
    clock.paused(lambda: sum(range(2_000_000)))
    assert clock() - before < 0.01


def test_path_lengths_are_those_of_the_definition(tools: Any) -> None:
    """A generator twice as fast has four times the length."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer = VQTokenizer(vocabulary=8, dimension=3, width=8).eval()
        teacher = ARTeacher(num_tokens=tokenizer.num_tokens, vocabulary=8, dimension=3,
                            num_classes=10, width=8, layers=1, heads=1)  # fmt: skip
        guidance = DD2Guidance.from_teacher(teacher, head_width=8, head_depth=1)
    tokenizer.decode = lambda x: x.flatten(1)[:, None, None, :].expand(-1, 3, 1, -1)
    classifier = SimpleNamespace(features=lambda images: images[:, 0, 0, :2])
    models = SimpleNamespace(teacher=teacher, tokenizer=tokenizer, classifier=classifier)
    generator = DD2Generator.from_guidance(guidance).eval()
    labels = torch.arange(6)
    once = tools.claims.path_lengths(models, generator, labels, (1e-2,))["0.01"]

    class Twice(nn.Module):
        def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
            return 2 * generator(noise, labels)

    twice = tools.claims.path_lengths(models, Twice(), labels, (1e-2,))["0.01"]
    for kind in ("features", "pixels"):
        assert twice[kind]["mean"] == pytest.approx(4 * once[kind]["mean"], rel=1e-4)
        assert once[kind]["mean"] > once[kind]["error"] > 0
    assert once["features"]["mean"] < once["pixels"]["mean"]  # two of its values
