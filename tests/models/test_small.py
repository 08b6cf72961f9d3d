"""Packed weights of small networks: seen to change, unseen by what saves, copies and trains."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.flop_counter import FlopCounterMode

from dd2_fast.models import ARTeacher, DD2Generator, LogitStudent, VQTokenizer
from dd2_fast.models.small import (
    packed_decoder,
    packed_generator,
    packed_student,
    packed_teacher,
)
from dd2_fast.ops import extension

SIZES = {"num_tokens": 4, "dimension": 3, "num_classes": 2, "width": 32, "layers": 2, "heads": 2}


def generator(**changes: int) -> DD2Generator:
    return DD2Generator(**{**SIZES, "head_width": 16, **changes})


def tokenizer(**changes: int) -> VQTokenizer:
    return VQTokenizer(**{"image_size": 4, "vocabulary": 5, "dimension": 3, "width": 16, **changes})


def teacher(**changes: int) -> ARTeacher:
    return ARTeacher(**{**SIZES, "vocabulary": 7, **changes})


def student(**changes: int) -> LogitStudent:
    return LogitStudent(**{**SIZES, "codes": 7, **changes})


NETWORKS = {
    "generator": (generator, packed_generator),
    "decoder": (tokenizer, packed_decoder),
    "teacher": (teacher, packed_teacher),
    "student": (student, packed_student),
}
EACH = pytest.mark.parametrize("make,pack", NETWORKS.values(), ids=NETWORKS.keys())


@pytest.fixture(params=["compiled", "python"])
def watch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors looked at by the extension, and without one."""
    if request.param == "python":
        monkeypatch.setattr("dd2_fast.models.watch.extension.load", lambda: (None, "absent"))
    elif extension.load()[0] is None:
        pytest.skip("no extension")


def weights(pack: Callable, network: nn.Module) -> Tensor:
    packed = pack(network)
    assert packed is not None
    return packed.weights


@EACH
@pytest.mark.usefixtures("watch")
def test_they_are_kept_until_a_tensor_changes(make: Callable, pack: Callable) -> None:
    network = make()
    read = [t for n, t in network.named_parameters() if not n.startswith("encoder")]
    before = weights(pack, network)
    assert weights(pack, network) is before and not before.requires_grad
    for tensor in read:
        with torch.no_grad():
            tensor.view(-1)[-1] += 1
        after = weights(pack, network)
        assert after is not before and not torch.equal(after, before)
        before = after


@EACH
@pytest.mark.usefixtures("watch")
def test_replaced_parts_are_seen(make: Callable, pack: Callable) -> None:
    network, other = make(), make()
    changes: list[Callable[[], object]] = [
        lambda: network.load_state_dict(other.state_dict(), assign=True),
        lambda: network.double(),
        lambda: network.float(),
    ]
    for name, module in list(network.named_modules()):
        if isinstance(getattr(module, "bias", None), nn.Parameter) and "encoder" not in name:
            value = nn.Parameter(torch.full_like(module.bias, 0.3))
            changes.append(lambda m=module, v=value: setattr(m, "bias", v))
            changes.append(lambda v=value: nn.init.constant_(v, 0.7))
    for change in changes:
        before = weights(pack, network)
        change()
        assert weights(pack, network) is not before
    assert weights(pack, network).dtype == torch.float32


@EACH
@pytest.mark.parametrize("settings", [{}, {"foreach": True}, {"fused": True}], ids=str)
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_an_optimizer_step_is_seen(
    make: Callable, pack: Callable, kind: type, settings: dict[str, bool]
) -> None:
    """The fused ones change weights behind torch's count of versions."""
    network = make()
    before = weights(pack, network)
    optimizer = kind(network.parameters(), lr=1.0, **settings)
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert not torch.equal(weights(pack, network), before)


