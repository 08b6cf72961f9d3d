"""Sampling on a GPU: graphs, bfloat16, autocast, compilation, the teacher's steps."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from sampling.test_capture import MODELS
from torch import Tensor

from dd2_fast.models import DD2Generator, prepare
from dd2_fast.sampling import Sampler

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU"),
]
LABELS = [3, 1, 4, 1]


@pytest.fixture(autouse=True)
def float32_convolutions() -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def difference(value: Tensor, wanted: Tensor) -> float:
    assert value.isfinite().all()
    return float((value - wanted).double().norm() / wanted.double().norm())


@pytest.mark.parametrize(("make", "steps"), MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_graphs_equal_eager(make: Callable[[], Any], steps: int, dtype: torch.dtype) -> None:
    """At every bucket, of the same shapes: the same kernels."""
    model = make().eval()
    options: dict[str, Any] = dict(steps=steps, batch_size=4, device="cuda", dtype=dtype)
    eager, graphs = Sampler(model, **options), Sampler(model, cuda_graphs=True, **options)
    allowed = 1e-5 if dtype == torch.float32 else 2e-2
    for count in (4, 1, 2, 4):
        for output in ("latent", "pt"):
            call: dict[str, Any] = dict(seed=5, start_index=count, output=output)
            wanted = eager(LABELS[:count], **call)
            assert difference(graphs(LABELS[:count], **call), wanted) < allowed
    assert len(graphs([], output="pt")) == 0


@pytest.mark.parametrize("name", [name for name in MODELS if name != "digits"])
@pytest.mark.parametrize(
    ("dtype", "allowed"),
    [(torch.float64, 1e-10), (torch.float32, 1e-4), (torch.bfloat16, 3e-2)],
    ids=str,
)
@torch.no_grad()
def test_prepared_networks_equal_their_modules(
    name: str, dtype: torch.dtype, allowed: float
) -> None:
    """At one image and at several."""
    if name.startswith("dd1") and dtype == torch.bfloat16:
        pytest.skip("the likeliest code may be another in bfloat16")
    make, steps = MODELS[name]
    model = make().eval()
    tokenizer = model.tokenizer.to("cuda", dtype)
    model.to("cuda", dtype)
    for count in (1, 8):
        noise = torch.randn(count, model.num_tokens, tokenizer.codebook.shape[1], device="cuda")
        labels = torch.arange(count, device="cuda")
        options = {"steps": steps} if steps > 1 else {}
        wanted = model(noise.to(dtype), labels, **options)
        found = prepare(model)(noise.to(dtype), labels, **options)
        assert difference(found, wanted) < allowed
        images = tokenizer.decode(wanted)
        assert difference(prepare(tokenizer).decode(wanted), images) < allowed


def test_the_images_are_those_of_the_cpu(generator) -> None:
    options: dict[str, Any] = dict(seed=2, output="latent")
    wanted = Sampler(generator, batch_size=4)(LABELS, **options)
    assert difference(Sampler(generator, device="cuda")(LABELS, **options).cpu(), wanted) < 1e-4


@pytest.mark.parametrize("output", ["latent", "pt"])
def test_the_bundled_digits_take_one_kernel(output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = Sampler("digits")(LABELS, seed=5, output=output)
    sampler = Sampler("digits", device="cuda")
    monkeypatch.setattr(DD2Generator, "forward", None)
    assert difference(sampler(LABELS, seed=5, output=output).cpu(), wanted) < 1e-5


def test_autocast_reaches_no_graph(generator) -> None:
    """Weights that autocast cast are freed where it ends; a graph must not read them after."""
    eager = Sampler(generator, batch_size=4, device="cuda")
    graphs = Sampler(generator, batch_size=4, cuda_graphs=True)
    wanted = eager(LABELS, output="latent")
    for _ in range(2):
        with torch.autocast("cuda", torch.bfloat16):
            assert difference(eager(LABELS, output="latent"), wanted) < 1e-5
            assert difference(graphs(LABELS, output="latent"), wanted) < 1e-5
        sizes = [2**k for k in range(6, 20)] * 4
        taken = [torch.full((size,), torch.nan, device="cuda") for size in sizes]
        assert difference(graphs(LABELS, output="latent"), wanted) < 1e-5
        del taken


@pytest.mark.parametrize("output", ["pt", "np", "latent", "tokens"])
def test_a_nan_is_named_and_a_graph_stays_capturable(generator, output: str) -> None:
    generator.backbone.class_embedding.weight.data[4] = torch.nan
    sampler = Sampler(generator, batch_size=2, device="cuda", cuda_graphs=True)
    sampler(LABELS[:3], output=output)
    with pytest.raises(FloatingPointError, match=r"generator: .* in image 8 \(label 4\)"):
        sampler(LABELS, start_index=6, output=output)


def test_a_teachers_nan_is_named_after_the_call(generator) -> None:
    generator.teacher.classifier.bias.data[2] = torch.nan
    sampler = Sampler(generator, teacher_steps=3, device="cuda")
    with pytest.raises(FloatingPointError, match=r"teacher: .* in image 0 \(label 3\) and 3 more"):
        sampler(LABELS)
    with pytest.raises(FloatingPointError, match=r"token 0 of image 0 \(label 3\)"):
        generator.teacher.sample(torch.tensor(LABELS, device="cuda"))


def test_threads_and_their_streams_share_graphs(generator) -> None:
    eager = Sampler(generator, batch_size=4, device="cuda")
    graphs = Sampler(generator, batch_size=4, cuda_graphs=True)
    wanted = [eager(LABELS, seed=seed) for seed in range(4)]
    torch.cuda.synchronize()
    errors = []

    def work(seed: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(20):
                errors.append(difference(graphs(LABELS, seed=seed), wanted[seed]))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == 80 and max(errors) < 1e-5


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_graphs_on_a_second_gpu(generator) -> None:
    """After a capture on the first."""
    first = Sampler(copy.deepcopy(generator), batch_size=4, device="cuda:0", cuda_graphs=True)
    second = Sampler(generator, batch_size=4, device="cuda:1", cuda_graphs=True)
    for seed in range(2):
        wanted = first(LABELS, seed=seed)
        images = second(LABELS, seed=seed)
        assert images.device == torch.device("cuda:1")
        assert difference(images.to("cuda:0"), wanted) < 1e-4


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_compiled_without_graph_breaks(generator, cuda_graphs: bool) -> None:
    eager = Sampler(generator, batch_size=2, device="cuda")(LABELS[:2])
    sampler = Sampler(generator, batch_size=2, cuda_graphs=cuda_graphs)
    sampler.compile(fullgraph=True)
    for _ in range(2):
        torch.testing.assert_close(sampler(LABELS[:2]), eager, atol=1e-4, rtol=0)


def test_the_teachers_steps(generator) -> None:
    options: dict[str, Any] = dict(teacher_steps=4, batch_size=4, cfg=1.5, top_k=9, top_p=0.9)
    wanted = Sampler(generator, **options)(LABELS, output="tokens")
    tokens = Sampler(generator, device="cuda", cuda_graphs=True, **options)(LABELS, output="tokens")
    # A draw next to the boundary of two codes may go either way, and those after it read it.
    assert (tokens.cpu() == wanted).double().mean() > 0.9
