"""Files made to take more than they are: refused by a look, in bounded memory and time."""

from __future__ import annotations

import json
import os
import pickle
import resource
import struct
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
from checkpoints.tiny import teacher_tensors

from dd2_fast import checkpoints
from dd2_fast.checkpoints.container import open_file
from dd2_fast.checkpoints.limits import TooLargeError
from dd2_fast.checkpoints.nesting import state_dicts
from dd2_fast.cli import main

pytestmark = pytest.mark.usefixtures("family")

MAGIC = 0x1950A86A20F9469CFC6C
LEVELS = 50_000
PERSISTENT = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0%sX\x03\0\0\0cpuJ%stQ"
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n(%sK\0%s%s\x89ccollections\nOrderedDict\n)RtR"
HUGE = b"\x8a\x06" + (10**12).to_bytes(6, "little") + b"\x85"


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    """A file may cost seconds of this process's time and a gigabyte of its memory at most."""
    start, peak = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert time.process_time() - start < 60
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 1 << 20  # kilobytes


def storage(key: bytes, count: int) -> bytes:
    return PERSISTENT % (key, struct.pack("<i", count))


def tensor(key: bytes, count: int, shape: bytes, strides: bytes) -> bytes:
    return TENSOR % (storage(key, count), shape, strides)


def pickled(*items: tuple[str, bytes]) -> bytes:
    """The opcodes of a dictionary with these values."""
    parts = [b"X" + struct.pack("<I", len(name)) + name.encode() + code for name, code in items]
    return b"\x80\x02}(" + b"".join(parts) + b"u."


