"""`load`: containers, nestings and prefixes; what is refused and what the refusal says."""

from __future__ import annotations

import argparse
import threading
from collections import OrderedDict
from pathlib import Path

import pytest
import safetensors.torch
import torch
from checkpoints.tiny import TinyTeacher, TinyTokenizer, teacher_tensors, tokenizer_tensors
from pairwise import pairwise
from torch import nn

from dd2_fast import checkpoints
from dd2_fast.checkpoints.build import build_model
from dd2_fast.checkpoints.nesting import NESTING, state_dicts
from dd2_fast.models import VQTokenizer

pytestmark = pytest.mark.usefixtures("family")
NESTINGS = [
    "",
    "model",
    "module",
    "state_dict",
    "ema",
    "trainer.var_wo_ddp",
    "trainer.ema_parameters",
    "vae",
    "trainer.vae_local",
    "model.state_dict",
]
PREFIXES = ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model."]


def nested(tensors, nesting: str, prefix: str = ""):
    tree = OrderedDict((prefix + name, value) for name, value in tensors.items())
    for name in reversed(nesting.split(".") if nesting else []):
        tree = {"epoch": 3, name: tree, "args": {"lr": 1e-4}, "optimizer": {"state": {0: {}}}}
    return tree


def write(path: Path, tree, container: str) -> Path:
    if container == "safetensors":
        safetensors.torch.save_file(dict(tree), path)
    else:
        torch.save(tree, path, _use_new_zipfile_serialization=container == "zip")
    return path


def assert_teacher(model, tensors) -> None:
    assert type(model) is TinyTeacher and not model.training
    assert not any(p.requires_grad for p in model.parameters())
    for name, value in model.state_dict().items():
        assert value.dtype == tensors[name].dtype and torch.equal(value, tensors[name]), name
    assert torch.equal(model.mask, torch.arange(tensors["out.bias"].shape[0]))


@pairwise(container=["zip", "legacy", "mapping", "safetensors"], nesting=NESTINGS, prefix=PREFIXES)
def test_containers_nestings_and_prefixes(tmp_path: Path, container, nesting, prefix):
    if container == "safetensors" and nesting:
        # Flat by nature: the nesting is in the names.
        prefix, nesting = f"{nesting}.{prefix}", ""
    tensors = teacher_tensors()
    tree = nested(tensors, nesting, prefix)
    source = tree if container == "mapping" else write(tmp_path / "x.bin", tree, container)
    assert_teacher(checkpoints.load(source), tensors)


def test_wrappers_inside_names_are_taken_off():
    tensors = teacher_tensors()
    wrapped = {name.replace("out.", "out._orig_mod."): v for name, v in tensors.items()}
    assert_teacher(checkpoints.load(wrapped), tensors)
    wrapped = {f"_fsdp_wrapped_module.{name}": v for name, v in tensors.items()}
    assert_teacher(checkpoints.load(wrapped), tensors)


@pytest.mark.parametrize("prefix", ["module.", "model.module."])
def test_prefixes_inside_an_average_are_taken_off(prefix: str):
    tensors = teacher_tensors()
    (only,) = state_dicts({f"ema.{prefix}{name}": value for name, value in tensors.items()})
    assert only.average and only.tensors.keys() == tensors.keys()


def test_names_that_would_collide_stay():
    tensors = {"module.a": torch.zeros(1), "module._orig_mod.a": torch.ones(1)}
    (only,) = state_dicts(tensors)
    assert only.nesting == "" and list(only.tensors) == list(tensors)


@pytest.mark.parametrize("average", ["ema_parameters", "ema"])
def test_averages_come_first(average: str):
    plain, mean = teacher_tensors(), teacher_tensors(shift=1.0)
    for other in ("model", "var_wo_ddp", "state_dict", "module"):
        assert_teacher(checkpoints.load({other: plain, average: mean}), mean)
        tree = {"trainer": {other: plain, average: mean}, "model": plain}
        assert_teacher(checkpoints.load(tree), mean)
    assert_teacher(checkpoints.load({**plain, average: mean}), mean)
    tree = {"trainer": {"var_wo_ddp": plain}, "model": {average: mean}}
    assert_teacher(checkpoints.load(tree), mean)


