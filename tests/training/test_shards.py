"""Samples as shards: the teacher's own whatever the split, kills, damage, readers, live sources."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch
from parity import llamagen_models, var_models
from processes import run_python
from torch import Tensor

from dd2_fast.condition import ClassCondition
from dd2_fast.losses import TeacherScore, flow_pairs
from dd2_fast.models import DD2Generator, DD2Guidance, TableTeacher
from dd2_fast.models.llamagen import adapt
from dd2_fast.sampling.noise import image_noise
from dd2_fast.training.config import AdaptationConfig, RegressionConfig, Stage1Config
from dd2_fast.training.samples.draws import (
    LivePairs,
    LiveSamples,
    cfg_of,
    draw_tokens,
)
from dd2_fast.training.samples.make_shards import make_shards
from dd2_fast.training.samples.shards import (
    Manifest,
    ShardedPairs,
    ShardedSamples,
    ShardEntry,
    sha256_of_file,
    sha256_of_weights,
)
from dd2_fast.training.stages import GroundTruthScoreStage, RegressionStage
from dd2_fast.training.stages.adaptation import AdaptationStage

TEACHERS = {
    "var": (var_models.teacher, dict(cfg=1.5, top_k=20, top_p=0.95)),
    "llamagen": (lambda: llamagen_models.make_teacher().requires_grad_(False), dict(cfg=2.0)),
}
FAMILY = pytest.mark.parametrize("family", TEACHERS)


def make_score(family: str) -> TeacherScore:
    make, settings = TEACHERS[family]
    return TeacherScore(make(), **settings)


def table_score(vocabulary: int = 4, joint: Tensor | None = None, **settings) -> TeacherScore:
    """A teacher of two tokens, quick to draw from."""
    teacher = TableTeacher(
        num_tokens=2,
        vocabulary=vocabulary,
        dimension=1,
        joint=torch.rand(vocabulary, vocabulary) if joint is None else joint,
        codebook=torch.arange(float(vocabulary))[:, None],
    )
    return TeacherScore(teacher, **settings)


def some(source, size: int, seed: int):
    """A random batch of any source."""
    return source.take(source.draw(size, torch.Generator().manual_seed(seed)))


def everything(folder: Path) -> tuple[Tensor, Tensor]:
    samples = ShardedSamples(folder, verify=True)
    return samples.read(torch.arange(len(samples)))


@FAMILY
def test_the_samples_are_the_teachers_own_whatever_the_split(family, tmp_path) -> None:
    score = make_score(family)
    labels = torch.arange(13) % score.teacher.num_classes
    settings = dict(cfg=score.cfg, top_k=score.top_k, top_p=score.top_p)
    expected = score.teacher.sample(labels, seed=-5, **settings)
    for batch_size, shard_size in ((13, 13), (4, 5), (1, 20)):
        folder = tmp_path / f"{batch_size}"
        split = dict(batch_size=batch_size, shard_size=shard_size)
        assert make_shards(score, folder, num=13, seed=-5, **split) == 13
        tokens, found = everything(folder)
        assert torch.equal(tokens, expected) and torch.equal(found, labels)
        assert len(list(folder.iterdir())) == 1 + -(-13 // shard_size)
    assert tokens.dtype == found.dtype == torch.int64


@FAMILY
def test_pairs_are_the_flow_of_noise_that_is_not_stored(family, tmp_path) -> None:
    score = make_score(family)
    make_shards(score, tmp_path, num=7, seed=3, ode_steps=4, batch_size=3, shard_size=5)
    pairs = ShardedPairs(tmp_path, verify=True)
    noise, tokens, labels = some(pairs, 20, seed=0)
    assert noise.shape == (20, score.teacher.num_tokens, score.teacher.codebook.shape[1])
    assert noise.dtype == torch.float32 and len(pairs) == 7
    assert torch.equal(flow_pairs(noise, labels, score, 4), tokens)
    assert torch.equal(everything(tmp_path)[0].unique(dim=0), tokens.unique(dim=0))
    sampled = image_noise(3, torch.arange(7), tuple(noise.shape[1:]))
    assert torch.cdist(noise.flatten(1), sampled.flatten(1)).min() > 1, "noise of the sampler"
    assert max(p.stat().st_size for p in tmp_path.iterdir()) < 5 * noise[0].numel() * 4


def test_the_draw_has_the_teachers_distribution_at_any_index() -> None:
    """Total variation over 16 sequences; sampling 40000 has a standard error below 0.004."""
    score = table_score()
    indices = torch.arange(40000) + 10**12
    tokens = draw_tokens(score, torch.zeros_like(indices), indices, seed=2**62)
    counts = torch.bincount(tokens[:, 0] * 4 + tokens[:, 1], minlength=16).double()
    assert float((counts / 40000 - score.teacher.joint().flatten()).abs().sum()) / 2 < 0.015


def test_labels() -> None:
    indices = torch.arange(30000)
    assert ClassCondition(3).draw("balanced", 7, indices[:5]).tolist() == [0, 1, 2, 0, 1]
    ten = ClassCondition(10)
    uniform = ten.draw("uniform", 7, indices)
    assert uniform.bincount(minlength=10).sub(3000).abs().max() < 6 * 3000**0.5
    assert torch.equal(uniform[500:600], ten.draw("uniform", 7, indices[500:600]))
    assert not torch.equal(uniform, ten.draw("uniform", 8, indices))
    with pytest.raises(ValueError, match="labels: expected one of balanced, uniform, got 'x'"):
        ten.draw("x", 7, indices)


def test_no_guidance_is_each_familys_own() -> None:
    for family, expected in (("var", 0.0), ("llamagen", 1.0)):
        teacher = TEACHERS[family][0]()
        score = TeacherScore(teacher)
        assert cfg_of(score) == expected and cfg_of(TeacherScore(teacher, cfg=1.5)) == 1.5
        assert teacher.guidance_scale(cfg_of(score)) == score.guidance_scale() == 1.0


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_without_gap_or_duplicate(tmp_path) -> None:
    assert int(run_python("-m", "training.kill_points", folder=tmp_path)) > 20


def test_a_vocabulary_beyond_int16(tmp_path) -> None:
    teacher = TableTeacher(num_tokens=1, vocabulary=40000, dimension=1)
    make_shards(TeacherScore(teacher), tmp_path, num=400, batch_size=400)
    tokens, _ = everything(tmp_path)
    assert int(tokens.max()) > 1 << 15 and int(tokens.min()) >= 0
    stored = safetensors.torch.load_file(tmp_path / "shard-00000.safetensors")
    assert stored["tokens"].dtype == torch.int32


@pytest.fixture
def folder(tmp_path) -> Path:
    make_shards(table_score(), tmp_path / "data", num=25, shard_size=10)
    return tmp_path / "data"


def flip_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_a_damaged_shard_is_refused_by_name_and_made_anew(folder) -> None:
    torch.manual_seed(0)
    score = table_score()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    flip_last_byte(folder / "shard-00002.safetensors")
    ShardedSamples(folder)
    with pytest.raises(ValueError, match="shard-00002.safetensors: expected a shard with SHA-256"):
        ShardedSamples(folder, verify=True)
    (folder / "shard-00000.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="shard-00000.safetensors: .* bytes, got 3; run the same"):
        ShardedSamples(folder)
    (folder / "shard-00000.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="shard-00000.safetensors: the shard is missing"):
        ShardedSamples(folder)
    assert make_shards(score, folder, num=25, shard_size=10) == 10 + 5
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert make_shards(score, folder, num=25, shard_size=10) == 0


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [("tokens", 4, "tokens in 0..3, got 4"), ("labels", -1, "labels in 0..0, got -1")],
)
def test_values_that_would_index_other_memory_are_refused(folder, name, value, message) -> None:
    path = folder / "shard-00001.safetensors"
    stored = safetensors.torch.load_file(path)
    stored[name].view(-1)[3] = value
    safetensors.torch.save_file(stored, path, {"dd2_fast_shard": '{"number": 1, "of": 25}'})
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["shards"][1]["sha256"] = sha256_of_file(path)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(
        ValueError, match=f"shard-00001.safetensors: expected a shard with {message}"
    ):
        ShardedSamples(folder).read(torch.arange(25))


def test_other_settings_are_refused_by_name(folder) -> None:
    torch.manual_seed(0)
    score = table_score()
    other = dataclasses.replace(score, top_k=2)
    message = (
        r"different: num \(there 25, now 26\), seed \(there 0, now 1\), top_k \(there 0, now 2\); "
    )
    with pytest.raises(ValueError, match=message):
        make_shards(other, folder, num=26, seed=1, shard_size=10)
    with pytest.raises(ValueError, match=r"different: teacher_sha256 \(there '\w{64}', now"):
        make_shards(table_score(), folder, num=25, shard_size=10)


def test_a_full_disk_keeps_what_is_finished(tmp_path, monkeypatch) -> None:
    score = table_score()
    replace = os.replace

    def full(source, target):
        if Path(target).name == "shard-00002.safetensors":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OSError, match="No space left on device; the finished shards stay") as e:
            make_shards(score, tmp_path, num=40, shard_size=10)
        assert e.value.errno == errno.ENOSPC and e.value.filename.endswith("00002.safetensors")
    with pytest.raises(ValueError, match="finished set of 4 shards, got an unfinished job with 2;"):
        ShardedSamples(tmp_path)
    assert make_shards(score, tmp_path, num=40, shard_size=10) == 20
    assert len(everything(tmp_path)[0]) == 40


def test_bad_folders_and_manifests(tmp_path, folder) -> None:
    with pytest.raises(FileNotFoundError, match="make-data wrote, found no manifest.json"):
        ShardedSamples(tmp_path / "absent")
    with pytest.raises(ValueError, match="expected pairs, got samples without noise"):
        ShardedPairs(folder)
    path = folder / "manifest.json"
    good = json.loads(path.read_text())
    for text, message in (
        ("{", "expected a manifest of shards: Expecting"),
        ("[1]", "expected a manifest of shards"),
        (json.dumps({**good, "format": 9}), "format 1 is read here, this is 9"),
        (json.dumps({**good, "extra": 9}), "expected a manifest of shards: .*'extra'"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            ShardedSamples(folder)
        with pytest.raises(ValueError, match=message):
            make_shards(table_score(), folder, num=25)


def test_pairs_of_other_noise_are_refused(tmp_path) -> None:
    make_shards(table_score(), tmp_path, num=3, ode_steps=2)
    path = tmp_path / "manifest.json"
    text = path.read_text()
    manifest = json.loads(text)
    manifest["noise_start"][1] += 0.01
    path.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="noise is this version's, which starts with"):
        ShardedPairs(tmp_path)
    path.write_text(text)
    assert len(ShardedPairs(tmp_path)) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(num=0), "num: expected at least 1, got 0"),
        (dict(num=1, batch_size=0), "batch_size: expected at least 1, got 0"),
        (dict(num=1, shard_size=-1), "shard_size: expected at least 1, got -1"),
        (dict(num=10**15), "shard_size: expected at least 1000000000, which makes 1000000 shards"),
        (dict(num=1, ode_steps=0), "ode_steps: expected at least 1, got 0"),
        (dict(num=1, seed=2**63), "seed: expected an integer of 64 bits"),
        (dict(num=1, labels="all"), "labels: expected one of balanced, uniform, got 'all'"),
    ],
)
def test_bad_arguments_leave_no_folder(tmp_path, arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        make_shards(table_score(), tmp_path / "data", **arguments)
    with pytest.raises(ValueError, match="top_p: expected"):
        make_shards(table_score(top_p=1.5), tmp_path / "data", num=1)
    assert not (tmp_path / "data").exists()


def test_logits_that_are_not_finite_are_named(tmp_path) -> None:
    score = table_score()
    score.teacher._cached = (
        score.teacher.table._version,
        [torch.zeros(1, 4), torch.full((4, 4), torch.nan)],
    )
    with pytest.raises(ValueError, match="finite teacher's logits, got .* token 1 of image 4"):
        draw_tokens(score, torch.zeros(2, dtype=torch.int64), torch.tensor([4, 5]), 0)


@pytest.mark.parametrize("device", [None, "cpu"])
def test_a_batch_is_what_was_drawn(folder, device) -> None:
    samples, (tokens, labels) = ShardedSamples(folder, device=device), everything(folder)
    for size in (1, 60):
        chosen = samples.draw(size, torch.Generator().manual_seed(1))
        got, expected = samples.take(chosen), (tokens[chosen].long(), labels[chosen].long())
        assert all(
            torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(got, expected, strict=True)
        )
    empty, _ = samples.read(torch.zeros(0, dtype=torch.int64))
    assert empty.shape == (0, 2)
    with pytest.raises(IndexError, match="expected values in 0..24, got 3 to 25"):
        samples.read(torch.tensor([3, 25]))


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="tells the resident pages")
def test_only_the_rows_asked_for_are_read(tmp_path) -> None:
    """A shard of 64 MB is mapped, and four rows bring in less than a tenth of it."""
    count, path = 1 << 17, tmp_path / "shard-00000.safetensors"
    stored = {
        "tokens": (torch.arange(count, dtype=torch.int16) % 4)[:, None].repeat(1, 256),
        "labels": torch.zeros(count, dtype=torch.int32),
    }
    safetensors.torch.save_file(stored, path)
    settings = dict(num=count, shard_size=count, num_tokens=256, vocabulary=4, num_classes=1)
    settings |= dict(kind="samples", dimension=1, seed=0, cfg=0.0, top_k=0, top_p=1.0)
    entry = ShardEntry(path.name, path.stat().st_size, sha256_of_file(path))
    manifest = Manifest(settings, {}, [entry])
    (tmp_path / "manifest.json").write_bytes(manifest.to_json())
    del stored
    samples = ShardedSamples(tmp_path)
    rows = torch.tensor([5, count // 3, count // 2, count - 1])
    assert torch.equal(samples.read(rows)[0][:, 255], rows.short().long() % 4)
    lines = Path("/proc/self/smaps").read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.endswith(str(path)))
    resident = next(line for line in lines[start:] if line.startswith("Rss:"))
    assert 0 < int(resident.split()[1]) < 6400, "kB"


def test_samples_and_teacher_must_fit(folder) -> None:
    torch.manual_seed(0)
    samples, same = ShardedSamples(folder), table_score().teacher
    samples.check_teacher(same, weights=True)
    samples.check_teacher(table_score().teacher)
    with pytest.raises(ValueError, match=r"different: teacher_sha256 \(the samples '\w{64}', the"):
        samples.check_teacher(table_score().teacher, weights=True)
    message = (
        r"fit the teacher; different: dimension \(the samples 1, the teacher 8\), "
        r"num_classes \(.* 1, .* 10\), num_tokens \(.* 2, .* 16\), vocabulary \(.* 4, .* 64\)$"
    )
    with pytest.raises(ValueError, match=message):
        samples.check_teacher(llamagen_models.make_teacher())
    bare = var_models.teacher()
    bare.tokenizer = None
    with pytest.raises(ValueError, match="VARTeacher needs VAR's tokenizer"):
        samples.check_teacher(bare)


def test_the_identity_of_a_teacher_is_its_weights() -> None:
    a, b = (TEACHERS["llamagen"][0]() for _ in range(2))
    assert sha256_of_weights(a) == sha256_of_weights(b)
    with torch.no_grad():
        next(b.parameters()).view(-1)[7] += 1e-6
    assert sha256_of_weights(a) != sha256_of_weights(b)
    assert sha256_of_weights(a.bfloat16()) != sha256_of_weights(TEACHERS["llamagen"][0]())


@FAMILY
def test_live_samples_are_the_teachers(family) -> None:
    score = make_score(family)
    whole, split = LiveSamples(score), LiveSamples(score, batch_size=3)
    rng, same = (torch.Generator().manual_seed(5) for _ in range(2))
    first, second = (whole.take(whole.draw(8, rng)) for _ in range(2))
    chosen = split.draw(8, same)
    again = split.take(chosen)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], second[0])
    part = whole.take(chosen[[6, 2]])
    assert all(torch.equal(a, b[[6, 2]]) for a, b in zip(part, first, strict=True))
    want = draw_tokens(score, first[1], chosen, 0)
    assert torch.equal(first[0], want) and len(set(first[1].tolist())) > 1


def test_live_pairs_are_the_flow_of_their_noise() -> None:
    score = make_score("llamagen")
    whole, split = LivePairs(score, ode_steps=3), LivePairs(score, ode_steps=3, batch_size=2)
    noise, tokens, labels = some(whole, 5, seed=1)
    assert torch.equal(tokens, flow_pairs(noise, labels, score, 3))
    again = some(split, 5, seed=1)
    assert all(torch.equal(a, b) for a, b in zip((noise, tokens, labels), again, strict=True))
    for wrong in (dict(ode_steps=0), dict(batch_size=0)):
        with pytest.raises(ValueError, match="expected at least 1, got 0"):
            LivePairs(score, **wrong)
    with pytest.raises(ValueError, match="batch_size: expected at least 1, got 0"):
        LiveSamples(score, batch_size=0)


def test_shards_and_live_sources_stand_in_for_the_pools(tmp_path) -> None:
    """The stages take a step from each, with finite losses that differ between the sources."""
    score = make_score("llamagen")
    make_shards(score, tmp_path / "pairs", num=20, ode_steps=2)
    guidance = DD2Guidance.from_teacher(adapt(score.teacher)[0], head_width=16, head_depth=1)
    generator = DD2Generator.from_guidance(guidance)
    losses = set()
    for pool in (ShardedPairs(tmp_path / "pairs"), LivePairs(score, ode_steps=2)):
        stages = (
            GroundTruthScoreStage(guidance, score, pool, Stage1Config(batch=4)),
            RegressionStage(generator, score, pool, RegressionConfig(batch=4)),
        )
        for stage in stages:
            losses |= {float(v) for v in stage.step(0, torch.Generator().manual_seed(2)).values()}
    for samples in (ShardedSamples(tmp_path / "pairs"), LiveSamples(score)):
        stage = AdaptationStage(adapt(score.teacher)[0], samples, AdaptationConfig(batch=4))
        losses |= {float(v) for v in stage.step(0, torch.Generator().manual_seed(2)).values()}
    assert len(losses) == 12 and all(0 < loss < 1e6 for loss in losses)
