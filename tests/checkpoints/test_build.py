"""Building: threads, ambient state, sizes that the tensors do not bear out, tied weights."""

from __future__ import annotations

import json
import multiprocessing
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from checkpoints.test_checkpoints import models
from checkpoints.test_released_files import CASES, SIDES, weights
from torch import Tensor

import dd2_fast
from dd2_fast import checkpoints
from dd2_fast.checkpoints.build import overlapping
from dd2_fast.models import DD2Generator

SIZES = dict(num_tokens=4, dimension=3, num_classes=2, width=8, layers=1, heads=2)
LLAMAGEN = dict(width=64, layers=1, heads=1, hidden=8, grid=4)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """A file of each sort: released, ours, with a constant of its own, in the older format."""
    torch.save({"model": weights("llamagen_tiny", "gpt")}, tmp_path / "gpt.pt")
    teacher = checkpoints.load(weights("var_tiny", "var"), **SIDES)
    teacher.tokenizer = checkpoints.load(weights("var_tiny", "vqvae"))
    checkpoints.save(tmp_path / "var.safetensors", teacher, tokenizer=teacher.tokenizer)
    checkpoints.save(tmp_path / "dd2.safetensors", models()[3])
    old = tmp_path / "old.pt"
    torch.save(weights("llamagen_tiny", "vq"), old, _use_new_zipfile_serialization=False)
    return sorted(tmp_path.iterdir())


def check(path: Path) -> Any:
    """Load a file; everything in it is an ordinary float32 tensor on the CPU."""
    model = checkpoints.load(path)
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        assert value.device.type == "cpu" and value.dtype == torch.float32, name
        assert not value.is_inference() and not value.requires_grad, name
    return model


def test_threads_load_at_once(files: list[Path]):
    errors: list[BaseException] = []
    start = threading.Barrier(6)

    def work(turn: int) -> None:
        start.wait()
        try:
            for i in range(6):
                check(files[(turn + i) % len(files)])
                assert not torch.nn.Linear(1, 1).weight.is_meta
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(turn,)) for turn in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors[0]


def _load_in_child(path: str, connection: Any) -> None:
    torch.set_num_threads(1)  # libgomp's own threads do not survive a fork
    connection.send(type(checkpoints.load(path)).__name__)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="needs fork")
def test_a_process_forked_while_a_thread_loads_can_load(files: list[Path]):
    done = threading.Event()

    def work() -> None:
        while not done.is_set():
            checkpoints.load(files[1])

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(5):
            here, there = multiprocessing.Pipe()
            process = multiprocessing.get_context("fork").Process(
                target=_load_in_child, args=(str(files[1]), there)
            )
            process.start()
            assert here.poll(60) and here.recv() == "LlamaGenTeacher"
            process.join()
    finally:
        done.set()
        thread.join()