def write(path: Path, code: bytes, data: bytes = b"", compression: int = 0) -> Path:
    """A file with a pickle and one storage, an archive or in the older format by its name."""
    if path.suffix == ".pth":
        with zipfile.ZipFile(path, "w", compression) as archive:
            archive.writestr("x/data.pkl", code)
            archive.writestr("x/version", "3\n")
            archive.writestr("x/data/0", data)
        return path
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    header = b"".join(pickle.dumps(part, 2) for part in (MAGIC, 1001, system))
    keys = pickle.dumps(["0"] if data else [], 2)
    body = struct.pack("<q", len(data) // 4) + data if data else b""
    path.write_bytes(header + code + keys + body)
    return path


def refusals(path: Path, capsys) -> str:
    """The error of `load`, and that `inspect` and `convert` say the same in one line each."""
    with pytest.raises(ValueError) as caught:
        checkpoints.load(path)
    for command in (["inspect", str(path)], ["convert", str(path), f"{path}.safetensors"]):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and error.startswith(f"dd2-fast: error: {path}")
    return str(caught.value)


NESTED = {
    "lists": b"]" * LEVELS + b"a" * (LEVELS - 1),
    "tuples": b")" + b"\x85" * LEVELS,
    "a key": b"})" + b"\x85" * 2_000_000 + b"Ns",  # else a segmentation fault
    "dictionaries": b"}X\1\0\0\0k" * LEVELS + b"}" + b"s" * LEVELS,
    "namespaces": b"cargparse\nNamespace\n)\x81}X\1\0\0\0k" * 300 + b"N" + b"sb" * 300,
    "calls": b"cbuiltins\nset\n(" * 300 + b"]" + b"tR]" * 0 + b"tR" * 300,
    "states": b"ctorch._utils\n_rebuild_parameter_with_state\n(N\x89N" * 300 + b"N" + b"tR" * 300,
}


@pytest.mark.parametrize("suffix", [".pth", ".pt"])
@pytest.mark.parametrize("kind", NESTED)
def test_deep_pickles_are_refused(tmp_path: Path, capsys, kind: str, suffix: str) -> None:
    path = write(tmp_path / f"x{suffix}", pickled(("model", NESTED[kind])))
    assert "nested more than 256 levels deep" in refusals(path, capsys)


def test_a_bare_pickle_is_looked_at_too(tmp_path: Path, capsys) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(b"\x80\x02" + NESTED["a key"] + b".")
    assert "nested more than 256 levels deep" in refusals(path, capsys)


def test_what_grows_after_it_was_used_counts_twice(tmp_path: Path, capsys) -> None:
    """A list that 150 tuples hold takes the last of them: what holds it has become deeper too."""
    code = b"]q\0]h\0" + b"\x85" * 150 + b"aa"
    path = write(tmp_path / "x.pth", pickled(("model", code)))
    assert "nested more than 256 levels deep" in refusals(path, capsys)


@pytest.mark.parametrize("suffix", [".pth", ".pt"])
def test_keys_in_pairs_cannot_take_for_ever(tmp_path: Path, capsys, suffix: str) -> None:
    doubled = b"".join(b"q\x05h\x05\x86" for _ in range(40))
    path = write(tmp_path / f"x{suffix}", pickled(("model", b"})" + doubled + b"Ns")))
    assert "of memory" in refusals(path, capsys)


@pytest.mark.parametrize("suffix", [".pth", ".pt"])
@pytest.mark.parametrize(
    "code",
    [
        tensor(b"0", 1, HUGE, b"K\0\x85"),
        b"cbuiltins\nbytearray\n" + HUGE + b"R",
        b"cbuiltins\nbytearray\n" + HUGE + b"\x81",
        b"ctorch\nUntypedStorage\n" + HUGE + b"R",
        b"ctorch\nFloatTensor\nM\xff\xffM\xff\xff\x86R",
        b"ctorch._utils\n_rebuild_meta_tensor_no_storage\n(N" + HUGE + b"K\1\x85\x89tR",
        b"ctorch\nTensor\n)R(" + storage(b"0", 1) + b"K\0" + HUGE + b"K\0\x85tb",
        b"]q\1(" + b"N" * 100_000 + b"e" + b"cbuiltins\nset\nh\1\x85R" * 1000,
    ],
    ids=["view", "reduce", "new", "storage", "tensor", "meta", "state", "copies"],
)
def test_what_declares_much_is_refused(tmp_path: Path, capsys, code: bytes, suffix: str) -> None:
    path = write(tmp_path / f"x{suffix}", pickled(("model", code)), b"\0" * 4)
    message = refusals(path, capsys)
    assert "DD2_FAST_MAX_BYTES" in message and "max_bytes" in message


@pytest.mark.parametrize("suffix", [".pth", ".pt"])
@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (tensor(b"0", 4, b"K\x05\x85", b"K\1\x85"), "beyond the values"),
        (tensor(b"0", 4, b"K\x02\x85", b"K\x04\x85"), "beyond the values"),
        (tensor(b"0", 1 << 30, b"K\x04\x85", b"K\1\x85"), "bytes"),
        (tensor(b"0", 4, b"J\xff\xff\xff\xff\x85", b"K\1\x85"), "no integers"),
        (tensor(b"0", 4, b"K\4\x85", b")"), "without shape or strides"),
        (tensor(b"0", 4, b"N", b"N"), "without shape or strides"),
        (b"ctorch\nTensor\n)R]b", "no tuple"),
        (b"cbuiltins\nset\n]R", "no tuple"),
        (b"c_codecs\nencode\nX\7\0\0\0storageX\6\0\0\0latin1\x86R\x85Q", "no storage"),
        (b"(X\7\0\0\0storagectorch\nDoubleTensor\nX\1\0\0\x000X\0\0\0\0K\1tQ", "unknown type"),
        (b"NNs", "no container"),
        (b"u", "not there"),
        (b"h\x09", "not there"),
        (b"\x95\0\0\0\0\0\0\0\0", "FRAME"),
        (b"\x80\x04", "protocol 4"),
    ],
)
def test_what_torch_save_does_not_write_is_refused(
    tmp_path: Path, capsys, code: bytes, reason: str, suffix: str
) -> None:
    path = write(tmp_path / f"x{suffix}", pickled(("model", code)), b"\0" * 16)
    message = refusals(path, capsys)
    assert reason in message and "expected a whole PyTorch file" in message


def test_a_compressed_bomb_is_refused(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("DD2_FAST_MAX_BYTES", "100_000_000")
    path = tmp_path / "x.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", pickled())
        archive.writestr("x/version", "3\n")
        with archive.open("x/data/0", "w") as file:
            for _ in range(8):
                file.write(bytes(1 << 24))
    assert path.stat().st_size < 2e5 and "of memory" in refusals(path, capsys)


def test_the_limit_can_be_raised_and_lowered(tmp_path: Path, capsys, monkeypatch) -> None:
    path = tmp_path / "x.pth"
    tensors = teacher_tensors()
    torch.save({"model": tensors, "mask": torch.zeros(1).expand(1 << 29)}, path)
    with pytest.raises(TooLargeError, match=r"x\.pth: expected contents that take at most 1073741"):
        checkpoints.load(path)
    model = checkpoints.load(path, max_bytes=3 << 30)
    assert torch.equal(model.table.weight, tensors["table.weight"])
    with pytest.raises(TooLargeError):
        checkpoints.load(path)
    monkeypatch.setenv("DD2_FAST_MAX_BYTES", str(3 << 30))
    assert main(["inspect", str(path)]) == 0
    with pytest.raises(TooLargeError):
        checkpoints.load(path, max_bytes=1000)
    monkeypatch.setenv("DD2_FAST_MAX_BYTES", "1GB")
    capsys.readouterr()
    assert main(["inspect", str(path)]) == 2
    assert "DD2_FAST_MAX_BYTES: expected a number of bytes" in capsys.readouterr().err
    for wrong, sort in ((0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError)):
        with pytest.raises(sort, match="max_bytes"):
            checkpoints.load(path, max_bytes=wrong)


