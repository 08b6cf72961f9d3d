"""Folders as the model hubs have them: written, read, fetched and sent."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import sys
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from checkpoints.hub_double import Hub
from checkpoints.test_facts import GPT, LEVELS, VAE, VAR, folder
from checkpoints.test_facts import VARHF as PUBLIC
from forks import run_forked
from models.test_dd2_families import TEACHERS, tiny_generator
from optional import require
from PIL import Image
from snippets import snippet

from dd2_fast import checkpoints, models
from dd2_fast.checkpoints import hub, pretrained
from dd2_fast.sampling import Sampler, resolve_path

LABELS = [3, 1, 0, 2]
FILES = {"config.json", "model.safetensors", "README.md"}


def network(family: str) -> tuple[Any, Any]:
    """A generator with its tokenizer, and a teacher."""
    if family == "causal":
        bundle = checkpoints.load_bundle(resolve_path("digits"))
        return bundle.generator, bundle.teacher
    return tiny_generator(family), TEACHERS[family]()


def assert_same(found: Any, wanted: Any) -> None:
    """Two networks with the same configuration and the same bits of weights."""
    assert type(found) is type(wanted) and found.config == wanted.config
    ours, theirs = found.state_dict(), wanted.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def names(path: Path) -> set[str]:
    return {p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()}


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    double = Hub(tmp_path / "hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", double.module)
    return double


@pytest.mark.parametrize("family", ["causal", "var", "llamagen"])
def test_every_kind_of_model_comes_back(family: str, tmp_path: Path) -> None:
    generator, teacher = network(family)
    tokenizer, labels = generator.tokenizer, torch.tensor(LABELS)
    noise = torch.randn(4, generator.num_tokens, generator.dimension)
    generator.save_pretrained(tmp_path / "generator")
    teacher.tokenizer = None
    teacher.save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    assert all(names(tmp_path / sort) == FILES for sort in ("generator", "teacher", "tokenizer"))
    again = models.DD2Generator.from_pretrained(tmp_path / "generator")
    assert_same(again, generator)
    assert_same(again.tokenizer, tokenizer)
    torch.testing.assert_close(again(noise, labels), generator(noise, labels), atol=1e-5, rtol=0)
    assert_same(type(teacher).from_pretrained(str(tmp_path / "teacher")), teacher)
    for place in ("tokenizer", "generator"):  # there too it lies
        assert_same(type(tokenizer).from_pretrained(tmp_path / place), tokenizer)
    both = type(teacher).from_pretrained(tmp_path / "teacher", tokenizer=tmp_path / "tokenizer")
    assert_same(both.tokenizer, tokenizer)
    with pytest.raises(TypeError, match=f"expected a DD2Generator, got a {type(teacher).__name__}"):
        models.DD2Generator.from_pretrained(tmp_path / "teacher")
    config = json.loads((tmp_path / "generator" / "config.json").read_text())
    assert config["kind"] == "dd2_generator" and config["architectures"] == ["DD2Generator"]


def test_large_models_are_written_in_parts_that_the_hubs_libraries_read(tmp_path: Path) -> None:
    generator, _ = network("causal")
    size = sum(p.nbytes for p in generator.state_dict().values())
    for count, largest in ((1, 10**9), (0, size // 3), (0, size // 2), (1, 10**9), (0, 1)):
        generator.save_pretrained(tmp_path, max_shard_size=largest)
        found = models.DD2Generator.from_pretrained(tmp_path)
        assert_same(found, generator)
        assert_same(found.tokenizer, generator.tokenizer)
        if count:
            assert names(tmp_path) == FILES
            continue
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        parts = sorted(set(index["weight_map"].values()))
        expected = [f"model-{i + 1:05d}-of-{len(parts):05d}.safetensors" for i in range(len(parts))]
        assert parts == expected and len(parts) > 2
        whole = FILES - {"model.safetensors"} | {"model.safetensors.index.json", *parts}
        assert names(tmp_path) == whole, "nothing of what was there before stays"
        tensors = {}
        for part in parts:
            with safetensors.safe_open(tmp_path / part, "pt") as file:
                own = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            sizes = [value.nbytes for value in own.values()]
            assert sum(sizes) <= largest or len(sizes) == 1
            assert all(index["weight_map"][name] == part for name in own)
            tensors |= own
        assert set(tensors) == set(index["weight_map"])
        assert index["metadata"]["total_size"] == sum(v.nbytes for v in tensors.values())


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    generator = network("causal")[0]
    generator.save_pretrained(tmp_path, max_shard_size=10_000)
    part = sorted(tmp_path.glob("model-*"))[1]
    data = bytearray(part.read_bytes())
    data[-1] ^= 1
    part.write_bytes(data)
    with pytest.raises(ValueError, match=f"{part.name}: expected a whole .*is not what was writt"):
        checkpoints.from_pretrained(tmp_path)
    part.unlink()
    with pytest.raises(FileNotFoundError, match=part.name):
        checkpoints.from_pretrained(tmp_path)


def test_parts_of_two_models_are_refused(tmp_path: Path) -> None:
    for sort, model in zip(("a", "b"), network("causal"), strict=True):
        model.save_pretrained(tmp_path / sort, max_shard_size=10_000)
    first = sorted((tmp_path / "a").glob("model-*"))[0]
    index = tmp_path / "b" / "model.safetensors.index.json"
    shutil.copy(first, tmp_path / "b" / "other.safetensors")
    places = json.loads(index.read_text())["weight_map"]
    with safetensors.safe_open(first, "pt") as file:
        places[next(iter(file.keys()))] = "other.safetensors"
    index.write_text(json.dumps({"weight_map": places}))
    with pytest.raises(ValueError, match="the files of one model, got those of several"):
        checkpoints.load(tmp_path / "b")


def killed_while_writing(path: Path, at: int) -> None:
    """Writes other weights, and is killed before file number `at`."""
    (generator, _), done = network("causal"), [0]
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter += 1
    write = pretrained.write_own

    def counted(*arguments: Any) -> None:
        done[0] += 1
        if done[0] > at:
            os.kill(os.getpid(), signal.SIGKILL)
        write(*arguments)

    pretrained.write_own = counted
    generator.save_pretrained(path, max_shard_size=10_000)


def test_weights_of_two_models_are_never_mixed(tmp_path: Path) -> None:
    """A killed process leaves the parts of another model, and no index that would name them."""
    generator = network("causal")[0]
    generator.save_pretrained(tmp_path, max_shard_size=10_000)
    killed = run_forked(killed_while_writing, tmp_path, 2, folder=tmp_path)
    assert killed.code == -signal.SIGKILL, killed.output
    with pytest.raises(FileNotFoundError):
        checkpoints.from_pretrained(tmp_path)
    generator.save_pretrained(tmp_path, max_shard_size=10_000)
    assert_same(checkpoints.from_pretrained(tmp_path), generator)
    assert not any(name.startswith(".") for name in names(tmp_path)), "no leftovers"


def test_a_sampler_with_its_teacher_and_its_card(tmp_path: Path) -> None:
    sampler = Sampler("fashion", teacher_steps=2)
    wanted = sampler(LABELS, seed=5)
    sampler.save_pretrained(tmp_path, licence="apache-2.0")
    inside = {f"teacher/{name}" for name in FILES}
    assert names(tmp_path) == {*FILES, "samples.png", *inside}
    again = Sampler.from_pretrained(tmp_path, teacher_steps=2, batch_size=3)
    assert again.batch_size == 3
    torch.testing.assert_close(again(LABELS, seed=5), wanted, atol=1e-5, rtol=0)
    assert Sampler.from_pretrained(str(tmp_path)).teacher is None, "not loaded unless needed"
    picture = Image.open(io.BytesIO((tmp_path / "samples.png").read_bytes()))
    assert picture.size == (8 * 56, 4 * 56)  # 28 px, twice
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("---\nlibrary_name: dd2_fast\n") and "\nlicense: apache-2.0\n---" in text
    assert "![Samples](samples.png)" in text
    run = sampler.run
    for row in (
        f"| train | {run['data']['train']} |",
        f"| size | {run['settings']['data']['size']} |",
        "| recipe | images |",
        f"| commit | {run['provenance']['commit']} |",
        f"| distill.steps | {run['settings']['distill']['steps']} |",
        "| kind | dd2\\_generator |".replace("\\_", "_"),
    ):
        assert row in text.splitlines(), row
    header = next(line for line in text.splitlines() if line.startswith("|  |"))
    one_step = next(line for line in text.splitlines() if line.startswith("| one_step |"))
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in (header, one_step)]
    figures = dict(zip(*cells, strict=True))
    for name, value in run["evaluation"]["rows"]["one_step"].items():
        assert float(figures[name]) == pytest.approx(value, rel=1e-3)
    assert run["settings"]["source"]["data"] not in text, "where the images lay is nobody's"


def test_a_bundled_name_a_bundle_and_a_folder_that_has_another_teacher(tmp_path: Path) -> None:
    sampler = Sampler.from_pretrained("digits")
    assert torch.equal(sampler(LABELS), Sampler("digits")(LABELS)) and sampler.run["recipe"]
    sampler.save_pretrained(tmp_path, picture=False)
    assert "samples.png" not in names(tmp_path)
    sampler.teacher = None
    with pytest.raises(FileExistsError, match="expected no teacher there"):
        sampler.save_pretrained(tmp_path)


EVIL = "a\x1b[2J\n| x |\n<script>![y](http://z)"


def test_what_a_run_says_cannot_leave_its_cell(tmp_path: Path) -> None:
    run = {
        "recipe": EVIL,
        "settings": {"distill": {EVIL: EVIL}, "data": [1], "seed": {"a": EVIL}},
        "metrics": {EVIL: {EVIL: EVIL}, "b": 3},
        "provenance": None,
        "data": {"classes": [EVIL] * 1000},
    }
    network("causal")[0].save_pretrained(tmp_path, run=run)
    text = (tmp_path / "README.md").read_text()
    assert all(character.isprintable() for character in text.replace("\n", ""))
    assert "<script" not in text.replace("\\<script", "") and "![y]" not in text
    assert max(map(len, text.splitlines())) < 3000
    for wrong in ("mit\n---", "", 3, "<b>"):
        with pytest.raises(ValueError, match="licence: expected an identifier"):
            network("causal")[0].save_pretrained(tmp_path, licence=wrong)


def test_public_folders_load(tmp_path: Path) -> None:
    """As VAR's and LlamaGen's mixins write them, `config.json` with `model.safetensors`."""
    sort = "model.safetensors"
    var = folder(tmp_path / "var", {**VAR, "lvl_1L": LEVELS}, PUBLIC, sort)
    vae = folder(tmp_path / "vae", VAE, PUBLIC["vae_kwargs"], sort)
    teacher = models.VARTeacher.from_pretrained(var, tokenizer=vae)
    assert teacher.patch_nums == (1, 2, 3, 4)
    assert torch.equal(
        teacher.tokenizer.codebook, models.VARTokenizer.from_pretrained(vae).codebook
    )
    gpt = folder(tmp_path / "gpt", GPT, {"n_head": 2, "block_size": 16, "dim": 64}, sort)
    assert models.LlamaGenTeacher.from_pretrained(gpt).grid == 4
    with pytest.raises(TypeError, match="expected a one-step generator, got a teacher"):
        Sampler.from_pretrained(var, tokenizer=vae)


@dataclass
class ModelArgs:
    """The arguments that LlamaGen's classes have, and with them `config.json`."""

    dim: int = 64
    n_layer: int = 2
    n_head: int = 2
    n_kv_head: int | None = None
    rope_base: float = 10000
    num_classes: int = 10
    model_type: str = "c2i"
    vocab_size: int = 64
    block_size: int = 16
    max_seq_len: int = 2048