AMBIENT: dict[str, Callable[[], Any]] = {
    "inference mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "default device": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("ambient", AMBIENT)
def test_loading_under_any_ambient_state(files: list[Path], ambient: str):
    for path in files:
        with AMBIENT[ambient]():
            model = check(path)
        model.requires_grad_(True)
        assert all(parameter.requires_grad for parameter in model.parameters())


def test_tensors_of_inference_mode_become_ordinary_ones():
    with torch.inference_mode():
        tensors = {name: value.clone() for name, value in weights("var_tiny", "var").items()}
        model = checkpoints.load(tensors, **SIDES)
    assert not any(value.is_inference() for value in model.requires_grad_(True).parameters())


def own(path: Path, kind: str, config: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    header = json.dumps({"kind": kind, "config": config, "metadata": {}})
    safetensors.torch.save_file(tensors, path, {"dd2_fast": header})
    return path


@pytest.mark.parametrize(
    ("kind", "config", "words"),
    [
        ("ar_teacher", {**SIZES, "vocabulary": 700_000_000}, "vocabulary: expected at most 65536"),
        ("ar_teacher", {**SIZES, "vocabulary": 5, "layers": 10**6}, "layers: expected at most"),
        ("ar_teacher", {**SIZES, "vocabulary": 5, "layers": 60_000}, "many more tensors than the"),
        ("vq_tokenizer", {"vocabulary": 65536, "dimension": 65536}, r"codebook \[65536, 65536\]"),
        ("vq_tokenizer", {"vocabulary": -1}, "does not build a vq_tokenizer"),
        ("table_teacher", {"num_tokens": 10**12, "vocabulary": 2, "dimension": 1}, "num_tokens: "),
        ("table_teacher", {"num_tokens": 60, "vocabulary": 60, "dimension": 1}, "does not build"),
        ("var_tokenizer", {"phis": 60_000}, "many more tensors"),
        ("var_tokenizer", {"multipliers": [1] * 60_000}, "many more tensors"),
        ("var_tokenizer", {"patch_nums": [1] * 70_000}, "patch_nums: expected a short list"),
        ("var_tokenizer", {"patch_nums": [1, 10**9]}, "patch_nums: expected at most 65536"),
        ("llamagen_teacher", {**LLAMAGEN, "grid": 60_000}, "grid: expected at most 512, got 60000"),
        ("llamagen_teacher", {**LLAMAGEN, "layers": "1"}, "does not build a llamagen_teacher"),
        ("llamagen_teacher", {**LLAMAGEN, "width": None}, "does not build a llamagen_teacher"),
        ("llamagen_teacher", {**LLAMAGEN, "codebook": [1]}, "does not build a llamagen_teacher"),
        ("dd2_generator", {**SIZES, "family": [1]}, "does not build a dd2_generator"),
        ("dd2_generator", {**SIZES, "family": {"a": {"b": 10**9}}}, "family.a.b: expected at most"),
    ],
)
@pytest.mark.parametrize("tensor", [torch.zeros(1), torch.zeros(700_000_000, 0)])
def test_sizes_that_the_tensors_do_not_bear_out(tmp_path: Path, kind, config, words, tensor):
    path = own(tmp_path / "x.safetensors", kind, config, {"a": tensor})
    before, start = _peak(), time.monotonic()
    with pytest.raises(ValueError, match=r"x\.safetensors: .*" + words) as caught:
        checkpoints.load(path)
    assert len(str(caught.value)) < 800
    assert _peak() - before < 100 and time.monotonic() - start < 20


def _peak() -> int:
    """The largest resident size of this process so far, in MB."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


@pytest.mark.parametrize("container", ["mapping", "pth"])
def test_tied_weights_load_train_and_save(tmp_path: Path, container: str):
    tensors = weights("llamagen_tiny", "gpt")
    tensors["output.weight"] = tensors["tok_embeddings.weight"]
    joint = torch.randn(2, 2, 64)
    tensors["norm.weight"], tensors["layers.0.ffn_norm.weight"] = joint[0, 1], joint[0, 1]
    source: Any = tensors
    if container == "pth":
        source = tmp_path / "tied.pth"
        torch.save({"model": tensors}, source)
    model = checkpoints.load(source, grid=4, n_head=2)
    assert not overlapping(model.state_dict())
    model.output.weight.zero_()
    assert torch.equal(model.tok_embeddings.weight, tensors["tok_embeddings.weight"])
    checkpoints.save(tmp_path / "x.safetensors", model)
    again = checkpoints.load(tmp_path / "x.safetensors")
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())


def test_weights_tied_after_loading_can_be_saved(tmp_path: Path):
    model = models()[1]
    block = model.backbone.blocks[0]
    block.mlp_norm = block.attention_norm
    model.codebook = torch.zeros(1, 3).expand(5, 3)
    checkpoints.save(tmp_path / "x.safetensors", model)
    again = checkpoints.load(tmp_path / "x.safetensors")
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())


def test_what_overlaps():
    whole = torch.zeros(10)
    parts = {"a": whole[:4], "b": whole[4:], "c": whole[2:6], "d": torch.zeros(3), "e": whole[:0]}
    assert overlapping({"a": parts["a"], "b": parts["b"], "d": parts["d"]}) == []
    assert set(overlapping(parts)) == {"b", "c"} and overlapping({"x": whole, "y": whole}) == ["y"]
    assert overlapping({"x": torch.zeros(2, device="meta"), "y": parts["e"]}) == []


@pytest.mark.parametrize("name", ["VAR", "LlamaGen", "DD1 VAR", "DD1 LlamaGen"])
def test_files_of_two_dtypes_sample(name: str):
    case = CASES[name]
    part = {"VAR": ("var_tiny", "vqvae"), "DD1 VAR": ("dd1_var_tiny", "vqvae")}
    tokenizer = weights(*part.get(name, ("llamagen_tiny", "vq")))
    tensors = {
        key: value if "norm" in key or "bias" in key else value.bfloat16()
        for key, value in weights(case.fixture, case.part).items()
    }
    config = {key: value for key, value in case.config.items() if key != "codebook"}
    model = checkpoints.load(tensors, tokenizer=tokenizer, **config)
    assert {value.dtype for value in model.parameters()} == {torch.bfloat16}
    if hasattr(model, "logits"):
        tokens = model.sample(torch.tensor([1, 2]), cfg=1.5, seed=0)
        assert model.logits(tokens, torch.tensor([1, 2])).isfinite().all()
    else:
        assert dd2_fast.sample(model, [1, 2]).isfinite().all()


def test_our_own_file_of_two_dtypes(tmp_path: Path):
    generator: DD2Generator = models()[3]
    generator.half()
    generator.backbone.norm.float()
    checkpoints.save(tmp_path / "x.safetensors", generator)
    again = checkpoints.load(tmp_path / "x.safetensors")
    assert {value.dtype for value in again.parameters()} == {torch.float16}