def test_a_dictionary_in_itself_is_looked_at_once() -> None:
    tree: dict = {f"w{i}": torch.zeros(1) for i in range(500)}
    for name in ("ema", "trainer", "model", "module", "state_dict", "vae", "vae_local"):
        tree[name] = tree
    assert sum(len(part.tensors) for part in state_dicts(tree)) == 500


@pytest.mark.parametrize("suffix", [".pth", ".pt"])
def test_a_saved_dictionary_in_itself(tmp_path: Path, suffix: str) -> None:
    tree: dict = {"model": teacher_tensors()}
    tree["model"]["state_dict"] = tree["trainer"] = tree
    torch.save(tree, tmp_path / f"x{suffix}", _use_new_zipfile_serialization=suffix == ".pth")
    model = checkpoints.load(tmp_path / f"x{suffix}")
    assert torch.equal(model.out.bias, teacher_tensors()["out.bias"])


def rewritten(path: Path, out: Path, change=lambda name: name, compression: int = 0) -> Path:
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(out, "w", compression) as archive:
        for member in source.infolist():
            archive.writestr(change(member.filename), source.read(member))
    return out


def test_what_another_program_compressed_is_read(tmp_path: Path) -> None:
    torch.save(teacher_tensors(64), tmp_path / "x.pth")
    path = rewritten(tmp_path / "x.pth", tmp_path / "y.pth", compression=zipfile.ZIP_DEFLATED)
    for name, value in teacher_tensors(64).items():
        assert torch.equal(open_file(path).tree[name], value)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archives_that_two_readers_read_differently(tmp_path: Path, capsys) -> None:
    torch.save(teacher_tensors(), tmp_path / "x.pth")
    for name, second in (("same", "x/data.pkl"), ("case", "x/DATA.pkl"), ("apart", "y/data.pkl")):
        path = rewritten(tmp_path / "x.pth", tmp_path / f"{name}.pth")
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(second, pickled())
        assert "archive" in refusals(path, capsys)
    path = rewritten(tmp_path / "x.pth", tmp_path / "absolute.pth", lambda name: f"/{name}")
    refusals(path, capsys)
    path = rewritten(tmp_path / "x.pth", tmp_path / "up.pth", lambda name: f"../{name}")
    refusals(path, capsys)
    data = (tmp_path / "x.pth").read_bytes()
    central = data.index(b"PK\x01\x02")
    first, second = data[central:].split(b"PK\x01\x02")[1:3]
    place = central + 4 + len(first) + 4 + 38  # where the second says its record begins
    assert len(second) > 42
    (tmp_path / "overlap.pth").write_bytes(data[:place] + bytes(4) + data[place + 4 :])
    refusals(tmp_path / "overlap.pth", capsys)


def safetensors_file(path: Path, header: bytes, data: bytes = b"", length: int = -1) -> Path:
    path.write_bytes(struct.pack("<Q", len(header) if length < 0 else length) + header + data)
    return path


ENTRY = '"%s":{"dtype":"F32","shape":%s,"data_offsets":%s}'


@pytest.mark.parametrize(
    "header",
    [
        b"{" + b'"a":[' * 100_000,
        b'{"__metadata__":{"dd2_fast":1}}',
        ("{" + ENTRY % ("a", "[1]", "[0,4]") + "," + ENTRY % ("b", "[1]", "[0,4]") + "}").encode(),
        ("{" + ENTRY % ("a", "[1]", "[0,4]") + "," + ENTRY % ("a", "[1]", "[4,8]") + "}").encode(),
        ("{" + ENTRY % ("a", "[4611686018427387904,4]", "[0,8]") + "}").encode(),
        ("{" + ENTRY % ("a", "[1000000000000]", "[0,4000000000000]") + "}").encode(),
        ("{" + ENTRY % ("a", "[-1]", "[0,8]") + "}").encode(),
        ("{" + ENTRY % ("a", "[2]", "[8,0]") + "}").encode(),
        b'{"a":{"dtype":"F99","shape":[2],"data_offsets":[0,8]}}',
        b"{",
        b'{"\xff":1}',
    ],
)
def test_absurd_safetensors_are_refused(tmp_path: Path, capsys, header: bytes) -> None:
    path = safetensors_file(tmp_path / "x.safetensors", header, bytes(8))
    assert "truncated or damaged" in refusals(path, capsys)


