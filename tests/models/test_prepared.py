"""Prepared networks: the same results in fewer kernels, never stale, unseen by all else."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from models.launches import launches
from models.test_compiled import Whole
from models.test_dd2_families import STUDENTS, TEACHERS, tiny_generator
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from dd2_fast.models import DD2Generator, DD2Guidance, VARTeacher, VARTokenizer
from dd2_fast.models.llamagen.layers import FeedForward as LlamaGenFeedForward
from dd2_fast.models.llamagen.vq import Upsample as LlamaGenUpsample
from dd2_fast.models.prepared import prepare
from dd2_fast.models.var.blocks import Block as VARBlock
from dd2_fast.models.var.codec import Resample as VARResample
from dd2_fast.models.var.tokenizer import PATCH_NUMS
from dd2_fast.sampling import Sampler
from dd2_fast.sampling.noise import image_noise

FAMILIES = ["var", "llamagen"]
FAMILY = pytest.mark.parametrize("family", FAMILIES)


def var_generator(**settings: Any) -> DD2Generator:
    """A VAR generator with other settings than the fixture's, whose weights are all at work."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = dict(dimension=8, num_classes=10, width=32, layers=2, heads=2)
    settings = {"patch_nums": (1, 2, 3, 4), **sizes, **settings}
    generator = DD2Generator(family="var", head_width=16, head_depth=2, **settings)
    tokenizer = VARTokenizer(
        patch_nums=settings["patch_nums"],
        vocabulary=16,
        dimension=8,
        channels=32,
        multipliers=(1, 2),
        blocks=1,
    )
    generator.tokenizer = tokenizer.eval().requires_grad_(False)
    return at_work(generator)


def at_work(network: Any) -> Any:
    """What starts at zero, and biases, made different from it."""
    for parameter in network.parameters():
        if parameter.ndim < 2 or not parameter.any():
            parameter.data.add_(torch.randn_like(parameter), alpha=0.2)
    return network.eval().requires_grad_(False)


def student(family: str) -> Any:
    return at_work(STUDENTS[family]())


def teacher(family: str) -> Any:
    return at_work(TEACHERS[family]())


GENERATORS: dict[str, Callable[[], Any]] = {
    "var": lambda: at_work(tiny_generator("var")),
    "var shared": lambda: var_generator(shared_aln=True),
    "var of one block": lambda: var_generator(layers=1),
    "var without l2": lambda: var_generator(l2_norm=False),
    "var long": lambda: var_generator(patch_nums=(1, 2, 4, 8, 13, 16)),
    "llamagen": lambda: at_work(tiny_generator("llamagen")),
    "dd1 var": lambda: student("var"),
    "dd1 llamagen": lambda: student("llamagen"),
}


SLOW = ["llamagen", "dd1 var"]


def inputs(network: Any, batch: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    noise = torch.randn(batch, network.num_tokens, network.dimension, dtype=dtype)
    return noise, torch.arange(batch) * 3 % 10


def converted(network: Any, dtype: torch.dtype) -> Any:
    network.tokenizer.to(dtype)
    return network.to(dtype)


def prepared(network: Any) -> Any:
    found = prepare(network)
    assert found is not network and type(found) is type(network) and network.prepare() is found
    return found


def error(value: Tensor, wanted: Tensor) -> float:
    assert value.shape == wanted.shape and value.dtype == wanted.dtype
    return float((value - wanted).double().norm() / wanted.double().norm())


@pytest.mark.parametrize("name", [name for name in GENERATORS if name != "var of one block"])
@torch.no_grad()
def test_a_generator_computes_the_same(name: str) -> None:
    """One image, several and none; by DD1's second step too; and images by the decoder."""
    network = converted(GENERATORS[name](), torch.float64)
    for batch, steps in ((1, 1), (3, 2), (0, 1)):
        options = {"steps": steps} if name.startswith("dd1") else {}
        noise, labels = inputs(network, batch)
        wanted = network(noise, labels, **options)
        found = prepared(network)(noise, labels, **options)
        assert found.shape == wanted.shape
        assert not batch or error(found - noise, wanted - noise) < 1e-12
    noise, _ = inputs(network, 1)
    images = network.tokenizer.decode(noise)
    assert error(prepared(network.tokenizer).decode(noise), images) < 1e-12


@FAMILY
@torch.no_grad()
def test_a_teacher_computes_and_draws_the_same(family: str) -> None:
    network = converted(teacher(family), torch.float64)
    tokens = torch.randint(len(network.codebook), (3, network.num_tokens))
    labels = torch.tensor([1, 10, 4])  # 10 is none
    assert error(prepared(network).logits(tokens, labels), network.logits(tokens, labels)) < 1e-12
    draws = [one.sample(labels[::2], cfg=1.5, top_k=9) for one in (network, prepared(network))]
    assert torch.equal(*draws)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("var", torch.float32),
        ("var", torch.bfloat16),
        ("var", torch.float16),
        ("var shared", torch.bfloat16),
        ("llamagen", torch.bfloat16),
    ],
    ids=str,
)
@torch.no_grad()
def test_it_rounds_no_more_than_the_modules(name: str, dtype: torch.dtype) -> None:
    """Against float64 on the same rounded weights; half again as much error is allowed, because
    two sums of roundings are compared."""
    network = converted(GENERATORS[name](), dtype)
    noise, labels = inputs(network, 5, dtype)
    exact = converted(copy.deepcopy(network), torch.float64)
    wanted = exact(noise.double(), labels) - noise.double()
    found = prepared(network)(noise, labels) - noise
    modules = network(noise, labels) - noise
    assert found.dtype == modules.dtype
    limit = max(1.5 * error(modules.double(), wanted), 4 * torch.finfo(dtype).eps)
    assert error(found.double(), wanted) < limit