def test_order_of_preference_is_the_documented_one():
    text = checkpoints.load.__doc__
    places = [text.index(f"``{name}``") for name in NESTING]
    assert places == sorted(places)


def test_a_trainer_file_has_a_teacher_and_its_tokenizer(tmp_path: Path):
    tree = {"trainer": {"vae_local": tokenizer_tensors(), "var_wo_ddp": teacher_tensors()}}
    path = write(tmp_path / "trainer.pth", tree, "zip")
    model = checkpoints.load(path, tokenizer=path)
    assert_teacher(model, teacher_tensors())
    assert type(model.tokenizer) is TinyTokenizer
    assert torch.equal(model.tokenizer.codebook, tokenizer_tensors()["codebook"])
    assert not any(name.startswith("tokenizer") for name in model.state_dict())
    assert type(checkpoints.load(tree["trainer"]["vae_local"])) is TinyTokenizer


def test_attaching_a_tokenizer(tmp_path: Path):
    tokenizer = VQTokenizer()
    checkpoints.save(tmp_path / "t.safetensors", tokenizer)
    tensors = teacher_tensors()
    assert checkpoints.load(tensors, tokenizer=tokenizer).tokenizer is tokenizer
    named = checkpoints.load(tensors, tokenizer=tmp_path / "t.safetensors").tokenizer
    assert torch.equal(named.codebook, tokenizer.codebook)
    assert type(checkpoints.load(tensors, tokenizer=tokenizer_tensors()).tokenizer) is TinyTokenizer
    with pytest.raises(TypeError, match="tokenizer: expected a tokenizer .*got int"):
        checkpoints.load(tensors, tokenizer=3)
    with pytest.raises(TypeError, match="tokenizer: expected a generator or a teacher"):
        checkpoints.load(tokenizer_tensors(), tokenizer=tokenizer)
    with pytest.raises(ValueError, match="expected .*one of tiny_tokenizer; found 3 tensors"):
        checkpoints.load(tensors, tokenizer=tensors)
    with pytest.raises(FileNotFoundError, match="absent"):
        checkpoints.load(tensors, tokenizer=tmp_path / "absent")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("container", ["zip", "safetensors"])
def test_dtypes_are_kept(tmp_path: Path, dtype, container: str):
    tensors = {name: value.to(dtype) for name, value in teacher_tensors().items()}
    assert_teacher(checkpoints.load(write(tmp_path / "x", tensors, container)), tensors)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("container", ["zip", "safetensors", "mapping"])
def test_the_dtype_of_most_values_is_that_of_all(tmp_path: Path, dtype, container: str):
    tensors = {name: value.to(dtype) for name, value in teacher_tensors().items()}
    mixed = {**tensors, "out.bias": tensors["out.bias"].float()}
    source = mixed if container == "mapping" else write(tmp_path / "x", mixed, container)
    assert_teacher(checkpoints.load(source), {**tensors, "out.bias": mixed["out.bias"].to(dtype)})


def test_no_value_becomes_infinite_in_the_dtype_of_the_others():
    tensors = {name: value.half() for name, value in teacher_tensors().items()}
    tensors["out.bias"] = torch.full((4,), 1e5)
    wide = {name: value.float() for name, value in tensors.items()}
    assert_teacher(checkpoints.load(tensors), wide)
    both = {**tensors, "out.bias": torch.full((4,), 3e38, dtype=torch.bfloat16)}
    assert {p.dtype for p in checkpoints.load(both).parameters()} == {torch.float32}


