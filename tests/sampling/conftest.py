"""A small model with random weights, so that sampling is tested apart from training."""

from __future__ import annotations

import pytest
import torch

from dd2_fast.models import ARTeacher, DD2Generator, VQTokenizer


@pytest.fixture
def generator() -> DD2Generator:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = VQTokenizer(vocabulary=16, dimension=4, width=8)
        tokenizer.set_raw_codebook(torch.randn(16, 4))
        teacher = ARTeacher(
            num_tokens=16,
            vocabulary=16,
            dimension=4,
            num_classes=10,
            width=16,
            layers=2,
            heads=2,
            codebook=tokenizer.codebook,
        )
        model = DD2Generator.from_teacher(teacher, head_width=16)
        for network in (model, teacher):
            for parameter in network.parameters():
                torch.nn.init.normal_(parameter, std=0.2)
    model.tokenizer, model.teacher = tokenizer, teacher
    return model.eval()