@torch.no_grad()
def test_under_autocast_and_in_inference_mode() -> None:
    network = GENERATORS["var"]()
    noise, labels = inputs(network, 3, torch.float32)
    wanted = network(noise, labels)
    with torch.autocast("cpu", torch.bfloat16):
        assert error(prepared(network)(noise, labels), wanted) < 1e-2
    with torch.inference_mode():
        assert error(prepared(network)(noise, labels), wanted) < 1e-5
        fresh = copy.deepcopy(network)  # whose tensors have no version
        assert prepare(fresh) is fresh


def var_d16() -> DD2Generator:
    """Of the real depth, heads and scales, and narrow; on the meta device, in bfloat16."""
    tokenizer = VARTokenizer(vocabulary=16, dimension=8, channels=32)
    network = VARTeacher(
        patch_nums=PATCH_NUMS, vocabulary=16, dimension=8, num_classes=10, width=64, heads=16
    )
    network.tokenizer = tokenizer.requires_grad_(False)
    generator = DD2Generator.from_teacher(network, head_width=16)
    tokenizer.bfloat16().to("meta")
    return generator.bfloat16().to("meta").requires_grad_(False)


@torch.no_grad()
def test_launches() -> None:
    """What eager code launches on a GPU, and what is left of it if all that lies between products,
    convolutions and attention is fused, as Inductor does (it launches a few kernels more).

    VAR-d16's generator is to have at most 190 for one image, fused, of 659 as they were.
    """
    generator = var_d16()
    counts: dict[Any, list[tuple[int, int]]] = {1: [], 8: [], "decoder": []}
    for network in (generator, prepared(generator)):
        network(*meta_inputs(1))  # makes what is kept between calls
        for batch in (1, 8):
            with launches() as launched:
                network(*meta_inputs(batch))
            counts[batch].append((launched.total, launched.fused))
        with launches() as launched:
            network.tokenizer.decode(meta_inputs(1)[0])
        counts["decoder"].append((launched.total, launched.fused))
    fewest = {1: (650, 370), 8: (650, 370), "decoder": (178, 106)}
    most = {1: (155, 149), 8: (156, 149), "decoder": (119, 106)}
    for what, (before, after) in counts.items():
        assert all(n >= least for n, least in zip(before, fewest[what], strict=True)), counts
        assert all(n <= limit for n, limit in zip(after, most[what], strict=True)), counts


def meta_inputs(batch: int) -> tuple[Tensor, Tensor]:
    noise = torch.empty(batch, 680, 8, dtype=torch.bfloat16, device="meta")
    return noise, torch.empty(batch, dtype=torch.int64, device="meta")


def changes(network: Any) -> list[Callable[[], object]]:
    """Ways in which weights change in place."""

    def step() -> None:
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, fused=True)
        for parameter in network.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        optimizer.zero_grad()

    def average() -> None:
        for parameter in network.parameters():
            parameter.data.mul_(0.9)

    def load() -> None:
        state = {name: 1.1 * value for name, value in network.state_dict().items()}
        network.load_state_dict(state)

    return [step, average, load]


