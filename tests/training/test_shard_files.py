"""Shards and run folders as files: two jobs at once, what kills leave, what is lost or damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from children import holding

from dd2_fast.checkpoints.files import replacing
from dd2_fast.checkpoints.locks import locked
from dd2_fast.losses import TeacherScore
from dd2_fast.models import TableTeacher
from dd2_fast.training.samples import make_shards as module
from dd2_fast.training.samples.make_shards import make_shards
from dd2_fast.training.samples.shards import ShardedSamples
from dd2_fast.training.state import RunState, clear_finished
from dd2_fast.training.watch import RunLog

SETTINGS = dict(num=25, shard_size=10)


@pytest.fixture
def score() -> TeacherScore:
    teacher = TableTeacher(
        num_tokens=2,
        vocabulary=4,
        dimension=1,
        joint=torch.arange(16.0).view(4, 4),
        codebook=torch.arange(4.0)[:, None],
    )
    return TeacherScore(teacher)


@pytest.fixture
def folder(score, tmp_path) -> Path:
    make_shards(score, tmp_path / "data", **SETTINGS)
    return tmp_path / "data"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_two_jobs_at_once(score, folder) -> None:
    before = contents(folder)
    with holding(locked(folder)) as child:
        with pytest.raises(BlockingIOError, match=f"found process {child} on"):
            make_shards(score, folder, **SETTINGS)
        assert ShardedSamples(folder, verify=True), "readers need no lock"
    assert make_shards(score, folder, **SETTINGS) == 0
    assert contents(folder) == before


def test_what_a_killed_job_left_goes(score, folder) -> None:
    before = contents(folder)
    (folder / "mine.sha256").write_text("of something else")
    with holding(replacing(folder / "shard-00001.safetensors")):
        assert len(list(folder.glob(".*.tmp"))) == 1
    (folder / ".shard-00002.safetensors.12.tmp").write_bytes(b"by an older version")
    make_shards(score, folder, **SETTINGS)
    (folder / "mine.sha256").unlink()
    assert contents(folder) == before


@pytest.mark.parametrize("what", ["folder", "shard", "sum", "manifest"])
def test_what_is_deleted_during_the_job_is_missed(
    what, score, folder, tmp_path, monkeypatch
) -> None:
    out, real = tmp_path / "out", module._write_shard

    def deleting(folder, number, *arguments):
        real(folder, number, *arguments)
        if number < 2:
            return
        if what == "folder":
            shutil.rmtree(folder)
        elif what == "shard":
            (folder / "shard-00000.safetensors").unlink()
        elif what == "sum":
            (folder / "shard-00001.safetensors.sha256").unlink()
        else:
            (folder / "manifest.json").unlink()

    with monkeypatch.context() as patch:
        patch.setattr(module, "_write_shard", deleting)
        with pytest.raises(FileNotFoundError, match=r"removed while the job ran|found no manifest"):
            make_shards(score, out, **SETTINGS)
    if what == "manifest":
        with pytest.raises(ValueError, match="holds shards of no known job; give another folder"):
            make_shards(score, out, **SETTINGS)
        return
    assert make_shards(score, out, **SETTINGS) == (25 if what == "folder" else 10)
    assert contents(out) == contents(folder)


def test_a_damaged_note_of_a_checksum(score, folder) -> None:
    before = contents(folder)
    (folder / "shard-00001.safetensors.sha256").write_bytes(b"\xff\xfe")
    assert make_shards(score, folder, **SETTINGS) == 10
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"settings": []}, "expected a manifest of shards"),
        ({"settings": {"num": 25}}, "'shard_size'"),
        ({"num": 10**15}, "expected 100000000000000 shards, got 3"),
        ({"num": 10**15, "shard_size": 1, "shards": None}, "set of 1000000000000000 shards, got"),
        ({"num": "25"}, "num: expected an integer of at least 1, got '25'"),
        ({"shard_size": 0}, "shard_size: expected an integer of at least 1, got 0"),
        ({"shards": []}, "expected 3 shards, got 0"),
        ({"shards": [{"file": "../x", "bytes": 1, "sha256": ""}] * 3}, "got '../x'"),
        ({"shards": 3}, "expected a manifest of shards"),
    ],
)
def test_manifests_that_lie(change, message, score, folder) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    for name, value in change.items():
        (manifest if name in manifest else manifest["settings"])[name] = value
    path.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=message):
        ShardedSamples(folder)
    with pytest.raises(ValueError):
        make_shards(score, folder, **SETTINGS)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_run_does_not_delete_its_inputs(tmp_path, overwrite) -> None:
    """The files that a finished run is cleared of, or that a new one writes."""
    for finished in (True, False):
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to(tmp_path / "teacher.safetensors")
        for given in (
            tmp_path / "teacher.safetensors",
            tmp_path / "link",
            "x/../teacher.safetensors",
        ):
            path = tmp_path / given
            with pytest.raises(ValueError, match="expected an input that the run does not replace"):
                clear_finished(
                    tmp_path, finished, ["teacher.safetensors"], overwrite, inputs=["", str(path)]
                )
    with pytest.raises((ValueError, FileExistsError)):
        clear_finished(tmp_path, True, [], overwrite, inputs=[str(tmp_path)])


def test_leftovers_of_a_run(tmp_path) -> None:
    (tmp_path / "samples").mkdir()
    for path in (tmp_path / "state.pt", tmp_path / "samples" / "ema-0000001.png"):
        with holding(replacing(path)):
            pass
    (tmp_path / ".state.pt.31.tmp").write_bytes(b"by an older version")
    with RunLog(tmp_path, tensorboard=False):
        assert not list((tmp_path / "samples").iterdir())
    assert not RunState(tmp_path, {}, {}, seed=0).resume()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.jsonl", "samples"]
