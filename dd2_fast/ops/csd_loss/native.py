"""The CSD loss as the epilogue of the compiled conditional score: ``cpu``, ``cuda``, ``cupy``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..conditional_score.native import CsdLossParams, call
from ..native import Launch, address


def run(
    launch: Launch,
    x: Tensor,
    fake_x0: Tensor,
    weight: Tensor | None,
    weight_power: float,
    objective: str,
    alpha: float,
    wants_x_t: bool,
    x_t: Tensor,
    *posterior: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss and gradients as in :mod:`.reference`, from one ``launch(params)``."""
    x, fake_x0 = x.contiguous(), fake_x0.contiguous()
    weight = None if weight is None else weight.contiguous()
    sid = objective == "sid"
    loss = x_t.new_empty(x_t.shape[:-1])
    grad_x = torch.empty_like(fake_x0)
    grad_fake = torch.empty_like(fake_x0) if sid else x_t.new_empty(0)
    grad_x_t = torch.empty_like(fake_x0) if sid and wants_x_t else x_t.new_empty(0)
    direction = fake_x0 - x[:, None] if grad_x_t.numel() and alpha == 1 else None
    csd = CsdLossParams(
        x=x.data_ptr(),
        fake=fake_x0.data_ptr(),
        weight=address(weight),
        loss=loss.data_ptr(),
        grad_x=grad_x.data_ptr(),
        grad_fake=grad_fake.data_ptr(),
        grad_x_t=grad_x_t.data_ptr(),
        alpha=alpha,
        dmd=not sid,
        weight_power=weight_power,
    )
    call(launch, {"csd": csd}, direction, x_t, *posterior)
    return loss, grad_x, grad_fake, grad_x_t
