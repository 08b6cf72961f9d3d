"""One small valid call of every operator, for tests of what all of them share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dd2_fast.ops import (
    block_causal_attention,
    conditional_score,
    csd_loss,
    flow_solve,
    group_norm_silu,
    linear_conditional_score,
    logit_distillation_loss,
    nearest_code,
    registry,
    sample_code,
)
from dd2_fast.ops.philox import image_normal

ROWS, DRAWS, VOCABULARY, DIM, WIDTH = 5, 2, 60, 6, 7


def _normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(seed + sum(shape))
    options = {"generator": generator, "dtype": torch.float32, "device": "cpu"}
    return torch.randn(*shape, **options)


def arguments(op: str) -> dict[str, Any]:
    """By name; every tensor argument that the operator has is given."""
    codebook, x_t = _normal(VOCABULARY, DIM), _normal(ROWS, DRAWS, DIM)
    t = torch.linspace(0.3, 1, ROWS * DRAWS, device="cpu", dtype=torch.float32)
    teacher = {
        "logits": _normal(ROWS, VOCABULARY, seed=1),
        "uncond_logits": _normal(ROWS, VOCABULARY, seed=2),
        "guidance_scale": 1 + _normal(ROWS).abs(),
        "top_k": 20,
        "top_p": 0.9,
    }
    tokens = {"x_t": x_t, "t": t.reshape(ROWS, DRAWS), "codebook": codebook, **teacher}
    index = torch.arange(ROWS, device="cpu")
    if op == "block_causal_attention":
        tensors = {"qkv": _normal(2, ROWS, 3, 2, DIM), "gain": 1 + _normal(2).abs()}
        angles = _normal(ROWS, DIM // 2)
        tensors["rotary"] = torch.stack([angles.cos(), angles.sin()], -1)
        return {**tensors, "ends": (1, ROWS), "strict": True}
    if op == "conditional_score":
        return tokens
    if op == "csd_loss":
        weight = 1 + _normal(ROWS, DRAWS).abs()
        fake = _normal(ROWS, DRAWS, DIM, seed=3)
        return {"x": _normal(ROWS, DIM), "fake_x0": fake, "weight": weight, **tokens}
    if op == "flow_solve":
        return {"noise": x_t, "codebook": codebook, "steps": 3, **teacher}
    if op == "group_norm_silu":
        vectors = {name: _normal(DIM, seed=i) for i, name in enumerate(("weight", "bias"))}
        maps = {"x": x_t.mT.contiguous(), "residual": _normal(ROWS, DIM, DRAWS, seed=6)}
        return {**maps, **vectors, "pre_bias": _normal(DIM, seed=5), "groups": 3, "eps": 1e-6}
    if op == "linear_conditional_score":
        del tokens["logits"], tokens["uncond_logits"]
        hidden, uncond = _normal(ROWS, WIDTH), _normal(ROWS, WIDTH, seed=4)
        head = {"weight": _normal(VOCABULARY, WIDTH), "bias": _normal(VOCABULARY)}
        return {"hidden": hidden, "uncond_hidden": uncond, **head, **tokens}
    if op == "logit_distillation_loss":
        teacher["teacher_logits"] = teacher.pop("logits")
        return {"logits": _normal(ROWS, VOCABULARY, seed=3), **teacher}
    if op == "nearest_code":
        return {"x": x_t, "codebook": codebook}
    if op == "sample_code":
        seed = torch.full((), 3, dtype=torch.int64, device="cpu")
        return {"seed": seed, "index": index, **teacher}
    return {"seed": index + 3, "indices": index, "shape": (3, 5), "stream": 1}


def _result(function: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., Tensor]:
    """The last of what a function returns."""

    @functools.wraps(function)
    def call(*given: Any, **named: Any) -> Tensor:
        return function(*given, **named)[-1]

    return call


FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "block_causal_attention": block_causal_attention,
    "conditional_score": conditional_score,
    "csd_loss": csd_loss,
    "flow_solve": flow_solve,
    "group_norm_silu": _result(group_norm_silu),
    "image_normal": image_normal,
    "linear_conditional_score": linear_conditional_score,
    "logit_distillation_loss": logit_distillation_loss,
    "nearest_code": nearest_code,
    "sample_code": sample_code,
}
DIFFERENTIABLE = {
    "conditional_score": ("x_t",),
    "csd_loss": ("x", "x_t", "fake_x0"),
    "linear_conditional_score": ("x_t",),
    "logit_distillation_loss": ("logits",),
}


def backed(backends: Sequence[str]) -> list[tuple[str, str]]:
    """Every operator with each of the backends that it has."""
    return [(op, name) for op in FUNCTIONS for name in backends if registry._exists(op, name)]


TENSORS = [
    (op, name)
    for op in FUNCTIONS
    for name, value in arguments(op).items()
    if isinstance(value, Tensor)
]