@pytest.mark.parametrize("name", ["var", "var shared", "llamagen", "dd1 var"])
@torch.no_grad()
def test_changes_in_place_are_followed_in_place(name: str) -> None:
    """Compiled code and graphs of it stay good."""
    network = GENERATORS[name]()
    noise, labels = inputs(network, 2, torch.float32)
    found = prepared(network)
    before = found(noise, labels)
    lie = [tensor.data_ptr() for tensor in found.state_dict().values()]
    for change in changes(network):
        change()
        assert prepare(network) is found
        assert [tensor.data_ptr() for tensor in found.state_dict().values()] == lie
        after = found(noise, labels)
        assert error(after, network(noise, labels)) < 1e-5
        assert not torch.equal(after, before)
        before = after


@torch.no_grad()
def test_every_tensor_of_a_generator_and_a_decoder_is_watched() -> None:
    network = GENERATORS["var of one block"]()
    noise, labels = inputs(network, 2, torch.float32)
    tokenizer = network.tokenizer
    for module, call in ((network, None), (tokenizer, "decode")):
        for i, (name, parameter) in enumerate(module.named_parameters()):
            unread = name.startswith(("encoder", "quant_conv", "quantize.embedding"))
            if unread or (call and i % 3):  # the decoder has many of a kind
                continue
            parameter.view(-1)[0] += 0.5
            if call is None:
                assert error(prepare(network)(noise, labels), network(noise, labels)) < 1e-5, name
            else:
                images = prepare(tokenizer).decode(noise)
                assert error(images, tokenizer.decode(noise)) < 1e-5, name
    assert error(prepare(network)(noise, labels), network(noise, labels)) < 1e-5


@torch.no_grad()
def test_replaced_tensors_and_parts_make_another() -> None:
    network = GENERATORS["var"]()
    other = at_work(tiny_generator("var"))
    noise, labels = inputs(network, 2, torch.float32)

    def moved() -> None:
        for parameter in network.parameters():
            parameter.data = 1.1 * parameter.data

    def attach() -> None:
        network.tokenizer = at_work(copy.deepcopy(network.tokenizer))

    block: Any = network.backbone.blocks[0]
    for change in (
        lambda: network.load_state_dict(other.state_dict(), assign=True),
        lambda: network.double().float(),
        lambda: setattr(block.ffn.fc1, "bias", nn.Parameter(block.ffn.fc1.bias + 1)),
        lambda: setattr(block, "ffn", copy.deepcopy(network.backbone.blocks[1].ffn)),
        moved,
        attach,
    ):
        before = prepared(network)
        change()
        found = prepared(network)
        assert found is not before
        assert error(found(noise, labels), network(noise, labels)) < 1e-5


@FAMILY
def test_nothing_else_sees_it(family: str) -> None:
    network = GENERATORS[family]().requires_grad_(True).train()
    names, size = list(network.state_dict()), len(pickle.dumps(network))
    attributes = {name: set(module.__dict__) for name, module in network.named_modules()}
    found = prepared(network)
    assert list(network.state_dict()) == names and len(pickle.dumps(network)) == size
    assert {name: set(module.__dict__) for name, module in network.named_modules()} == attributes
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert all(module.training for module in network.modules())
    assert not any(parameter.requires_grad for parameter in found.parameters())
    for again in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert prepared(again) is not found
    noise, labels = inputs(network, 2, torch.float32)
    network(noise, labels).square().sum().backward()
    assert all(p.grad is not None for p in network.head.parameters())
    alive = weakref.ref(network)
    del network, again
    gc.collect()
    assert alive() is None


class _Wider(nn.Linear):
    pass


def _another_layer() -> DD2Generator:
    network = GENERATORS["var"]()
    network.backbone.blocks[0].attn.proj = _Wider(64, 64)
    return network


def _own_forward() -> DD2Generator:
    network = GENERATORS["var"]()
    network.head.forward = lambda x_t, t, features: x_t
    return network


def _of_a_subclass() -> DD2Generator:
    network = GENERATORS["var"]()
    network.__class__ = type("Own", (DD2Generator,), {})
    return network


def _compiled() -> DD2Generator:
    network = GENERATORS["var"]()
    network.compile(backend="eager")
    return network


@pytest.mark.parametrize("make", [_another_layer, _own_forward, _of_a_subclass, _compiled])
def test_what_is_not_covered_is_returned(make: Callable[[], DD2Generator]) -> None:
    network = make()
    assert prepare(network) is network and prepare(network) is network


def test_other_networks_are_returned() -> None:
    guidance = DD2Guidance.from_teacher(TEACHERS["var"](), head_width=16, head_depth=1)
    assert prepare(guidance) is guidance
    assert prepare("digits") == "digits"


