"""A small logit student in plain torch over its packed weights: the specification of every backend.

``q_i = flow_solve(eps_i, l_i / T)`` with ``l_i = Linear(LN(h_i))``, where ``h`` are the blocks of
:mod:`..small_generator` over the class and the noise of the tokens before ``i``. A pass of the
teacher is ``q_i <- flow_solve(eps_i, l'_i)``, where ``l'`` are the guided and filtered logits of
its own network over the codes ``q`` of the tokens before. Images are those of the codes ``q``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..flow_solve.reference import flow_solve
from ..small_generator.reference import small_generator
from ..small_network import GeneratorSizes, Reader, TeacherSizes, blocks, normalize, start


def small_student(
    noise: Tensor,
    labels: Tensor,
    tokens: Tensor | None,
    student: Tensor | None,
    student_sizes: Sequence[int],
    teacher: Tensor | None,
    teacher_sizes: Sequence[int],
    codebook: Tensor,
    decoder: Tensor | None,
    decoder_width: int,
    temperature: float,
    flow_steps: int,
    passes: int,
    scale: float,
    top_k: int,
    top_p: float,
) -> tuple[Tensor, Tensor]:
    """Codes ``[B, n]`` and images ``[B, 3, H, W]`` of ``noise [B, n, C]``.

    Args:
        labels: int64 ``[B]``. tokens: int64 ``[B, n]``, from which the passes start; None with a
            student. student, teacher, decoder: packed weights, or None.
        student_sizes, teacher_sizes: :class:`.TeacherSizes`. codebook: ``[V, C]``.
        temperature: of the student. flow_steps: of both. passes: of the teacher, with guidance of a
            scale, 1 for none, and filters.
    """

    def solved(
        cond: Tensor, uncond: Tensor | None, scale: float, top_k: int, top_p: float
    ) -> Tensor:
        scales = noise.new_full((cond.shape[0] * cond.shape[1],), scale)
        rows = cond.flatten(0, 1), None if uncond is None else uncond.flatten(0, 1)
        drawn = flow_solve(
            noise.flatten(0, 1)[:, None], *rows, scales, codebook, flow_steps, "heun", top_k, top_p
        )  # fmt: skip
        return drawn[:, 0].view(cond.shape[:2])

    good = torch.ones_like(labels, dtype=torch.bool)
    if student is not None:
        logits = _logits(noise, labels, student, student_sizes, len(codebook))
        tokens = solved(logits / temperature, None, 1.0, 0, 1.0)
        good = (tokens >= 0).all(-1)
    assert tokens is not None
    for _ in range(passes):
        assert teacher is not None
        read = codebook[tokens.clamp(min=0)]
        null = torch.full_like(labels, teacher_sizes[0] - 1)
        both = [
            _logits(read, of, teacher, teacher_sizes, len(codebook))
            for of in ([labels, null] if scale != 1 else [labels])
        ]
        after = solved(both[0], both[1] if scale != 1 else None, scale, top_k, top_p)
        tokens = after.where(good[:, None], tokens)
    codes = codebook[tokens.clamp(min=0)].where((tokens >= 0)[..., None], torch.nan)
    sizes = GeneratorSizes(decoder_width=decoder_width)
    images = small_generator(codes, None, None, decoder, sizes)[1]
    return tokens.clone(), images.contiguous()


def _logits(
    read: Tensor, labels: Tensor, weights: Tensor, sizes: Sequence[int], vocabulary: int
) -> Tensor:
    """Logits ``[B, n, V]`` after ``read [B, n, C]``, of which the last is not read."""
    of, reader = TeacherSizes(*sizes), Reader(weights)
    h = start(reader, read[:, :-1], labels, of.classes, of.width, read.shape[1])
    return reader.apply(normalize(blocks(reader, h, of.layers, of.heads)), vocabulary)
