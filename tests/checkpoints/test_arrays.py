"""Arrays in archives: read in parts, looked at first, and every damage is one error with a name."""

from __future__ import annotations

import io
import pickle
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from dd2_fast.checkpoints.arrays import ArchivedArray

IMAGES = np.random.default_rng(0).integers(0, 256, (50, 6, 5, 3), dtype=np.uint8)


@pytest.fixture(params=[np.savez, np.savez_compressed], ids=["stored", "compressed"])
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    request.param(tmp_path / "a.npz", IMAGES, np.arange(50))
    return tmp_path / "a.npz"


def write(path: Path, data: bytes, compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("arr_0.npy", data)


def header(shape: str, descr: str = "'|u1'", order: str = "False", version: int = 1) -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY" + bytes([version, 0]) + len(text).to_bytes(2 * version, "little") + text


def test_any_rows_in_any_order(archive: Path) -> None:
    array = ArchivedArray(archive)
    assert array.shape == IMAGES.shape and array.dtype == np.uint8 and len(array) == 50
    for first, stop in ((0, 1), (1, 9), (40, 50), (3, 4), (0, 50), (49, 50), (7, 7)):
        assert np.array_equal(array.read(first, stop), IMAGES[first:stop])
    again = pickle.loads(pickle.dumps(array))
    assert np.array_equal(again.read(20, 22), IMAGES[20:22])
    array.check()
    assert ArchivedArray(archive, "arr_1").read(2, 5).tolist() == [2, 3, 4]


def test_a_large_archive_is_read_in_parts(tmp_path: Path) -> None:
    """64 MB, of which a row and the check keep a few megabytes at most."""
    count, path = 1 << 14, tmp_path / "a.npz"
    row = np.random.default_rng(1).integers(0, 256, (1, 64, 64, 1), dtype=np.uint8)
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with (
            zipfile.ZipFile(path, "w", compression) as archive,
            archive.open("arr_0.npy", "w") as member,
        ):
            member.write(header(f"({count}, 64, 64, 1)"))
            for _ in range(count):
                member.write(row)
        tracemalloc.start()
        array = ArchivedArray(path)
        array.check()
        assert np.array_equal(array.read(count - 1, count), row)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 8 << 20


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "damaged one or none"),
        (b"text", "damaged one or none"),
        (header("(1, 2)"), "expected 2 bytes, as arr_0 of uint8"),
        (header("(1, 2)") + b"abc", "expected 2 bytes, .* got 3"),
        (header("(1000000, 1000000)"), "expected 1000000000000 bytes"),
        (header("(-1, -2)") + b"ab", "expected an array of numbers"),
        (header("()") + b"a", "expected an array of numbers"),
        (header("(2,)", "'|O'") + b"a" * 16, "expected an array of numbers arr_0, got object"),
        (header("(1, 2)", order="True") + b"ab", "in C order, got Fortran's"),
        (header("(" * 5000 + ")" * 5000), "damaged one or none"),
        (header("(2,)", "'|V99999999999'"), "damaged one or none"),
        (header("(2,)" + " " * 20_000) + b"ab", "damaged one or none"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\x7f{", "damaged one or none"),
        (b"\x93NUMPY\x09\x00" + header("(1,)")[8:] + b"a", "format 1.0 or 2.0, got"),
    ],
)
def test_members_that_are_not_what_they_declare(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "a.npz"
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        write(path, data, compression)
        with pytest.raises(ValueError, match=f"{message}.* in .*a.npz$"):
            ArchivedArray(path)


def test_a_small_file_that_becomes_a_large_one_is_refused_by_a_look(tmp_path: Path) -> None:
    path, count = tmp_path / "a.npz", 3 << 29
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("arr_0.npy", "w", force_zip64=True) as member,
    ):
        member.write(header(f"({count >> 20}, {1 << 20})"))
        for _ in range(count >> 20):
            member.write(bytes(1 << 20))
    assert path.stat().st_size < 16 << 20
    with pytest.raises(ValueError, match=r"at most \d+ bytes once unpacked \(max_bytes\), got 161"):
        ArchivedArray(path)
    with pytest.raises(ValueError, match="at most 1000000000 bytes once unpacked"):
        ArchivedArray(path, max_bytes=10**9)
    assert not ArchivedArray(path, max_bytes=1 << 31).read(5, 6).any()


def test_damage_anywhere(archive: Path) -> None:
    """Each flipped byte is found, or leaves the images as they are."""
    whole = archive.read_bytes()
    found = 0
    for position in range(0, len(whole), 7):
        data = bytearray(whole)
        data[position] ^= 64
        archive.write_bytes(data)
        try:
            array = ArchivedArray(archive)
            array.check()
        except ValueError as error:
            assert str(error).endswith(f" in {archive}")
            found += 1
            continue
        assert np.array_equal(array.read(0, 50), IMAGES), position
    assert found > 2250 // 7
    for end in (0, 3, 100, len(whole) // 2, len(whole) - 1):
        archive.write_bytes(whole[:end])
        with pytest.raises(ValueError, match="expected a whole .npz archive"):
            ArchivedArray(archive)
        archive.write_bytes(whole[len(whole) - end :])
        with pytest.raises(ValueError, match="expected a whole .npz archive|expected an array"):
            ArchivedArray(archive).check()


def test_other_names_and_files(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, images=IMAGES)
    with pytest.raises(ValueError, match=r"expected an array arr_0, got \['images'\] in .*a.npz"):
        ArchivedArray(path)
    data = io.BytesIO()
    np.save(data, IMAGES)
    path.write_bytes(data.getvalue())
    with pytest.raises(ValueError, match="File is not a zip file"):
        ArchivedArray(path)
    with pytest.raises(FileNotFoundError):
        ArchivedArray(tmp_path / "absent.npz")
