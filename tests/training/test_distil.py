"""`dd2-fast train CONFIG`: the recipe for a loaded teacher, alone and on several processes."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from forks import run_together
from pairwise import slow_except

from dd2_fast import checkpoints
from dd2_fast.cli import main
from dd2_fast.cli.train import config_names
from dd2_fast.losses import TeacherScore
from dd2_fast.models import DD2Generator, LogitStudent
from dd2_fast.ops import available_backends
from dd2_fast.sampling import Sampler
from dd2_fast.training.recipes import distil
from dd2_fast.training.recipes.distil import DistilConfig
from dd2_fast.training.recipes.teachers import load_teacher, open_samples
from dd2_fast.training.samples.make_shards import make_shards
from dd2_fast.training.settings import configure, flatten
from dd2_fast.training.stages import LogitStage
from dd2_fast.training.state import RunState, lasting_settings

FAMILIES = ("var", "llamagen")
# Small enough for a few seconds, every stage there.
SHORT = {
    "samples": {"cfg": 1.5, "top_k": 40},
    "score": {"cfg": 2.0, "top_k": 40, "top_p": 0.95},
    "network": {"head_width": 16, "head_depth": 1},
    "adaptation": {"steps": 3, "batch": 8},
    "stage1": {"head_steps": 2, "steps": 3, "batch": 8, "rate": 1e-3, "warmup": 1},
    "distill": {
        **{"guidance_start": 2, "steps": 4, "guidance_updates": 2, "align_steps": 2},
        **{"aligned_steps": 2, "aligned_updates": 1, "batch": 8, "warmup": 2, "objective": "sid"},
        **{"generator_rate": 3e-4, "guidance_rate": 6e-4},
    },
    "watch": {"images_every": 2, "images": 3, "tensorboard": False},
}


def config(family: str, **changes) -> DistilConfig:
    base = configure(DistilConfig(), {**SHORT, "source": {"teacher": f"random-{family}"}})
    return configure(base, changes)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for name in ("generator", "guidance"):
        model = checkpoints.load(folder / f"{name}.safetensors")
        found.update({f"{name}.{k}": v for k, v in model.state_dict().items()})
    return found


def worst_difference(a: Path, b: Path) -> float:
    left, right = weights(a), weights(b)
    assert left.keys() == right.keys() and left
    return max(float((left[k] - right[k]).abs().max()) for k in left)


@pytest.fixture(scope="module", params=FAMILIES)
def whole(request, tmp_path_factory) -> tuple[str, Path]:
    out = tmp_path_factory.mktemp("distil") / request.param
    return request.param, distil.run(config(request.param), out, progress=False)


def test_writes_a_generator_that_samples(whole: tuple[str, Path]) -> None:
    family, out = whole
    report = json.loads((out / "run.json").read_text())
    assert {"stage1", "guidance", "distill", "align", "aligned"} <= report["losses"].keys()
    assert ("adaptation" in report["losses"]) == (family == "llamagen")
    assert all(math.isfinite(v) for stage in report["losses"].values() for v in stage.values())
    assert (out / "teacher.safetensors").exists() == (family == "llamagen")
    assert not list(out.glob("state*.pt"))
    images = Sampler(out)([1, 2])
    assert images.shape[:2] == (2, 3) and images.isfinite().all()
    generator = checkpoints.load(out / "generator.safetensors")
    wanted = load_teacher(f"random-{family}").tokenizer.state_dict()
    found = generator.tokenizer.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(value, wanted[name]) for name, value in found.items())


def test_the_folder_of_a_run_is_a_model_of_the_command(whole, tmp_path: Path) -> None:
    argv = ["sample", "--num", "2", "--out", str(tmp_path / "a.png"), "--quiet", "--model"]
    assert main([*argv, str(whole[1])]) == 0


def test_a_tokenizer_with_a_file_of_its_own_stays_there(tmp_path: Path) -> None:
    teacher = load_teacher("random-llamagen")
    checkpoints.save(tmp_path / "t.safetensors", teacher)
    checkpoints.save(tmp_path / "vq.safetensors", teacher.tokenizer)
    files = {
        "teacher": str(tmp_path / "t.safetensors"),
        "tokenizer": str(tmp_path / "vq.safetensors"),
    }
    changes = {
        "adaptation": {"steps": 0},
        "stage1": {"head_steps": 0, "steps": 1},
        "distill": {"guidance_start": 0, "steps": 1, "align_steps": 0},
        "watch": {"images_every": 0},
    }
    out = distil.run(config("llamagen", source=files, **changes), tmp_path / "o", progress=False)
    assert "tokenizer" not in checkpoints.read_header(out / "generator.safetensors")


def test_log_and_grids(whole: tuple[str, Path]) -> None:
    _, out = whole
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    seen = {name for line in lines for name in line["values"]}
    assert {"gts", "fcs", "csd", "gap", "grad/generator", "grad/guidance"} <= seen
    assert {"lr/generator", "lr/guidance", "images_per_second"} <= seen
    steps = [
        line["step"] for line in lines if line["stage"] == "distill" and "csd" in line["values"]
    ]
    assert steps == [1, 2, 3, 4]
    names = sorted(path.name for path in (out / "samples").iterdir())
    assert names == ["aligned-0000002.png", "distill-0000002.png", "distill-0000004.png"]


def test_passes_of_a_batch_change_rounding_alone(whole: tuple[str, Path], tmp_path: Path) -> None:
    family, out = whole
    again = distil.run(config(family, execution={"micro_batch": 4}), tmp_path, progress=False)
    assert worst_difference(out, again) < 1e-4


def test_checkpointed_activations_change_nothing(whole: tuple[str, Path], tmp_path: Path) -> None:
    family, out = whole
    settings = {"checkpoint_activations": True, "report_every": 3}
    again = distil.run(config(family, execution=settings), tmp_path, progress=False)
    assert worst_difference(out, again) < 1e-6


def test_bfloat16_trains(tmp_path: Path) -> None:
    out = distil.run(config("llamagen", execution={"precision": "bfloat16"}), tmp_path / "a")
    found = weights(out)
    assert all(v.isfinite().all() and v.dtype == torch.float32 for v in found.values())
    report = json.loads((out / "run.json").read_text())
    assert report["losses"]["distill"]["fcs"] < 100


def run_one_of_two(family: str, sharding: str, micro_batch: int) -> None:
    execution = {"sharding": sharding, "micro_batch": micro_batch}
    distil.run(config(family, execution=execution), Path("out"), progress=False)
    # A thread of gloo's that is left may abort the interpreter as it ends.
    names = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
    assert not any("gloo" in name for name in names), names


@pytest.mark.parametrize(("sharding", "micro"), [("replicate", 0), ("replicate", 2), ("shard", 2)])
def test_two_processes_give_what_one_gives(
    whole: tuple[str, Path], tmp_path: Path, sharding: str, micro: int
) -> None:
    family, out = whole
    run_together(run_one_of_two, family, sharding, micro, folder=tmp_path)
    assert worst_difference(out, tmp_path / "out") < 1e-4
    assert json.loads((tmp_path / "out" / "run.json").read_text())["processes"] == 2
    ours, theirs = (
        json.loads((d / "run.json").read_text())["losses"] for d in (out, tmp_path / "out")
    )
    for stage, losses in ours.items():
        assert theirs[stage] == pytest.approx(losses, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize(
    "backend", slow_except([b for b, no in available_backends("cpu").items() if no is None], "cpu")
)
@pytest.mark.parametrize("family", FAMILIES)
def test_fused_and_reference_stay_together(family: str, backend: str) -> None:
    """Losses, gradients and weights of float32 trajectories over 20 steps of every stage."""
    long = {"steps": 40, "head_steps": 40, "batch": 8, "rate": 1e-3}
    distill = {**SHORT["distill"], "steps": 20}
    parts = list(
        distil.check_parity(config(family, stage1=long, distill=distill), 20, backend=backend)
    )
    names = {(part.stage, part.network) for part in parts}
    assert {("stage1", "all"), ("distill", "generator"), ("distill", "guidance")} <= names
    assert {part.steps for part in parts if part.stage in ("stage1", "distill")} == {20}
    for part in parts:
        assert part.loss < 1e-4 and part.gradient < 1e-3 and part.weights < 1e-4, part
    if backend == "torch":
        assert all(part.loss == part.weights == 0 for part in parts), "one backend, one result"


def test_parity_sees_a_wrong_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    from dd2_fast.training.stages import gts

    real = gts.gts_loss
    calls = iter(range(10**6))
    monkeypatch.setattr(
        gts, "gts_loss", lambda *a: real(*a) * (1.01 if next(calls) % 2 == 0 else 1)
    )
    part = next(iter(distil.check_parity(config("var"), 2)))
    assert part.stage == "stage1" and part.loss > 5e-3 and part.gradient > 5e-3


def test_dd1_alone(tmp_path: Path) -> None:
    settings = config("var", method="dd1", regression={"steps": 3, "batch": 4}, ode_steps=2)
    out = distil.run(settings, tmp_path, progress=False)
    report = json.loads((out / "run.json").read_text())
    assert report["losses"].keys() == {"regression"}
    assert not (out / "guidance.safetensors").exists()
    generator = checkpoints.load(out / "generator.safetensors")
    start = distil.Networks(settings, distil.Parallel()).generator
    moved = [
        not torch.equal(a, b)
        for a, b in zip(generator.parameters(), start.parameters(), strict=True)
    ]
    assert any(moved)


LOGITS = {"pairs": 12, "pair_batch": 6, "pair_steps": 2, "steps": 4, "batch": 8, "warmup": 1}


def logits_config(family: str, **changes) -> DistilConfig:
    settings = {"method": "logits", "logits": LOGITS, "ode_steps": 2, "samples": {"cfg": None}}
    return config(family, **{**settings, **changes})


def student_weights(folder: Path) -> dict[str, torch.Tensor]:
    return checkpoints.load(folder / "generator.safetensors").state_dict()


@pytest.fixture(scope="module", params=("causal", *FAMILIES))
def student(request, tmp_path_factory) -> tuple[str, Path]:
    out = tmp_path_factory.mktemp("logits") / request.param
    settings = logits_config(request.param, execution={"keep_every": 2})
    return request.param, distil.run(settings, out, progress=False)


def test_a_logit_student_samples(student: tuple[str, Path]) -> None:
    family, out = student
    report = json.loads((out / "run.json").read_text())
    assert report["losses"].keys() == {"pairs", "logits_start", "logits"}
    assert {p.name for p in out.glob("*.safetensors")} == {"generator.safetensors"}
    names = {path.stem for path in (out / "weights").iterdir()}
    assert names == {"logits_start-0000002", "logits-0000002", "logits-0000004"}
    generator = checkpoints.load(out)
    assert isinstance(generator, LogitStudent)
    start = distil.Networks(logits_config(family), distil.Parallel()).generator
    moved = [
        not torch.equal(a, b)
        for a, b in zip(generator.parameters(), start.parameters(), strict=True)
    ]
    assert sum(moved) > 0.9 * len(moved)
    assert Sampler(out)([1, 2]).isfinite().all()
    generator.teacher = load_teacher(f"random-{family}")
    assert Sampler(generator, jacobi=2, cfg=2.0)([1, 2]).isfinite().all()
    logged = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert {"kl", "grad/generator", "lr/generator"} <= {
        n for line in logged for n in line["values"]
    }
    assert (out / "samples" / "logits-0000004.png").is_file()


@pytest.mark.slow
def test_a_logit_student_goes_on_where_it_stopped(
    student: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, out = student
    settings = logits_config(family)
    real, left = LogitStage.step, iter(range(3))

    def stopping(self, index, rng):
        if next(left, None) is None:  # in the first step on its own codes but one
            raise KeyboardInterrupt
        return real(self, index, rng)

    monkeypatch.setattr(RunState, "due", lambda self: True)
    monkeypatch.setattr(LogitStage, "step", stopping)
    with pytest.raises(KeyboardInterrupt):
        distil.run(settings, tmp_path, progress=False)
    monkeypatch.setattr(LogitStage, "step", real)
    distil.run(settings, tmp_path, progress=False)
    ours, theirs = student_weights(tmp_path), student_weights(out)
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    longer = logits_config(family, logits={**LOGITS, "steps": 5})
    distil.run(longer, tmp_path, progress=False)  # a finished one, extended
    assert json.loads((tmp_path / "run.json").read_text())["settings"]["logits"]["steps"] == 5
    further = student_weights(tmp_path)
    assert any(not torch.equal(value, further[name]) for name, value in ours.items())


def train_student_of_two(family: str, sharding: str) -> None:
    execution = {"sharding": sharding, "micro_batch": 2}
    distil.run(logits_config(family, execution=execution), Path("out"), progress=False)


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["replicate", "shard"])
def test_two_processes_train_the_same_student(
    student: tuple[str, Path], tmp_path: Path, sharding: str
) -> None:
    family, out = student
    run_together(train_student_of_two, family, sharding, folder=tmp_path)
    ours, theirs = student_weights(tmp_path / "out"), student_weights(out)
    assert max(float((value - theirs[name]).abs().max()) for name, value in ours.items()) < 1e-4


def test_a_logit_student_of_fused_operators_and_of_plain_ones() -> None:
    parts = list(distil.check_parity(logits_config("var"), 3))
    assert [part.stage for part in parts] == ["logits_start", "logits"]
    assert all(max(part.loss, part.gradient, part.weights) < 1e-4 for part in parts)


def test_a_logit_student_of_shards(tmp_path: Path) -> None:
    make_shards(TeacherScore(load_teacher("random-var")), tmp_path / "s", num=9, ode_steps=2)
    source = {"teacher": "random-var", "data": str(tmp_path / "s")}
    samples = {"cfg": None, "top_k": 0}
    changes = {"source": source, "samples": samples, "logits": {**LOGITS, "pairs": 0}}
    distil.run(logits_config("var", **changes), tmp_path / "o", progress=False)
    with pytest.raises(ValueError, match="logits.pairs: expected 0 with source.data"):
        logits_config("var", source=source)


def test_samples_from_shards(tmp_path: Path, capsys) -> None:
    shards = tmp_path / "shards"
    teacher = load_teacher("random-llamagen")
    make_shards(TeacherScore(teacher, cfg=1.5, top_k=40), shards, num=30, seed=1)
    out = tmp_path / "out"
    (tmp_path / "own.toml").write_text(
        '[source]\nteacher = "random-llamagen"\n[network]\nhead_width = 8\nhead_depth = 1\n'
        "[stage1]\nsteps = 2\nhead_steps = 1\nbatch = 8\n"
        "[distill]\nsteps = 2\nguidance_start = 1\nbatch = 8\nobjective = 'sid'\n"
    )
    arguments = ["train", str(tmp_path / "own.toml"), "--data", str(shards), "--out", str(out)]
    arguments += ["--quiet", "--backend", "torch"]
    assert main([*arguments, "--set", "samples.top_p=0.9"]) == 2
    error = capsys.readouterr().err
    assert (
        f"{shards}: expected samples drawn with the configuration's settings; different: " in error
    )
    assert "samples.cfg (the shards 1.5, the configuration 1.0), samples.top_k (" in error
    accepting = "--set samples.cfg=1.5 --set samples.top_k=40 --set samples.top_p=1.0"
    assert f"; {accepting} trains on these" in error
    assert main([*arguments, *accepting.split()]) == 0
    assert capsys.readouterr().out == f"wrote {out}\n"
    settings = json.loads((out / "run.json").read_text())["settings"]
    assert settings["source"]["data"] == str(shards) and settings["stage1"]["steps"] == 2
    assert settings["samples"] == {"cfg": 1.5, "top_k": 40, "top_p": 1.0}
    other = tmp_path / "var.toml"
    other.write_text('[source]\nteacher = "random-var"\n')
    assert main(["train", str(other), "--data", str(shards), "--out", str(tmp_path / "b")]) == 2
    assert "expected samples that fit the teacher" in capsys.readouterr().err


def test_pairs_of_other_flows_are_refused_by_name(tmp_path: Path) -> None:
    score = TeacherScore(load_teacher("random-var"))
    make_shards(score, tmp_path, num=4, ode_steps=2)
    options = {"pairs": True, "device": torch.device("cpu")}
    assert len(open_samples(str(tmp_path), score, ode_steps=2, **options)) == 4
    with pytest.raises(ValueError, match=r"; --set ode_steps=2 trains on these"):
        open_samples(str(tmp_path), score, ode_steps=20, **options)


def test_published_configurations_are_whole(capsys) -> None:
    assert set(config_names()) >= {"var_d16", "var_d20", "var_d24", "llamagen_l", "tiny_var"}
    wanted = {
        "var_d16": (300_000, 8_000, 512, 2e-4, 2e-4, 5),
        "var_d20": (300_000, 16_000, 512, 2e-4, 2e-4, 5),
        "var_d24": (200_000, 15_000, 1024, 5e-5, 4e-4, 2),
        "llamagen_l": (0, 12_000, 1024, 1e-4, 2e-4, 5),
    }
    for name in config_names():
        assert main(["train", name, "--list"]) == 0
        listed = dict(line.split("=", 1) for line in capsys.readouterr().out.splitlines())
        if name in wanted:
            keys = ("steps", "batch", "generator_rate", "guidance_rate", "guidance_updates")
            values = [listed["stage1.head_steps"], *(listed[f"distill.{key}"] for key in keys)]
            assert [float(v) for v in values] == list(map(float, wanted[name])), name


BAD = {
    "section": ({"stage1": {"steps": -1}}, ValueError, "^stage1.steps: expected zero or more"),
    "name": ({"tempo": 1}, ValueError, "tempo: expected one of the fields"),
    "nested": ({"stage1": {"speed": 1}}, ValueError, "stage1.speed: expected one of"),
    "type": ({"stage1": {"steps": 1.5}}, TypeError, "stage1.steps: expected an integer, got 1.5"),
    "table": ({"stage1": 3}, TypeError, "stage1: expected a table, got 3"),
    "method": ({"method": "dd3"}, ValueError, "method: expected one of dd2, dd1, logits"),
    "dd1": ({"method": "dd1"}, ValueError, "regression.steps: expected at least 1"),
    "start": ({"method": "logits", "start": "a:stage1"}, ValueError, "nothing for method logits"),
    "logits": ({"logits": {"steps": -1}}, ValueError, "logits.steps: expected zero or more"),
    "precision": ({"execution": {"precision": "int8"}}, ValueError, "precision: expected one of"),
    "report": ({"execution": {"report_every": 0}}, ValueError, "report_every: expected at least"),
    "sign": ({"stage1": {"batch": 0}}, ValueError, "batch: expected a positive number"),
}


@pytest.mark.parametrize(("table", "kind", "message"), BAD.values(), ids=BAD.keys())
def test_bad_settings(table: dict, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        configure(DistilConfig(), table)


def test_bad_sources(tmp_path: Path, capsys) -> None:
    for arguments, message in (
        (["var_d16"], "source.teacher: expected a checkpoint"),
        (["var_d17"], "recipe: expected one of digits, toy,"),
        (["digits", "--teacher", "x"], "--teacher: the recipe digits makes its own"),
        (
            ["tiny_var", "--check-parity", "0"],
            "--check-parity: expected an integer in 1..",
        ),
        (["toy", "--check-parity", "1"], "--check-parity: expected a configuration"),
        (["tiny_var", "--backend", "magic"], "backend: expected one of"),
    ):
        assert main(["train", *arguments, "--out", str(tmp_path / "o")]) == 2, arguments
        assert message in capsys.readouterr().err
    with pytest.raises(ValueError, match="batch: expected a multiple of 1 processes times"):
        distil.run(config("var", execution={"micro_batch": 3}), tmp_path / "o", progress=False)
    with pytest.raises(ValueError, match="expected a teacher, got a DD2Generator"):
        generator = tmp_path / "g.safetensors"
        teacher = load_teacher("random-var")
        checkpoints.save(generator, DD2Generator.from_teacher(teacher, head_width=8))
        load_teacher(str(generator))


def test_other_execution_may_resume() -> None:
    settings = dataclasses.replace(config("var"), overwrite=True)
    names = flatten(settings).keys() - lasting_settings(settings).keys()
    assert {"execution.micro_batch", "watch.images", "overwrite"} <= names
    assert not any(name.startswith(("stage1", "distill", "seed", "source")) for name in names)
