"""What a CUDA graph cannot record must not be in the code that is captured: a value read back to
the host, or a tensor copied from it. Shown without a GPU, on tensors of the meta device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from models.test_dd2_families import tiny_generator
from parity import llamagen_models, var_models
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dd2_fast.checkpoints import load_bundle
from dd2_fast.models.dd2 import DD2Generator
from dd2_fast.sampling import Sampler, resolve_path
from dd2_fast.sampling.faults import Faults

# Their results, or the shapes of these, depend on values.
READ_BACK = {"_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal", "_unique2"}
# Of numbers they make a tensor on the host first.
FROM_HOST = {torch.tensor, torch.as_tensor, torch.asarray, torch.from_numpy, Tensor.new_tensor}


class Operations(TorchDispatchMode):
    def __init__(self, refused: list[str]) -> None:
        super().__init__()
        self.refused = refused

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if name in READ_BACK:
            self.refused.append(name)
        result = func(*args, **(kwargs or {}))
        tensors = [v for v in tree_leaves((args, kwargs, result)) if isinstance(v, Tensor)]
        if any(tensor.device.type == "cpu" for tensor in tensors):
            self.refused.append(name)
        return result


class Functions(TorchFunctionMode):
    def __init__(self, refused: list[str]) -> None:
        super().__init__()
        self.refused = refused

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in FROM_HOST:
            self.refused.append(func.__name__)
        return func(*args, **(kwargs or {}))


@contextmanager
def captured() -> Iterator[list[str]]:
    """The names of what a CUDA graph of the code inside could not hold."""
    refused: list[str] = []
    with Functions(refused), Operations(refused):
        yield refused


def dd1_var() -> Any:
    return var_models.student()


def dd1_llamagen() -> Any:
    student = llamagen_models.make_student(codebook=False)
    student.tokenizer = llamagen_models.make_tokenizer()
    return student


def digits() -> DD2Generator:
    return load_bundle(resolve_path("digits")).generator


MODELS: dict[str, tuple[Callable[[], Any], int]] = {
    "digits": (digits, 1),
    "dd2_var": (lambda: tiny_generator("var"), 1),
    "dd2_llamagen": (lambda: tiny_generator("llamagen"), 1),
    "dd1_var": (dd1_var, 1),
    "dd1_var_twice": (dd1_var, 2),
    "dd1_llamagen": (dd1_llamagen, 1),
    "dd1_llamagen_twice": (dd1_llamagen, 2),
}


@pytest.mark.parametrize(("make", "steps"), MODELS.values(), ids=MODELS)
@torch.inference_mode()
def test_nothing_waits_for_the_host(make: Callable[[], Any], steps: int) -> None:
    sampler = Sampler(make().eval(), steps=steps, dtype=torch.bfloat16).to("meta")
    draw, decode = sampler._networks()
    seed, indices, labels = torch.zeros(3, 4, dtype=torch.int64, device="meta")
    decode(draw(seed, indices, labels))  # as before a capture: makes what is kept between calls
    with captured() as refused:
        images = decode(draw(seed, indices, labels))
        faults = Faults(sampler.condition)
        faults.look("decoder", images, indices, labels)
    assert images.device.type == "meta" and images.shape[:2] == (4, 3)
    assert not refused


def test_what_a_graph_refuses_is_noticed() -> None:
    x = torch.zeros(2, device="meta")
    with captured() as refused:
        x + torch.full((), 1.0, device=x.device)
    assert not refused
    with captured() as refused:
        x + torch.as_tensor(1.0, device=x.device)
        x.new_tensor([1.0])
        with pytest.raises(RuntimeError):
            bool(x.any())
        x + torch.zeros(2).to(x.device)
    assert {"as_tensor", "new_tensor", "zeros", "_to_copy"} <= set(refused)
    assert {"is_nonzero", "_local_scalar_dense"} & set(refused)