@EACH
@pytest.mark.usefixtures("watch")
def test_changes_that_torch_does_not_count_are_seen(make: Callable, pack: Callable) -> None:
    """As averages are often kept, and as vector_to_parameters writes."""

    def average(network: nn.Module) -> None:
        for parameter in network.parameters():
            parameter.data.mul_(0.9).add_(0.01)

    def shared(network: nn.Module) -> None:
        for parameter in network.parameters():
            parameter.detach().numpy()[...] *= 0.5

    def moved(network: nn.Module) -> None:
        vector = nn.utils.parameters_to_vector(network.parameters())
        nn.utils.vector_to_parameters(1.5 * vector.detach(), network.parameters())

    for change in (average, shared, moved):
        network = make().requires_grad_(False)
        before = weights(pack, network)
        change(network)
        assert not torch.equal(weights(pack, network), before), change


@EACH
def test_nothing_else_sees_them(make: Callable, pack: Callable) -> None:
    network = make()
    names, size = list(network.state_dict()), len(pickle.dumps(network))
    attributes = set(network.__dict__)
    before = weights(pack, network)
    assert list(network.state_dict()) == names and set(network.__dict__) == attributes
    assert len(pickle.dumps(network)) == size
    for again in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        own = weights(pack, again)
        assert own is not before and torch.equal(own, before)


@EACH
def test_with_inference_tensors_there_are_none(make: Callable, pack: Callable) -> None:
    with torch.inference_mode():
        network = make()
    assert pack(network) is None


@EACH
def test_hooks_and_counting_modes_want_the_modules(make: Callable, pack: Callable) -> None:
    network = make()
    before = weights(pack, network)
    for module in list(network.modules()):
        parts = type(network) is VQTokenizer
        if parts and module not in list(network.decoder.modules()):
            continue
        for register in (module.register_forward_hook, module.register_forward_pre_hook):
            handle = register(lambda *arguments: None)
            assert pack(network) is None
            handle.remove()
    with FlopCounterMode(display=False):
        assert pack(network) is None
    handle = nn.modules.module.register_module_forward_hook(lambda *arguments: None)
    assert pack(network) is None
    handle.remove()
    assert weights(pack, network) is before


def changed(network: nn.Module, part: str, value: object) -> nn.Module:
    *path, name = part.split(".")
    setattr(network.get_submodule(".".join(path)), name, value)
    return network


UNCOVERED = {
    "width": (packed_generator, lambda: generator(width=40, heads=1)),
    "wide": (packed_generator, lambda: generator(width=288)),
    "head size": (packed_generator, lambda: generator(heads=4)),
    "head width": (packed_generator, lambda: generator(head_width=24)),
    "tokens": (packed_generator, lambda: generator(num_tokens=65)),
    "eps": (packed_generator, lambda: changed(generator(), "backbone.norm.eps", 1e-3)),
    "no bias": (packed_generator, lambda: changed(generator(), "head.output.bias", None)),
    "two dtypes": (packed_generator, lambda: changed(generator(), "head", generator().head.half())),
    "another layer": (
        packed_generator,
        lambda: changed(generator(), "head.input", nn.Sequential(nn.Linear(3, 16))),
    ),
    "parametrized": (
        packed_generator,
        lambda: changed(
            generator(), "head.input", parametrizations.weight_norm(generator().head.input)
        ),
    ),
    "own forward": (
        packed_generator,
        lambda: changed(generator(), "head.input.forward", lambda x: x.new_zeros(1, 1, 16)),
    ),
    "decoder width": (packed_decoder, lambda: tokenizer(width=24)),
    "large images": (packed_decoder, lambda: tokenizer(image_size=18)),
    "gelu": (packed_decoder, lambda: changed(tokenizer(), "decoder.2", nn.GELU("tanh"))),
    "padding": (
        packed_decoder,
        lambda: changed(tokenizer(), "decoder.0.padding_mode", "reflect"),
    ),
    "teacher width": (packed_teacher, lambda: teacher(width=24, heads=1)),
    "student width": (packed_student, lambda: student(width=24, heads=1)),
    "no student's bias": (packed_student, lambda: student(bias=False)),
    "another head": (packed_student, lambda: changed(student(), "head", nn.Linear(32, 8))),
    "classifier": (packed_teacher, lambda: changed(teacher(), "classifier", nn.Linear(32, 8))),
}


@pytest.mark.parametrize("pack,make", UNCOVERED.values(), ids=UNCOVERED.keys())
def test_what_the_kernels_do_not_cover(pack: Callable, make: Callable) -> None:
    assert pack(make()) is None
