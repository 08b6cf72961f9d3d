"""``add_norm_modulate`` against its definition in float64, forward and backward, by every backend
that can run here."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from ops.cases import (
    COMPILERS,
    assert_once_differentiable,
    device_of,
    runnable_backends,
    unaligned,
)
from pairwise import pairwise
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.nn import functional as F

from dd2_fast.ops import add_norm_modulate, default_backend

BACKENDS = pytest.mark.parametrize("backend", runnable_backends(("torch", "triton")))
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
NAMES = ("h", "branch", "gate", "bias", "weight", "shift", "scale")
EPS = 1e-5

# (images, rows, width), each with the regime it covers; rows are added up by tiles of 4 at least
REGIMES: dict[str, tuple[int, int, int]] = {
    "one_row": (1, 1, 64),
    "one_value": (2, 3, 1),
    "images_of_a_row": (5, 1, 64),
    "odd_width": (2, 5, 77),
    "not_of_vectors": (2, 3, 1000),
    "var_d16": (2, 9, 1024),
    "var_d30": (1, 2, 1920),
    "var_d36": (1, 3, 2304),
    "several_tiles": (3, 37, 32),
}
# Shapes of the arguments beside h: of an image, of a row, or of all.
KINDS: dict[str, dict[str, Any]] = {
    "norm": {},
    "rms": {"norm": "rms", "weight": "all"},
    "layer": {"branch": "row", "weight": "all", "shift": "all"},
    "modulated": {"scale": "image", "shift": "image"},
    "var": {"branch": "row", "gate": "image", "scale": "image", "shift": "image"},
    "head": {"branch": "row", "gate": "row", "scale": "row", "shift": "row"},
    "llamagen": {"norm": "rms", "branch": "row", "weight": "all"},
    "everything": {
        "branch": "row", "gate": "all", "bias": "all", "weight": "row", "shift": "image",
    },
    "rms_everything": {
        "norm": "rms", "branch": "row", "gate": "image", "bias": "all", "scale": "all",
        "shift": "row",
    },
}  # fmt: skip


def make_inputs(
    regime: tuple[int, int, int], kind: dict[str, Any], dtype: torch.dtype
) -> dict[str, Any]:
    """Arguments on the CPU. Rows have means of two deviations, and a channel in 50 is 30 times as
    large as the others."""
    images, rows, width = regime
    generator = torch.Generator().manual_seed(images + rows + width)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    h = normal(images, rows, width) + 2
    h[..., 7::50] *= 30
    shapes = {"row": (images, rows, width), "image": (images, width), "all": (width,)}
    given: dict[str, Any] = {"h": h.to(dtype), "norm": kind.get("norm", "layer"), "eps": EPS}
    for name in NAMES[1:]:
        if name in kind:
            given[name] = normal(*shapes[kind[name]]).to(dtype)
    return given


def of_rows(value: Tensor | None, like: np.ndarray, other: float) -> np.ndarray:
    if value is None:
        return np.full_like(like, other)
    value = value.detach().double().cpu()
    value = value[:, None] if value.ndim == 2 else value
    return np.broadcast_to(value.numpy(), like.shape)


def summed(terms: np.ndarray, like: Tensor) -> np.ndarray:
    """Over the rows that share a value of ``like``."""
    if like.ndim == 3:
        return terms.sum(tuple(i for i in (0, 1) if like.shape[i] == 1), keepdims=True)[
            : like.shape[0], : like.shape[1]
        ]
    return terms.sum((0, 1) if like.ndim == 1 else 1)


class Definition:
    """Results and gradients in float64, and how far from them float32 may be.

    The norm and all gradients are those at the rows as they were returned, rounded. A row's sum
    takes some 100 roundings; what is subtracted from a row, its mean, is as large as its values.
    """

    def __init__(self, given: dict[str, Any], total: Tensor, grads: tuple[Tensor, Tensor]) -> None:
        h = given["h"].detach().double().cpu().numpy()
        ones = {name: of_rows(given.get(name), h, 1.0) for name in ("gate", "weight")}
        zeros = {n: of_rows(given.get(n), h, 0.0) for n in ("branch", "bias", "shift", "scale")}
        added = zeros["branch"] + zeros["bias"]
        u = (96 + h.shape[2] / 16 + h.shape[1]) * 2.0**-24
        wanted = {"total": h + ones["gate"] * added}
        size = {"total": abs(h) + abs(ones["gate"]) * (abs(zeros["branch"]) + abs(zeros["bias"]))}
        size["total"] = size["total"] * 8 * 2.0**-24 / u
        x = total.detach().double().cpu().numpy()
        layer = given["norm"] == "layer"
        mean = x.mean(-1, keepdims=True) if layer else np.zeros_like(x[..., :1])
        rstd = 1 / np.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + EPS)
        z = (x - mean) * rstd
        large = abs(z) + (rstd * abs(x).mean(-1, keepdims=True) if layer else 0)
        factor = ones["weight"] * (1 + zeros["scale"])
        large_factor = abs(ones["weight"]) * (1 + abs(zeros["scale"]))
        wanted["y"] = z * factor + zeros["shift"]
        size["y"] = large * large_factor + abs(zeros["shift"])
        grad_total, grad_y = (grad.double().cpu().numpy() for grad in grads)
        d, large_d = grad_y * factor, abs(grad_y) * large_factor
        grad = d - z * (d * z).mean(-1, keepdims=True)
        large_grad = large_d + large * (large_d * large).mean(-1, keepdims=True)
        if layer:
            grad = grad - d.mean(-1, keepdims=True)
            large_grad = large_grad + large_d.mean(-1, keepdims=True)
        grad, large_grad = rstd * grad + grad_total, rstd * large_grad + abs(grad_total)
        of = {
            "h": (grad, large_grad),
            "branch": (grad * ones["gate"], large_grad * abs(ones["gate"])),
            "gate": (grad * added, large_grad * (abs(zeros["branch"]) + abs(zeros["bias"]))),
            "bias": (grad * ones["gate"], large_grad * abs(ones["gate"])),
            "weight": (grad_y * z, abs(grad_y) * large),
            "scale": (grad_y * z, abs(grad_y) * large),
            "shift": (grad_y, abs(grad_y)),
        }
        for name in NAMES:
            if given.get(name) is not None:
                wanted[name], size[name] = (summed(terms, given[name]) for terms in of[name])
        self.wanted, self.budget = wanted, {name: u * value for name, value in size.items()}

    def check(self, name: str, found: Tensor, dtype: torch.dtype) -> None:
        wanted, budget = self.wanted[name], self.budget[name]
        assert found.dtype == dtype and tuple(found.shape) == wanted.shape, name
        rounding = torch.finfo(dtype).eps / 2 * (abs(wanted) + budget)
        # float16's subnormal numbers are this far apart.
        budget = budget + rounding + torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
        excess = np.abs(found.detach().double().cpu().numpy() - wanted) / budget
        assert not excess.size or excess.max() <= 1, f"{name}: {excess.max():.2f} times the budget"


def run(given: dict[str, Any], backend: str | None) -> tuple[Any, ...]:
    """``total``, ``y``, what their gradients are and what follows from them, by name."""
    tensors = {n: v.detach().requires_grad_() for n, v in given.items() if isinstance(v, Tensor)}
    total, y = add_norm_modulate(**{**given, **tensors}, backend=backend)
    generator = torch.Generator().manual_seed(1)
    grads = tuple(
        torch.randn(out.shape, generator=generator).to(out.dtype).to(out.device)
        for out in (total, y)
    )
    if "branch" not in given:  # total is h itself
        grads = torch.zeros_like(grads[0]), grads[1]
        found = torch.autograd.grad(y, list(tensors.values()), grads[1])
    else:
        found = torch.autograd.grad((total, y), list(tensors.values()), grads)
    return total, y, grads, dict(zip(tensors, found, strict=True))


def assert_within_budget(backend: str | None, given: dict[str, Any]) -> None:
    total, y, grads, found = run(given, backend)
    definition = Definition(given, total, grads)
    definition.check("total", total, given["h"].dtype)
    definition.check("y", y, given["h"].dtype)
    for name, grad in found.items():
        definition.check(name, grad, given[name].dtype)


def on_device(given: dict[str, Any], backend: str) -> dict[str, Any]:
    device = device_of(backend)
    return {n: v.to(device) if isinstance(v, Tensor) else v for n, v in given.items()}


@BACKENDS
@pairwise(regime=REGIMES, kind=KINDS, dtype=DTYPES)
def test_equals_the_definition(backend: str, regime: tuple, kind: dict, dtype: torch.dtype) -> None:
    assert_within_budget(backend, on_device(make_inputs(regime, kind, dtype), backend))


@BACKENDS
@pytest.mark.parametrize("width", [64, 1000, 1024, 1920, 2304])
def test_widths_of_models(backend: str, width: int) -> None:
    for kind in ("var", "llamagen"):
        given = make_inputs((2, 5, width), KINDS[kind], torch.bfloat16)
        assert_within_budget(backend, on_device(given, backend))


@BACKENDS
def test_dtypes_may_differ(backend: str) -> None:
    """As autocast leaves them: a stream in float32 between products in bfloat16."""
    given = make_inputs(REGIMES["several_tiles"], KINDS["everything"], torch.bfloat16)
    given["h"] = given["h"].float() + 1e-3
    given["weight"] = given["weight"].float() + 1e-3
    given["bias"] = given["bias"].half()
    assert_within_budget(backend, on_device(given, backend))
    del given["gate"]  # the branch's gradient is that of h in another dtype
    assert_within_budget(backend, on_device(given, backend))


@BACKENDS
@pytest.mark.parametrize("kind", ["layer", "var", "head", "llamagen"])
def test_the_norm_is_of_the_returned_sum(backend: str, kind: str) -> None:
    given = make_inputs(REGIMES["several_tiles"], KINDS[kind], torch.bfloat16)
    given = on_device(given, backend)
    total, y = add_norm_modulate(**given, backend=backend)
    rest = {n: v for n, v in given.items() if n not in ("h", "branch", "gate", "bias")}
    again, of_total = add_norm_modulate(total, **rest, backend=backend)
    assert again is total and torch.equal(of_total, y)


@BACKENDS
def test_rows_and_images_do_not_depend_on_others(backend: str) -> None:
    """Nor do gradients differ between calls."""
    given = make_inputs(REGIMES["several_tiles"], KINDS["var"], torch.bfloat16)
    given = on_device(given, backend)
    total, y, _, grads = run(given, backend)
    again = run(given, backend)
    assert torch.equal(again[1], y) and all(torch.equal(again[3][n], grads[n]) for n in grads)
    for value in given.values():
        if isinstance(value, Tensor):
            value[1] = 7
    for found, before in zip(run(given, backend)[:2], (total, y), strict=True):
        assert torch.equal(found[::2], before[::2]) and not torch.equal(found[1], before[1])
    for name, grad in run(given, backend)[3].items():
        assert torch.equal(grad[::2], grads[name][::2])
        assert torch.equal(grad[1], grads[name][1]) == (name == "shift")  # a sum of y's gradient


@BACKENDS
@pytest.mark.parametrize("kind", ["var", "head", "everything"])
def test_gradients_are_of_what_is_asked_for(backend: str, kind: str) -> None:
    given = make_inputs(REGIMES["odd_width"], KINDS[kind], torch.float32)
    given = on_device(given, backend)
    _, _, grads, wanted = run(given, backend)
    for name in wanted:
        tensor = given[name].detach().requires_grad_()
        outputs = add_norm_modulate(**{**given, name: tensor}, backend=backend)
        if outputs[0].requires_grad:
            (found,) = torch.autograd.grad(outputs, tensor, grads, allow_unused=True)
        else:
            (found,) = torch.autograd.grad(outputs[1], tensor, grads[1])
        torch.testing.assert_close(found, wanted[name], rtol=1e-5, atol=1e-5)
    for i in (0, 1):  # of one result alone
        tensor = given["h"].detach().requires_grad_()
        outputs = add_norm_modulate(**{**given, "h": tensor}, backend=backend)
        (found,) = torch.autograd.grad(outputs[i], tensor, grads[i])
        zeros = [grads[0], torch.zeros_like(grads[1])] if i == 0 else [0 * grads[0], grads[1]]
        outputs = add_norm_modulate(**{**given, "h": tensor}, backend=backend)
        (both,) = torch.autograd.grad(outputs, tensor, zeros)
        torch.testing.assert_close(found, both, rtol=1e-5, atol=1e-5)


@BACKENDS
def test_strides_and_empty_inputs(backend: str) -> None:
    """Slices of one modulation, without copies; what lies beside a view is NaN."""
    given = make_inputs((2, 5, 64), KINDS["var"], torch.bfloat16)
    given = on_device(given, backend)
    wanted = run(given, backend)
    tensors = {n: v for n, v in given.items() if isinstance(v, Tensor)}

    def check(changed: dict[str, Tensor]) -> None:
        found = run({**given, **changed}, backend)
        assert torch.equal(found[0], wanted[0]) and torch.equal(found[1], wanted[1])
        for name, grad in found[3].items():
            assert torch.equal(grad.view_as(wanted[3][name]), wanted[3][name])

    views = {}
    for name, value in tensors.items():
        room = value.new_full([size + 3 for size in value.shape], torch.nan)
        inner = room[(*[slice(1, 1 + size) for size in value.shape],)]
        views[name] = inner.copy_(value)
    check(views)
    check({n: unaligned(v) for n, v in tensors.items()})
    check({n: v.mT.contiguous().mT for n, v in tensors.items()})
    rows = torch.stack([given[n] for n in ("gate", "shift", "scale")], 1)[:, None]
    check({n: rows[:, :, i] for i, n in enumerate(("gate", "shift", "scale"))})
    expanded = {"scale": given["scale"][:1].expand(2, -1)}
    once = {"scale": given["scale"][0]}
    assert torch.equal(run(given | expanded, backend)[1], run(given | once, backend)[1])
    for shape in ((0, 5, 64), (2, 0, 64)):
        images, rows_, _ = shape
        empty = {n: (v[:images, :rows_] if v.ndim == 3 else v[:images]) for n, v in tensors.items()}
        total, y, _, grads = run({**given, **empty}, backend)
        assert total.shape == y.shape == shape
        assert all(grad.shape == empty[n].shape and not grad.any() for n, grad in grads.items())


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind: str) -> None:
    given = make_inputs((2, 3, 5), KINDS[kind], torch.float64)
    tensors = {n: v.requires_grad_() for n, v in given.items() if isinstance(v, Tensor)}

    def outputs(*values: Tensor) -> tuple[Tensor, ...]:
        changed = dict(zip(tensors, values, strict=True))
        return tuple(out * 1 for out in add_norm_modulate(**{**given, **changed}))

    torch.autograd.gradcheck(outputs, tuple(tensors.values()))


@pytest.mark.parametrize("kind", ["modulated", "var", "layer", "llamagen"])
def test_equals_torch_in_float64(kind: str) -> None:
    given = make_inputs(REGIMES["odd_width"], KINDS[kind], torch.float64)
    total, y = add_norm_modulate(**given)
    h = given["h"]
    if "branch" in given:
        h = h + given["branch"] * (given["gate"][:, None] if "gate" in given else 1)
    norm = F.layer_norm if given["norm"] == "layer" else F.rms_norm
    wanted = norm(h, h.shape[-1:], given.get("weight"), eps=EPS)
    if "scale" in given:
        wanted = wanted * (1 + given["scale"][:, None])
    if "shift" in given:
        shift = given["shift"]
        wanted = wanted + (shift[:, None] if shift.ndim == 2 else shift)
    torch.testing.assert_close(total, h, rtol=1e-14, atol=0)
    torch.testing.assert_close(y, wanted, rtol=1e-12, atol=1e-12)


@BACKENDS
@pytest.mark.parametrize("kind", ["norm", "var", "everything"])
def test_opcheck(backend: str, kind: str) -> None:
    given = on_device(make_inputs(REGIMES["odd_width"], KINDS[kind], torch.float32), backend)
    tensors = [given[n].requires_grad_() if n in given else None for n in NAMES[:4]]
    tensors += [given.get("weight", given.get("scale")), given.get("shift")]
    tensors[4:] = [t if t is None or t.ndim != 1 else t[None] for t in tensors[4:]]
    for i in (2, 4, 5):
        t = tensors[i]
        if t is not None:
            t = t.detach()
            tensors[i] = (t if t.ndim == 3 else t.view(-1, 1, t.shape[-1])).requires_grad_()
    operator = torch.ops.dd2_fast.add_norm_modulate.default
    torch.library.opcheck(operator, (*tensors, "scale" in given, True, EPS, backend))


@BACKENDS
@COMPILERS
def test_compiles_without_graph_breaks(backend: str, compiler: str) -> None:
    given = on_device(make_inputs(REGIMES["odd_width"], KINDS["var"], torch.float32), backend)
    h = given.pop("h")

    def both(h: Tensor, name: str | None) -> Tensor:
        total, y = add_norm_modulate(h + 1, **given, backend=name)
        return total * y

    compiled = torch.compile(both, fullgraph=True, backend=compiler)
    for name in (backend, None):
        leaf = h.clone().requires_grad_()
        found, wanted = compiled(leaf, name), both(leaf, backend)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
        grads = [torch.autograd.grad(out.sum(), leaf)[0] for out in (found, wanted)]
        torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-3)


def test_compiled_code_has_the_operations_to_fuse() -> None:
    """And is compiled once."""
    given = make_inputs(REGIMES["odd_width"], KINDS["var"], torch.float32)
    graphs = []

    def look(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(str(graph.code))
        return graph

    for backend, opaque in ((None, False), ("torch", True)):
        torch.compiler.reset()
        graphs.clear()
        compiled = torch.compile(add_norm_modulate, fullgraph=True, backend=look)
        compiled(**given, backend=backend)
        assert len(graphs) == 1 and ("dd2_fast" in graphs[0]) == opaque
        assert ("rsqrt" in graphs[0]) != opaque
    torch.compiler.reset()
    counter = CompileCounter()
    compiled = torch.compile(add_norm_modulate, fullgraph=True, backend=counter, dynamic=False)
    for _ in range(3):
        compiled(**given)
    assert counter.frame_count == 1


@pytest.mark.parametrize("backend", runnable_backends(("triton",)))
def test_wider_rows_are_refused(backend: str) -> None:
    h = torch.zeros(1, 2, 16385, device=device_of(backend))
    with pytest.raises(RuntimeError, match="'triton' cannot run .*at most 16384.*D = 16385"):
        add_norm_modulate(h, eps=EPS, backend=backend)


@BACKENDS
def test_it_is_differentiable_once(backend: str) -> None:
    h = torch.randn(1, 2, 8, device=device_of(backend))

    def y(h: Tensor) -> Tensor:
        return add_norm_modulate(h, eps=EPS, backend=backend)[1]

    assert_once_differentiable("add_norm_modulate", y, h)


def test_the_callers_autocast_changes_nothing() -> None:
    given = make_inputs(REGIMES["odd_width"], KINDS["var"], torch.float32)
    with default_backend("torch"):
        wanted = add_norm_modulate(**given)
        with torch.autocast("cpu", torch.bfloat16):
            found = add_norm_modulate(**given)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_constants_from_inference_mode() -> None:
    given = make_inputs(REGIMES["odd_width"], KINDS["var"], torch.float32)
    wanted = run(given, "torch")[3]["h"]
    with torch.inference_mode():
        constants = {n: v.clone() for n, v in given.items() if isinstance(v, Tensor) and n != "h"}
    h = given["h"].requires_grad_()
    outputs = add_norm_modulate(**{**given, **constants}, backend="torch")
    grads = run(given, "torch")[2]
    assert torch.equal(torch.autograd.grad(outputs, h, grads)[0], wanted)


def test_meta_tensors_give_shapes() -> None:
    given = make_inputs(REGIMES["odd_width"], KINDS["var"], torch.bfloat16)
    moved = {n: v.to("meta") if isinstance(v, Tensor) else v for n, v in given.items()}
    for found, wanted in zip(add_norm_modulate(**moved), add_norm_modulate(**given), strict=True):
        assert found.is_meta and (found.shape, found.dtype) == (wanted.shape, wanted.dtype)


def test_released_storage_is_an_error() -> None:
    given = make_inputs(REGIMES["odd_width"], KINDS["var"], torch.float32)
    y = add_norm_modulate(**given | {"h": given["h"].requires_grad_()})[1]
    given["scale"].untyped_storage().resize_(0)
    for call in (lambda: add_norm_modulate(**given), lambda: y.sum().backward()):
        with pytest.raises(ValueError, match="^scale: expected .*storage has been released"):
            call()


H = torch.zeros(2, 3, 6)
BAD = {
    "h type": ({"h": [0.0]}, TypeError, "h: expected a torch.Tensor, got list"),
    "h dtype": ({"h": H.long()}, TypeError, "h: .*got int64"),
    "h shape": ({"h": H[0]}, ValueError, r"h: expected shape \[B, n, D\].*got \[3, 6\]"),
    "no width": ({"h": H[..., :0]}, ValueError, "h: .*D >= 1"),
    "branch shape": ({"branch": H[:, :2]}, ValueError, r"branch: .*\[2, 3, 6\].*got \[2, 2, 6\]"),
    "branch type": ({"branch": 1.0}, TypeError, "branch: expected a torch.Tensor, got float"),
    "gate alone": ({"gate": H[0, 0]}, ValueError, "gate: expected None without a branch"),
    "bias alone": ({"bias": H[0, 0]}, ValueError, "bias: expected None without a branch"),
    "bias shape": ({"branch": H, "bias": H[:, 0]}, ValueError, r"bias: .*\[6\].*got \[2, 6\]"),
    "gate shape": ({"branch": H, "gate": H[:, :2]}, ValueError, r"gate: .*n = 3.*got \[2, 2, 6\]"),
    "scale rows": ({"scale": torch.zeros(3, 6)}, ValueError, r"scale: .*B = 2.*got \[3, 1, 6\]"),
    "shift width": ({"shift": torch.zeros(5)}, ValueError, r"shift: .*D = 6.*got \[1, 1, 5\]"),
    "shift number": ({"shift": torch.zeros(())}, ValueError, r"shift: .*got \[\]"),
    "weight dtype": ({"weight": H[0, 0].int()}, TypeError, "weight: .*got int32"),
    "both": ({"weight": H[0, 0], "scale": H[0, 0]}, ValueError, "scale: .*None beside a weight"),
    "device": ({"shift": H[0, 0].to("meta")}, ValueError, "shift: expected device cpu"),
    "norm": ({"norm": "batch"}, ValueError, "norm: expected one of 'layer', 'rms', got 'batch'"),
    "eps sign": ({"eps": 0.0}, ValueError, "eps: expected a positive number, got 0"),
    "eps type": ({"eps": "1"}, TypeError, "eps: expected a number, got str"),
    "backend": ({"backend": "metal"}, ValueError, "backend.*'torch', got 'metal'"),
    "no kernel": ({"backend": "cpu"}, RuntimeError, "no 'cpu' backend"),
}


@pytest.mark.parametrize("change,error,message", BAD.values(), ids=BAD.keys())
def test_bad_input(change: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        add_norm_modulate(**{"h": H, "eps": EPS, **change})