def test_a_dtype_that_torch_does_not_compute_in_is_named():
    tensors = {name: value.to(torch.float8_e4m3fn) for name, value in teacher_tensors().items()}
    with pytest.raises(ValueError, match=r"table.weight: expected float16.*float8_e4m3fn"):
        checkpoints.load(tensors)


def test_buffers_that_follow_from_the_configuration_are_dropped():
    stale = {**teacher_tensors(), "mask": torch.full((9, 9), 7.0)}
    assert_teacher(checkpoints.load(stale), teacher_tensors())


def test_a_state_dict_is_shared_and_left_as_it_was():
    tensors = {name: nn.Parameter(value) for name, value in teacher_tensors().items()}
    model = checkpoints.load(tensors)
    assert model.out.weight.data_ptr() == tensors["out.weight"].data_ptr()
    assert all(value.requires_grad for value in tensors.values()) and len(tensors) == 3


def test_meta_tensors_build_a_meta_model():
    tensors = {name: value.to("meta") for name, value in teacher_tensors().items()}
    model = checkpoints.load(tensors)
    assert all(p.is_meta for p in model.parameters()) and not model.mask.is_meta


def test_tensors_that_do_not_fit_are_named(tmp_path: Path):
    tensors = teacher_tensors()
    del tensors["out.bias"]
    tensors |= {"out.weight": torch.zeros(4, 5), "surplus": torch.zeros(2)}
    path = write(tmp_path / "x.pth", nested(tensors, "trainer.ema_parameters"), "zip")
    with pytest.raises(ValueError) as caught:
        checkpoints.load(path)
    text = str(caught.value)
    assert text.startswith(f"{path} (trainer.ema_parameters): expected 3 tensors")
    assert "1 missing: out.bias [4]" in text and "1 unexpected: surplus [2]" in text
    assert "1 misshapen: out.weight (expected [4, 4], got [4, 5])" in text
    tensors = teacher_tensors() | {"out.bias": torch.zeros(4, dtype=torch.int8)}
    with pytest.raises(ValueError, match=r"wrong dtype: out.bias \(expected float32, got int8\)"):
        checkpoints.load(tensors)


def test_config_goes_to_the_format_and_its_errors_name_the_file(tmp_path: Path):
    path = write(tmp_path / "x.pth", nested(teacher_tensors(), "model"), "zip")
    assert checkpoints.load(path, heads=2).config["heads"] == 2
    with pytest.raises(TypeError, match=r"x\.pth \(model\), a tiny_teacher: .*got depth"):
        checkpoints.load(path, depth=2)
    with pytest.raises(ValueError, match=r"x\.pth \(model\), a tiny_teacher: heads: .*got 0"):
        checkpoints.load(path, heads=0)
    with pytest.raises(ValueError, match=r"x\.pth \(model\): .*build a tiny_teacher: heads: .*3"):
        checkpoints.load(path, heads=3)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({}, "tiny_teacher, tiny_tokenizer; found no tensors, only nothing"),
        ({"a": 1, "b": {"c": torch.ones(2)}}, r"1 tensors under b of none of these: c \[2\]$"),
        ({"a": 1, "b": {"c": 2}}, "found no tensors, only 'a', 'b'"),
        ({"model": {"conv.weight": torch.ones(2, 3)}}, r"1 tensors under model .*weight \[2, 3\]$"),
        ({f"layer{i}": torch.ones(1) for i in range(9)}, r"layer3 \[1\] and 5 more"),
        ({3: torch.ones(1)}, "found no tensors, only 3"),
    ],
)
def test_unknown_state_dicts_say_what_was_found(tmp_path: Path, tree, message: str):
    with pytest.raises(ValueError, match=f"^state dict: expected .*{message}"):
        checkpoints.load(tree)
    path = write(tmp_path / "x.pth", tree, "zip")
    with pytest.raises(ValueError, match=f"^{path}: expected .*{message}"):
        checkpoints.load(path)


def test_a_dictionary_that_holds_itself_ends():
    tree: dict = {"optimizer": {}}
    tree["model"] = tree["trainer"] = tree
    with pytest.raises(ValueError, match="found no tensors"):
        checkpoints.load(tree)


