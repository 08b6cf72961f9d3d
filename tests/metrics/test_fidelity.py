"""The field's distances over folders, archives and statistics, by a small network of the test's.

The formulas are held to ADM's evaluator (`adm.py`) and to torch-fidelity's own functions, where it
is installed.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import io
import sys
import types
import zipfile
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from metrics import adm, inception_graph
from PIL import Image
from torch import Tensor

from dd2_fast.cli import main
from dd2_fast.metrics import fid, fidelity, kernel_distance
from dd2_fast.metrics.inception import Features, Inception

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (12, 4, 5, 3), dtype=np.uint8)
MANY = RNG.integers(0, 256, (1010, 4, 5, 3), dtype=np.uint8)
OTHERS = RNG.integers(0, 200, (1100, 4, 5, 3), dtype=np.uint8)
FID, SFID = "frechet_inception_distance", "spatial_frechet_inception_distance"
KID = "kernel_inception_distance"


class Harm:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


class Reached(Exception):
    """Raised where the network would be made."""


class Network:
    """Random products of pixels; counts the images it has seen."""

    def __init__(self) -> None:
        rng = np.random.default_rng(1)
        self.layers = [rng.normal(size=(60, n)) for n in (8, 6, 5)]
        self.seen = 0

    def arrays(self, images: np.ndarray) -> list[np.ndarray]:
        """Of [N, H, W, 3]."""
        flat = images.transpose(0, 3, 1, 2).reshape(len(images), -1) / 255
        return [flat @ layer for layer in self.layers]

    def __call__(self, images: Tensor) -> Features:
        assert images.dtype == torch.uint8 and images.shape[1:] == (3, 4, 5)
        self.seen += len(images)
        found = self.arrays(images.permute(0, 2, 3, 1).numpy())
        return Features(*map(torch.from_numpy, found))


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    """In the place of Inception, of the command too."""
    network = Network()
    monkeypatch.setattr(fidelity, "Inception", lambda *args, **settings: network)
    return network


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Any:
    """torch-fidelity; of torchvision, which it imports, nothing is used here."""
    pytest.importorskip("tqdm")
    if importlib.util.find_spec("torch_fidelity") is None:
        pytest.skip("needs torch-fidelity")
    if importlib.util.find_spec("torchvision") is None:
        for name in ("", ".datasets", ".transforms", ".transforms.functional"):
            monkeypatch.setitem(sys.modules, f"torchvision{name}", MagicMock())
    return importlib.import_module("torch_fidelity")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "images"
    path.mkdir()
    for i, image in enumerate(IMAGES):
        Image.fromarray(image).save(path / f"{i:02}.png")
    return path


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    np.savez(tmp_path / "reference.npz", IMAGES // 2)
    return tmp_path / "reference.npz"


def wanted(network: Network, images: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    made, real = network.arrays(images), network.arrays(reference)
    distances = [
        adm.frechet(*adm.statistics(a), *adm.statistics(b))
        for a, b in zip(made[:2], real[:2], strict=True)
    ]
    score = adm.inception_score(made[2])
    pair = adm.precision_recall(real[0], made[0])
    names = FID, SFID, "inception_score_mean", "precision", "recall"
    return dict(zip(names, [*distances, score, *pair], strict=True))


def test_all_metrics_in_one_pass_are_adm_s(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = functools.partial(kernel_distance, subsets=5)
    monkeypatch.setattr(fidelity, "kernel_distance", few)
    np.savez_compressed(tmp_path / "a.npz", MANY)
    np.savez(tmp_path / "b.npz", OTHERS)
    found = fid(tmp_path / "a.npz", tmp_path / "b.npz", batch_size=100)
    assert network.seen == len(MANY) + len(OTHERS)
    expected = wanted(network, MANY, OTHERS)
    assert {k: found[k] for k in expected} == pytest.approx(expected, rel=1e-9)
    assert 0 < found["precision"] < 1 and 0 < found["recall"] < 1
    kid = few(*(torch.from_numpy(network.arrays(x)[0]) for x in (MANY, OTHERS)))
    assert (found[f"{KID}_mean"], found[f"{KID}_std"]) == pytest.approx(kid, rel=1e-9)
    assert set(found) - {f"{KID}_mean", f"{KID}_std"} == {*expected, "inception_score_std"}


def test_the_formulas_are_torch_fidelity_s(library: Any) -> None:
    network = Network()
    a, b = (network.arrays(x) for x in (MANY, OTHERS))
    pool = torch.from_numpy(a[0]), torch.from_numpy(b[0])
    kid = importlib.import_module("torch_fidelity.metric_kid").kid_features_to_metric(
        *pool, kid_subsets=10
    )
    assert kernel_distance(*pool, subsets=10) == pytest.approx(
        (kid[f"{KID}_mean"], kid[f"{KID}_std"]), rel=1e-9
    )
    module = importlib.import_module("torch_fidelity.metric_fid")
    stats = [module.fid_features_to_statistics(x) for x in pool]
    distance = module.fid_statistics_to_metric(*stats, False)[FID]
    gaussians = [torch.from_numpy(s[k]) for s in stats for k in ("mu", "sigma")]
    assert fidelity.gaussian_distance(*gaussians) == pytest.approx(distance, rel=1e-9)
    prc = importlib.import_module("torch_fidelity.metric_prc").prc_features_to_metric(*pool)
    found = fidelity.precision_recall(pool[1], pool[0], exact=False)
    assert found == pytest.approx((prc["precision"], prc["recall"]), abs=1e-6)
    logits = torch.from_numpy(a[2])
    module = importlib.import_module("torch_fidelity.metric_isc")
    isc = module.isc_features_to_metric(logits, splits=10, shuffle=False)
    score = fidelity.inception_score(logits.softmax(-1), split_size=101)
    assert score == pytest.approx(tuple(isc.values()), rel=1e-9)


def test_the_kernel_distance_is_its_definition() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(20, 4)), rng.normal(size=(20, 4)) + 0.5
    found = kernel_distance(torch.from_numpy(a), torch.from_numpy(b), subset_size=20, subsets=2)
    assert found == pytest.approx((adm.kernel_distance(a, b), 0.0), rel=1e-9, abs=1e-12)
    with pytest.raises(ValueError, match="features_b: expected .* N at least subset_size = 1000"):
        kernel_distance(torch.zeros(1000, 2), torch.zeros(999, 2))


def test_a_folder_and_an_archive_are_both_read(
    network: Network, folder: Path, archive: Path, capsys
) -> None:
    assert fid(folder, folder, metrics=["fid"]) == {FID: pytest.approx(0, abs=1e-9)}
    grey = Image.open(folder / "03.png").convert("L")
    grey.save(folder / "03.png")
    images = IMAGES.copy()
    images[3] = np.asarray(grey)[..., None]
    expected = wanted(network, images, IMAGES // 2)
    found = fid(folder, str(archive), batch_size=5)
    assert {k: found[k] for k in expected} == pytest.approx(expected, rel=1e-9)
    assert main(["fid", str(folder), str(archive), "--metrics", "fid,is", "--quiet"]) == 0
    lines = dict(line.split("  ") for line in capsys.readouterr().out.splitlines())
    assert set(lines) == {FID, "inception_score_mean", "inception_score_std"}
    assert float(lines[FID]) == pytest.approx(expected[FID], abs=6e-5)


def test_statistics_serve_alone_and_beside_images(
    network: Network, folder: Path, tmp_path: Path
) -> None:
    """As ADM's reference batches have them: FID and sFID by them, the rest by the images."""
    of_images = network.arrays(IMAGES // 2)
    (mu, sigma), (mu_s, sigma_s) = (adm.statistics(x + 0.3) for x in of_images[:2])
    shifted = {"mu": mu, "sigma": sigma, "mu_s": mu_s, "sigma_s": sigma_s}
    np.savez(tmp_path / "both.npz", arr_0=IMAGES // 2, **shifted)
    found = fid(folder, tmp_path / "both.npz")
    made = network.arrays(IMAGES)
    expected = wanted(network, IMAGES, IMAGES // 2)
    expected[FID] = adm.frechet(*adm.statistics(made[0]), mu, sigma)
    expected[SFID] = adm.frechet(*adm.statistics(made[1]), mu_s, sigma_s)
    assert {k: found[k] for k in expected} == pytest.approx(expected, rel=1e-9)

    np.savez(tmp_path / "alone.npz", mu=mu.astype(np.float32), sigma=sigma)
    network.seen = 0
    found = fid(folder, tmp_path / "alone.npz")
    assert set(found) == {FID, "inception_score_mean", "inception_score_std"}
    assert found[FID] == pytest.approx(expected[FID], rel=1e-5) and network.seen == len(IMAGES)
    assert fid(tmp_path / "alone.npz", tmp_path / "both.npz", metrics=["fid"])[FID] < 1e-5
    assert network.seen == len(IMAGES)  # of statistics nothing is looked at
    for metric, message in (
        ("sfid", "expected two images or mu_s and sigma_s for sfid, got mu, sigma in"),
        ("pr", "expected at least 4 images for pr, got mu, sigma in"),
        ("kid", "images: expected at least 1000 images for kid, got 12 images in"),
        ("is", None),
        ("fidd", "metrics: expected some of fid, sfid, is, kid, pr, got 'fidd'"),
    ):
        if message is None:
            assert fid(folder, tmp_path / "alone.npz", metrics=[metric])
            continue
        with pytest.raises(ValueError, match=message):
            fid(folder, tmp_path / "alone.npz", metrics=[metric])
    np.savez(tmp_path / "other.npz", mu=mu[:3], sigma=sigma[:3, :3])
    with pytest.raises(ValueError, match="reference: expected statistics of 8 features .* got 3"):
        fid(folder, tmp_path / "other.npz", metrics=["fid"])
    for wrong in ({"mu": mu}, {"mu": mu, "sigma": sigma[:2]}, {"mu": mu * np.nan, "sigma": sigma}):
        np.savez(tmp_path / "wrong.npz", **wrong)
        with pytest.raises(ValueError, match=r"reference: expected .*wrong\.npz"):
            fid(folder, tmp_path / "wrong.npz")


def test_nothing_is_fetched_unasked(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path, capsys
) -> None:
    def extractor(*args: Any, feature_extractor_weights_path: str | None) -> Any:
        raise Reached(feature_extractor_weights_path)

    module = types.ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.URL_INCEPTION_V3 = "https://example.org/inception.pth"
    module.FeatureExtractorInceptionV3 = extractor
    monkeypatch.setitem(sys.modules, "torch_fidelity", types.ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(FileNotFoundError, match="nothing is fetched unasked.*example.org"):
        fid(folder, folder)
    with pytest.raises(Reached, match="None"):
        fid(folder, folder, download=True)
    path = tmp_path / "weights.pth"
    with pytest.raises(FileNotFoundError, match="weights: no file at"):
        fid(folder, folder, weights=path)
    torch.save({"layer": torch.zeros(2)}, path)
    with pytest.raises(Reached, match=r"weights\.pth"):
        fid(folder, folder, weights=path)
    (tmp_path / "checkpoints").mkdir()
    path.rename(tmp_path / "checkpoints" / "inception.pth")  # where torch-fidelity keeps it
    with pytest.raises(Reached, match=r"inception\.pth"):
        fid(folder, folder)
    for held in ({"layer": Harm(tmp_path / "harm")}, [torch.zeros(1)]):
        torch.save(held, path)
        assert main(["fid", str(folder), str(folder), "--weights", str(path)]) == 2
        assert "weights: expected a file of tensors" in capsys.readouterr().err
    assert not (tmp_path / "harm").exists()


def test_without_the_extra_the_error_says_how_to_get_it(monkeypatch, folder: Path, capsys) -> None:
    for name in ("torch_fidelity", "torch_fidelity.feature_extractor_inceptionv3"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r'pip install "dd2-fast\[fid\]"'):
        fid(folder, folder)
    assert main(["fid", str(folder), str(folder)]) == 2
    assert "needs torch-fidelity" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("older", [False, True])
def test_the_network_is_the_graph_of_2015(library: Any, tmp_path: Path, older: bool) -> None:
    """Of random weights under the released names, in a file of either of torch's formats: every
    name and shape is taken, and pooled features, `mixed_6/conv` as TensorFlow lays it out and
    logits without a bias are those of the graph written out in float64."""
    weights = inception_graph.random_weights(0)
    path = tmp_path / "weights.pth"
    torch.save(weights, path, _use_new_zipfile_serialization=not older)
    inception = Inception(path, device="cpu")
    held = inception.network.state_dict()
    assert {n: v.shape for n, v in weights.items()} == {
        n: v.shape for n, v in held.items() if not n.endswith("num_batches_tracked")
    }
    images = torch.from_numpy(RNG.integers(0, 256, (2, 3, 60, 37), dtype=np.uint8))
    pool, maps, logits = inception_graph.Graph(weights)(images)
    spatial = np.stack([maps[:, :7, i // 17, i % 17].numpy() for i in range(289)], 1).reshape(2, -1)
    found = inception(images)
    assert found.spatial.shape == (2, 2023) and found.logits.shape == (2, 1008)
    for mine, graph in ((found.pool, pool), (found.spatial, spatial), (found.logits, logits)):
        wanted = torch.as_tensor(graph)
        error = (mine.double() - wanted).square().mean().sqrt() / wanted.square().mean().sqrt()
        assert error < 1e-5, error


@pytest.mark.slow
def test_weights_of_another_network_are_refused(library: Any, tmp_path: Path) -> None:
    weights, path = inception_graph.random_weights(0), tmp_path / "weights.pth"
    for name in ("Mixed_7c.branch_pool.conv.weight", "fc.weight"):
        for changed in ({}, {name: weights[name][:-1]}):
            torch.save({**{n: v for n, v in weights.items() if n != name}, **changed}, path)
            with pytest.raises(ValueError, match="weights: expected the Inception network's, got"):
                Inception(path)


def test_other_sources_are_named(network: Network, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="reference: no file or folder at .*nowhere"):
        fid(folder, tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"expected a folder or a \.npz file, got .*00\.png"):
        fid(folder / "00.png", folder)
    np.savez(tmp_path / "floats.npz", IMAGES / 255)
    with pytest.raises(ValueError, match=r"arr_0 of uint8 .* got float64 \[12, 4, 5, 3\]"):
        fid(folder, tmp_path / "floats.npz")
    np.savez(tmp_path / "named.npz", images=IMAGES)
    with pytest.raises(ValueError, match="images: expected an array arr_0"):
        fid(tmp_path / "named.npz", folder)
    assert network.seen == 0
    (folder / "05.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"images: expected an image in .*05\.png, got"):
        fid(folder, folder)


def test_broken_empty_and_huge_references_are_one_line(
    network: Network, folder: Path, archive: Path, tmp_path: Path, capsys
) -> None:
    whole, empty = archive.read_bytes(), tmp_path / "empty"
    empty.mkdir()
    (empty / "notes.txt").write_text("no image")
    np.savez_compressed(tmp_path / "none.npz", IMAGES[:0])
    (tmp_path / "cut.npz").write_bytes(whole[:-30])
    (tmp_path / "nothing.npz").write_bytes(b"")
    flipped = bytearray(whole)
    flipped[200] ^= 1
    (tmp_path / "flipped.npz").write_bytes(flipped)
    with zipfile.ZipFile(tmp_path / "lie.npz", "w", zipfile.ZIP_DEFLATED) as lie:
        data = io.BytesIO()
        shape = {"descr": "|u1", "fortran_order": False, "shape": (10**6, 1000, 333, 3)}
        np.lib.format.write_array_header_1_0(data, shape)
        lie.writestr("arr_0.npy", data.getvalue() + bytes(180_000))
    for name in ("empty", "none.npz", "cut.npz", "nothing.npz", "flipped.npz", "lie.npz"):
        assert main(["fid", str(folder), str(tmp_path / name)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("dd2-fast: error: reference: expected ") and error.count("\n") == 1
        assert str(tmp_path / name) in error
    argv = ["fid", str(archive), str(folder), "--max-bytes"]
    assert main([*argv, "100"]) == 2
    assert "images: expected at most 100 bytes once unpacked (max_bytes), got " in (
        capsys.readouterr().err
    )
    assert network.seen == 0 and main([*argv, "1000"]) == 0