def put(module: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """Give a module tensors of such names."""
    for name, value in tensors.items():
        inner, *names = module, *name.split(".")
        for part in names[:-1]:
            if not hasattr(inner, part):
                inner.add_module(part, torch.nn.Module())
            inner = getattr(inner, part)
        inner.register_buffer(names[-1], value)


def test_what_the_public_mixin_itself_writes(tmp_path: Path) -> None:
    """`PyTorchModelHubMixin` over classes with VARHF's and TransformerHF's arguments."""
    require("huggingface_hub", by_ci=False)
    from huggingface_hub import PyTorchModelHubMixin

    class Network(torch.nn.Module):
        def __init__(self, config: ModelArgs) -> None:
            super().__init__()
            put(self, GPT)

    class TransformerHF(Network, PyTorchModelHubMixin, license="mit"):
        pass

    class VARHF(torch.nn.Module, PyTorchModelHubMixin):
        def __init__(
            self, vae_kwargs: Any, num_classes: int = 1000, depth: int = 16, embed_dim: int = 1024,
            num_heads: int = 16, patch_nums: Any = (1, 2, 3),
        ) -> None:  # fmt: skip
            super().__init__()
            put(self, {**VAR, "lvl_1L": LEVELS})

    TransformerHF(ModelArgs()).save_pretrained(tmp_path / "gpt")
    VARHF(**PUBLIC).save_pretrained(tmp_path / "var")
    for sort in ("gpt", "var"):
        assert {"config.json", "model.safetensors"} <= names(tmp_path / sort)
    assert models.LlamaGenTeacher.from_pretrained(tmp_path / "gpt").grid == 4
    teacher = models.VARTeacher.from_pretrained(tmp_path / "var")
    assert teacher.patch_nums == (1, 2, 3, 4) and teacher.config["heads"] == 2


def test_a_repository_is_fetched(there: Hub, tmp_path: Path) -> None:
    sampler = Sampler("digits", teacher_steps=3)
    address = sampler.push_to_hub("owner/digits", private=True, commit_message="First")
    assert address == "https://hub/owner/digits/commit/1"
    assert [name for name, _ in there.calls] == ["create_repo", "upload_folder"]
    assert there.calls[0][1] == {"repo_id": "owner/digits", "private": True, "exist_ok": True}
    assert there.calls[1][1]["commit_message"] == "First"
    assert not Path(there.calls[1][1]["folder_path"]).exists(), "the folder was for the time"
    again = Sampler.from_pretrained("owner/digits", teacher_steps=3)
    torch.testing.assert_close(again(LABELS), sampler(LABELS), atol=1e-5, rtol=0)
    sampler.generator.push_to_hub("owner/digits", revision="other")
    assert ("create_branch", {"repo_id": "owner/digits", "branch": "other", "exist_ok": True}) in (
        there.calls
    )
    model = models.DD2Generator.from_pretrained("owner/digits", revision="other")
    assert torch.equal(Sampler(model)(LABELS), Sampler("digits")(LABELS))
    assert there.calls[-1][1]["revision"] == "other"
    assert not any("teacher" in p for p in there.calls[-1][1]["allow_patterns"])
    with pytest.raises(LookupError, match="404"):
        checkpoints.from_pretrained("owner/none")


def test_the_guides_code(there: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "vae", VAE, {}, "pytorch_model.bin")
    (tmp_path / "vae" / "pytorch_model.bin").rename("vae_ch160v4096z32.pth")
    path = there.folder / "there" / "owner" / "var"
    path.mkdir(parents=True)
    folder(path / "main", {**VAR, "lvl_1L": LEVELS}, PUBLIC, "model.safetensors")
    variables: dict[str, Any] = {}
    exec(snippet("dd2_fast/models/README.md", "hub"), variables)
    wanted = variables["sampler"](LABELS)
    torch.testing.assert_close(variables["again"](LABELS), wanted, atol=1e-5, rtol=0)
    assert variables["teacher"].tokenizer is not None and (tmp_path / "folder").is_dir()


def test_older_repositories_of_pickles_are_fetched_too(there: Hub) -> None:
    path = there.folder / "there" / "owner" / "gpt"
    path.mkdir(parents=True)
    folder(path / "main", GPT, {"n_head": 2, "block_size": 16}, "pytorch_model.bin")
    assert models.LlamaGenTeacher.from_pretrained("owner/gpt").grid == 4
    assert len(there.calls) == 2


@pytest.mark.parametrize(
    ("source", "revision", "error", "message"),
    [
        ("nowhere", None, FileNotFoundError, "expected a folder or a repository.* got nowhere"),
        ("../x/y", None, FileNotFoundError, "expected a folder or a repository"),
        ("a/b/c", None, FileNotFoundError, "expected a folder or a repository"),
        (Path("owner/name"), None, FileNotFoundError, "expected a folder or a repository"),
        ("\x1b[2J/x", None, FileNotFoundError, r"got \\x1b\[2J/x"),
        (".", "main", ValueError, "revision: expected none for a folder that is here, got 'main'"),
    ],
)
def test_sources_that_are_none(
    there: Hub, source: Any, revision: str | None, error: type, message: str
) -> None:
    with pytest.raises(error, match=message):
        hub.fetched(source, revision)
    assert not there.calls, "nothing was asked for"


def test_without_the_library_it_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    network("causal")[0].save_pretrained(tmp_path)
    assert checkpoints.from_pretrained(tmp_path) is not None
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'dd2-fast\[hub\]'; a folder"):
        Sampler.from_pretrained("owner/name")
    with pytest.raises(ValueError, match="repo_id: expected owner/name, got name"):
        network("causal")[0].push_to_hub("name")


def test_the_library_takes_these_calls(there: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the double takes, `huggingface_hub` takes by its signatures."""
    Sampler("digits").push_to_hub("owner/digits", revision="other", picture=False)
    Sampler.from_pretrained("owner/digits", revision="other")
    monkeypatch.undo()
    require("huggingface_hub", by_ci=False)  # the package does not need it
    import huggingface_hub

    for name, arguments in there.calls:
        if name == "snapshot_download":
            signature(huggingface_hub.snapshot_download).bind("owner/digits", **arguments)
        else:
            signature(getattr(huggingface_hub.HfApi, name)).bind(None, **arguments)


@pytest.mark.parametrize(
    ("size", "error"), [(0, ValueError), (True, TypeError), (1.5, TypeError), ("5GB", TypeError)]
)
def test_bad_sizes(size: Any, error: type, tmp_path: Path) -> None:
    with pytest.raises(error, match="max_shard_size: expected a"):
        network("causal")[0].save_pretrained(tmp_path, max_shard_size=size)
    assert not names(tmp_path)