def test_absurd_lengths_of_safetensors_headers(tmp_path: Path, capsys) -> None:
    for length in (1 << 63, (1 << 64) - 1, 1 << 40, 0, 3):
        path = safetensors_file(tmp_path / "x.safetensors", b"{}      ", length=length)
        refusals(path, capsys)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 200_000,
        '{"kind":' * 50_000,
        "null",
        "[]",
        '"text"',
        "{}",
        '{"kind": "tiny_teacher"}',
        '{"kind": ["tiny_teacher"], "config": {}}',
        '{"kind": null, "config": {}}',
        '{"kind": "tiny_teacher", "config": []}',
        '{"kind": "tiny_teacher", "config": {}, "tokenizer": 3}',
        '{"kind": "tiny_teacher", "config": {}, "tokenizer": {"kind": {}, "config": {}}}',
        '{"kind": "tiny_teacher", "config": {}, "data": 5}',
        '{"kind": "tiny_teacher", "config": {}, "data": [5]}',
        '{"kind": "tiny_teacher", "config": {}, "metadata": "x"}',
        '{"kind": "tiny_teacher", "config": {"width": ' + "9" * 5000 + "}}",
        '{"kind": "\\u001b[2J", "config": {}}',
    ],
    ids=lambda text: text[:60],
)
def test_our_metadata_of_wrong_types(tmp_path: Path, capsys, text: str) -> None:
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file(teacher_tensors(), path, {"dd2_fast": text})
    message = refusals(path, capsys)
    assert len(message) < 5000 and message.isprintable()


def test_our_metadata_without_what_may_be_left_out(tmp_path: Path, capsys) -> None:
    path = tmp_path / "x.safetensors"
    header = {"kind": "tiny_teacher", "config": {"width": 4, "classes": 3}, "tokenizer": None}
    safetensors.torch.save_file(teacher_tensors(), path, {"dd2_fast": json.dumps(header)})
    assert checkpoints.load(path).config["width"] == 4
    assert main(["inspect", str(path)]) == 0 and "metadata      {}" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["[" * 200_000, "[]", "3", '"x"'])
def test_settings_that_are_no_object(tmp_path: Path, text: str) -> None:
    for part in ("tokenizer", "teacher", "generator", "stage1", "classifier"):
        (tmp_path / f"{part}.safetensors").write_bytes(b"")
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match=r"run\.json: expected "):
        checkpoints.load(tmp_path)


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path, capsys) -> None:
    os.mkfifo(tmp_path / "pipe.pth")
    for path in (tmp_path / "pipe.pth", Path("/dev/zero"), Path("/dev/stdin")):
        with pytest.raises((ValueError, FileNotFoundError), match="expected a checkpoint file"):
            checkpoints.load(path)
        assert main(["inspect", str(path)]) == 2
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
def test_truncated_files_name_themselves(tmp_path: Path, capsys, suffix: str) -> None:
    path, tensors = tmp_path / f"x{suffix}", teacher_tensors(16)
    if suffix == ".safetensors":
        checkpoints.save(path, checkpoints.load(tensors), {"note": "a"})
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=suffix == ".pth")
    data = path.read_bytes()
    for keep in sorted({*range(0, len(data), 97), *range(40), len(data) - 1}):
        path.write_bytes(data[:keep])
        with pytest.raises(ValueError, match=rf"x\{suffix}: expected a"):
            open_file(path)


def test_escapes_are_printed_as_text(tmp_path: Path, capsys) -> None:
    evil = "\x1b]0;owned\x07\x1b[2J\r\n\u202e\x9b31m\udcff"
    tensors = {evil: torch.zeros(2), f"model.{evil}": torch.zeros(3)}
    torch.save({evil: 1, "state_dict": tensors}, tmp_path / "x.pth")
    name = tmp_path / "a\x1b[31m.safetensors"
    plain = {key.encode("utf-8", "replace").decode(): value for key, value in tensors.items()}
    safetensors.torch.save_file(plain, name, {"format": "\x1b[2J"})
    for path in (tmp_path / "x.pth", name):
        assert main(["inspect", str(path)]) == 0
        assert main(["convert", str(path), str(tmp_path / "out.safetensors")]) == 2
        captured = capsys.readouterr()
        assert captured.err.count("\n") == 1
        assert all(line.isprintable() for line in (captured.out + captured.err).splitlines())
        assert "\\x1b" in captured.out and "\\x1b" in captured.err