def test_hooks_want_the_modules() -> None:
    network = GENERATORS["var"]()
    found = prepared(network)
    for module in network.modules():
        handle = module.register_forward_hook(lambda *arguments: None)
        assert prepare(network) is network
        handle.remove()
    assert prepare(network) is found


@torch.no_grad()
def test_rows_are_made_of_the_classes_asked_for() -> None:
    network = GENERATORS["var"]()
    found = prepared(network)
    rows = found.backbone.prepared.of_class
    rows.table.fill_(torch.nan)
    noise, _ = inputs(network, 3, torch.float32)
    found(noise, torch.tensor([3, 7, 3]))
    assert rows.table.isfinite().all((1, 2)).nonzero()[:, 0].tolist() == [3, 7]
    made = rows.table[7].clone()
    network.backbone.class_emb.weight[7] += 1
    found(noise, torch.tensor([3, 3, 3]))
    assert torch.equal(rows.table[7], made)  # not followed before the next call of prepare
    labels = torch.tensor([7, 3, 9])
    assert error(prepare(network)(noise, labels), network(noise, labels)) < 1e-5


@pytest.mark.parametrize(
    "name",
    ["var of one block", *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW)],
)
@torch.no_grad()
def test_it_compiles_once(name: str) -> None:
    """Also after weights have changed."""
    torch.compiler.reset()
    network, counter = GENERATORS[name](), CompileCounter()
    noise, labels = inputs(network, 2, torch.float32)
    call = torch.compile(prepared(network), backend=counter, fullgraph=True, dynamic=False)
    decoding = CompileCounter()
    decode = torch.compile(
        prepared(network.tokenizer).decode, backend=decoding, fullgraph=True, dynamic=False
    )
    for _ in range(3):
        assert error(call(noise, labels), network(noise, labels)) < 1e-5
        assert error(decode(noise), network.tokenizer.decode(noise)) < 1e-5
        network.get_parameter(next(name for name, _ in network.named_parameters())).mul_(1.1)
        prepare(network)
    assert counter.frame_count == decoding.frame_count == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["var of one block", "llamagen"])
@torch.no_grad()
def test_it_is_exported_for_any_batch(name: str) -> None:
    network = GENERATORS[name]()
    batch = torch.export.Dim("batch", min=2, max=64)
    whole = Whole(prepared(network), decodes=True)
    example = inputs(network, 3, torch.float32)
    exported = torch.export.export(whole, example, dynamic_shapes=({0: batch},) * 2)
    noise, labels = inputs(network, 5, torch.float32)
    images = network.tokenizer.decode(network(noise, labels))
    assert error(exported.module()(noise, labels), images) < 1e-5


@pytest.mark.parametrize("name", ["var", "llamagen", "dd1 var"])
def test_the_sampler_prepares(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, and follows weights that change."""
    network = GENERATORS[name]()
    tokenizer = network.tokenizer
    sampler = Sampler(network, batch_size=2)
    noise = image_noise(0, torch.arange(3), (network.num_tokens, network.dimension))
    labels = torch.tensor([3, 7, 3])
    for _ in range(2):
        with torch.no_grad():
            x = network(noise, labels)
            images = tokenizer.decode(x)
        with monkeypatch.context() as patched:
            for part in (LlamaGenFeedForward, LlamaGenUpsample, VARBlock, VARResample):
                patched.setattr(part, "forward", _refuse)
            assert error(sampler(labels, output="latent") - noise, x - noise) < 1e-5
            assert error(sampler(labels), images) < 1e-5
            calls = sampler._networks()
        with torch.no_grad():
            for parameter in (*network.parameters(), *tokenizer.parameters()):
                parameter.mul_(1.05)
        assert sampler._networks() is calls
    assert len(pickle.dumps(sampler)) < 1.1 * len(pickle.dumps((network, tokenizer)))


def _refuse(*arguments: Any, **options: Any) -> None:
    raise AssertionError("a module was called")


@FAMILY
def test_the_teachers_steps_are_prepared(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = GENERATORS[family]()
    generator.teacher = teacher(family)
    options: dict[str, Any] = dict(teacher_steps=3, cfg=1.5, top_k=9)
    wanted = Sampler(generator, **options)([3, 7], output="tokens")
    for part in (LlamaGenFeedForward, VARBlock):
        monkeypatch.setattr(part, "forward", _refuse)
    assert torch.equal(Sampler(generator, **options)([3, 7], output="tokens"), wanted)
    monkeypatch.undo()
    monkeypatch.setattr("dd2_fast.sampling.sampler.prepare", lambda network, **form: network)
    assert torch.equal(Sampler(generator, **options)([3, 7], output="tokens"), wanted)
