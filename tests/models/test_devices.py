"""A tensor on another device than the model's is named before torch fails somewhere inside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from parity import llamagen_models, var_models

from dd2_fast.models import DD2Generator

FAMILIES = {
    "var": (var_models.teacher, var_models.student),
    "llamagen": (llamagen_models.make_teacher, llamagen_models.make_student),
}


def refused(name: str, call: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected a tensor on cpu, the model's device"):
        call()


@pytest.mark.parametrize("family", FAMILIES)
def test_inputs_on_another_device(family: str) -> None:
    make_teacher, make_student = FAMILIES[family]
    teacher, student = make_teacher(), make_student()
    n, dimension = teacher.num_tokens, teacher.dimension
    labels, tokens = torch.tensor([1]), torch.zeros(1, n, dtype=torch.int64)
    noise, away = torch.zeros(1, n, dimension), torch.device("meta")
    refused("labels", lambda: teacher.sample(labels.to(away), cfg=1.5))
    refused("labels", lambda: teacher.logits(tokens, labels.to(away)))
    refused("tokens", lambda: teacher.logits(tokens.to(away), labels))
    refused("embeddings", lambda: teacher.logits(noise.to(away), labels))
    refused("noise", lambda: student(noise.to(away), labels))
    refused("labels", lambda: student(noise, labels.to(away)))
    refused("tokens", lambda: teacher.tokenizer.embed(tokens.to(away)))
    refused("embeddings", lambda: teacher.tokenizer.decode(noise.to(away)))


def test_inputs_of_our_generator_on_another_device() -> None:
    generator = DD2Generator.from_teacher(var_models.teacher(), head_width=8, head_depth=1)
    noise, labels = torch.zeros(1, generator.num_tokens, 8), torch.tensor([1])
    refused("noise", lambda: generator(noise.to("meta"), labels))
    refused("labels", lambda: generator(noise, labels.to("meta")))