def test_files_that_are_no_checkpoints(tmp_path: Path):
    path = tmp_path / "x.pth"
    for data, what in (
        (b"", "file, got an empty one"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "got a Git LFS pointer"),
        (b"\n<!DOCTYPE html>\n<html>", "got a web page; download the file itself"),
        (b"<html><head>", "got a web page"),
    ):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=rf"x\.pth: expected a PyTorch or .*{what}"):
            checkpoints.load(path)
    for data in (b"\x80", b"PK\x03\x04", b"\x00" * 64):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=rf"x\.pth: .*got {len(data)} bytes that are truncat"):
            checkpoints.load(path)
    torch.save([torch.ones(1)], path)
    with pytest.raises(ValueError, match=r"x\.pth: expected a dictionary of tensors, got list"):
        checkpoints.load(path)
    torch.save(nn.Linear(1, 1), path)
    with pytest.raises(ValueError, match=r"x\.pth: .*calls .*torch\.nn\.modules\.linear\.Linear"):
        checkpoints.load(path)
    with pytest.raises(FileNotFoundError, match="absent"):
        checkpoints.load(tmp_path / "absent.pth")
    for source in (3, None, nn.Linear(1, 1), [path]):
        with pytest.raises(TypeError, match="source: expected a path or a state dict, got"):
            checkpoints.load(source)


def test_a_folder_without_a_bundle_names_its_files(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"expected a bundle with .*run\.json$"):
        checkpoints.load(tmp_path)
    (tmp_path / "var_d16.pth").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"or name one file in it: var_d16\.pth"):
        checkpoints.load(str(tmp_path))
    with pytest.raises(TypeError, match="carry their configuration, got depth"):
        checkpoints.load(tmp_path, depth=16)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("container", ["zip", "legacy", "safetensors"])
def test_truncated_and_damaged_files_never_escape_as_other_errors(tmp_path: Path, container: str):
    path = write(tmp_path / "x", teacher_tensors(), container)
    whole = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    for size in torch.randint(len(whole), (60,), generator=generator).tolist():
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=f"^{path}: expected"):
            checkpoints.load(path)
    for _ in range(150):
        data = bytearray(whole)
        for place in torch.randint(len(data), (3,), generator=generator).tolist():
            data[place] = int(torch.randint(256, (), generator=generator))
        path.write_bytes(data)
        try:
            checkpoints.load(path)
        except ValueError as error:
            assert str(error).startswith(f"{path}")


def test_a_namespace_is_let_through_during_the_call_only(tmp_path: Path):
    arguments = argparse.Namespace(lr=1e-4, betas=(0.9, 0.95), inner=argparse.Namespace(a=None))
    tree = {"model": teacher_tensors(), "args": arguments, "steps": 7}
    for container in ("zip", "legacy"):
        path = write(tmp_path / "x.pt", tree, container)
        assert_teacher(checkpoints.load(path), teacher_tensors())
        assert argparse.Namespace not in torch.serialization.get_safe_globals()
        path.write_bytes(path.read_bytes()[:-40])
        with pytest.raises(ValueError):
            checkpoints.load(path)
        assert argparse.Namespace not in torch.serialization.get_safe_globals()


def test_modules_of_other_threads_keep_their_memory(monkeypatch: pytest.MonkeyPatch):
    others = []

    class Slow(TinyTeacher):
        def __init__(self, **config) -> None:
            super().__init__(**config)
            thread = threading.Thread(target=lambda: others.append(nn.Linear(1, 1)))
            thread.start()
            thread.join()

    monkeypatch.setattr("dd2_fast.checkpoints.build.class_of", lambda kind: Slow)
    build_model("x", "tiny_teacher", {"width": 4, "classes": 3}, teacher_tensors())
    assert not others[0].weight.is_meta and not nn.Linear(1, 1).weight.is_meta
