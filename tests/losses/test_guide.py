"""The guide's loop for a teacher of one's own, run for a few steps with one that has no more than
it asks for."""

from __future__ import annotations

import pytest
import torch
from snippets import snippet
from torch import Tensor, nn

import dd2_fast


class Recurrent(nn.Module):
    def __init__(self, vocabulary: int, dimension: int, classes: int) -> None:
        super().__init__()
        self.register_buffer("codebook", torch.randn(vocabulary, dimension))
        self.num_classes = classes
        self.start = nn.Embedding(classes + 1, dimension)
        self.cell = nn.GRU(dimension, 16, batch_first=True)
        self.head = nn.Linear(16, vocabulary)

    def logits(self, tokens_or_embeddings: Tensor, labels: Tensor) -> Tensor:
        x = tokens_or_embeddings
        x = x if x.is_floating_point() else self.codebook[x]
        read = torch.cat([self.start(labels)[:, None], x[:, :-1]], dim=1)
        return 4 * self.head(self.cell(read)[0])

    def guidance_scale(self, cfg: float | None) -> float:
        return 1.0


class Tokenizer(nn.Module):
    def __init__(self, codebook: Tensor) -> None:
        super().__init__()
        self.register_buffer("codebook", codebook)

    def decode(self, embeddings: Tensor) -> Tensor:
        return embeddings.sigmoid().view(-1, 1, 2, 4).expand(-1, 3, -1, -1)


@pytest.mark.slow
def test_the_guides_loop_distils_a_teacher() -> None:
    """The loss of stage 1 falls, and CSD pulls the tokens to the codes."""
    teacher = Recurrent(8, 4, 3)
    losses: list[float] = []

    def record(loss: Tensor) -> Tensor:
        losses.append(float(loss.detach().mean()))
        return loss

    def samples(batch: int) -> tuple[Tensor, Tensor]:
        return torch.randint(8, (batch, 2)), torch.randint(3, (batch,))

    code = snippet("dd2_fast/losses/README.md", "teacher")
    code = code.replace("adam.zero_grad()", "record(loss), adam.zero_grad()")
    variables = {"teacher": teacher, "teacher_samples": samples, "record": record, "batch": 64,
                 "n": 2, "C": 4, "K": 3, "stage1_steps": 60, "stage2_steps": 60}  # fmt: skip
    exec(code, variables)
    assert len(losses) == 60 + 2 * 60
    assert sum(losses[50:60]) < 0.5 * sum(losses[:10])
    generator = variables["generator"].requires_grad_(False)
    start = dd2_fast.models.DD2Generator(**generator.config)
    noise, labels = torch.randn(500, 2, 4), torch.randint(3, (500,))

    def distance(network: nn.Module) -> Tensor:
        x = network(noise, labels)
        return (x - teacher.codebook[dd2_fast.ops.nearest_code(x, teacher.codebook)]).norm(dim=-1)

    assert distance(generator).mean() < 0.7 * distance(start.requires_grad_(False)).mean()
    generator.tokenizer = Tokenizer(teacher.codebook)
    assert dd2_fast.Sampler(generator)([0, 2]).shape == (2, 3, 2, 4)
