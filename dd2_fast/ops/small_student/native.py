"""Arguments of the compiled kernel from tensors."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import structs
from ..native import Launch, address
from ..small_network import SmallTransformer


class SmallStudentParams(ctypes.Structure):
    """``dd2::SmallStudentParams``."""

    _fields_ = [
        ("student", SmallTransformer),
        ("teacher", SmallTransformer),
        *structs.fields("codebook decoder noise indices labels tokens pixels", ctypes.c_void_p),
        *structs.fields("seed images vocabulary flow_steps passes top_k", ctypes.c_longlong),
        *structs.fields("top_p scale temperature", ctypes.c_float),
        ("decoder_width", ctypes.c_int),
    ]


def params(
    tokens: int,
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
) -> SmallStudentParams:
    """What does not differ between calls; arguments as in :mod:`.reference`, which are to be kept.

    Args:
        tokens: n. codebook: contiguous.
    """

    def network(weights: Tensor | None, sizes: Sequence[int]) -> SmallTransformer:
        if weights is None:
            return SmallTransformer(tokens=tokens, dim=codebook.shape[1])
        classes, width, layers, heads = sizes
        return SmallTransformer(
            weights.data_ptr(), classes, tokens, codebook.shape[1], width, layers, heads
        )

    return SmallStudentParams(
        network(student, student_sizes),
        network(teacher, teacher_sizes),
        codebook=codebook.data_ptr(),
        decoder=address(decoder),
        vocabulary=len(codebook),
        flow_steps=flow_steps,
        passes=passes,
        top_k=top_k,
        top_p=top_p,
        scale=scale,
        temperature=temperature,
        decoder_width=decoder_width,
    )


def run(
    launch: Launch,
    noise: Tensor,
    labels: Tensor,
    tokens: Tensor | None,
    student: Tensor | None,
    student_sizes: Sequence[int],
    teacher: Tensor | None,
    teacher_sizes: Sequence[int],
    codebook: Tensor,
    decoder: Tensor | None,
    *settings: Any,
) -> tuple[Tensor, Tensor]:
    """Codes and images by ``launch(params)``; arguments as in :mod:`.reference`."""
    batch, length, _ = noise.shape
    noise, labels, codebook = noise.contiguous(), labels.contiguous(), codebook.contiguous()
    constant = params(
        length, student, student_sizes, teacher, teacher_sizes, codebook, decoder, *settings
    )
    constant.noise = noise.data_ptr()
    if tokens is None:
        out = labels.new_empty(batch, length)
    else:
        out = tokens.clone(memory_format=torch.contiguous_format)
    side = 0 if decoder is None else 2 * math.isqrt(length)
    pixels = noise.new_empty(batch, 3, side, side)
    draw(launch, constant, labels, out, pixels)
    return out, pixels


def draw(
    launch: Launch, constant: SmallStudentParams, labels: Tensor, tokens: Tensor, pixels: Tensor
) -> None:
    """Fill ``tokens`` and, where there is a decoder, ``pixels``."""
    constant.labels, constant.images = labels.data_ptr(), len(labels)
    constant.tokens, constant.pixels = tokens.data_ptr(), pixels.data_ptr()
    launch(constant)


class DrawnCodes:
    """The kernel with its weights, from seed to codes and images, as
    :class:`..small_generator.native.Drawn`.

    Args:
        launch: of the weights' device. tokens: n. Others, of which ``decoder`` None stands for
            codes alone, are those of :func:`params`, and are kept.
    """

    def __init__(
        self,
        launch: Launch,
        tokens: int,
        student: Tensor | None,
        student_sizes: Sequence[int],
        teacher: Tensor | None,
        teacher_sizes: Sequence[int],
        codebook: Tensor,
        decoder: Tensor | None,
        *settings: Any,
    ) -> None:
        side = 0 if decoder is None else 2 * math.isqrt(tokens)
        self._shapes = (tokens,), (3, side, side)
        self._launch, self._kept = launch, (student, teacher, codebook, decoder)
        self._constant = params(
            tokens, student, student_sizes, teacher, teacher_sizes, codebook, decoder, *settings
        )

    def __call__(
        self,
        seed: int,
        indices: Tensor,
        labels: Tensor,
        tokens: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Codes and images of int64 ``indices [B]`` and ``labels [B]`` under a seed.

        Args:
            tokens: int64 ``[B, n]``, contiguous, to start from without a student; they are replaced
                by what is returned. noise: float32 ``[B, n, C]``, where it is not the seed's.
        """
        indices, labels = indices.contiguous(), labels.contiguous()
        count, device = labels.shape[0], labels.device
        of_codes, of_images = self._shapes
        if tokens is None:
            tokens = torch.empty((count, *of_codes), dtype=torch.int64, device=device)
        pixels = torch.empty((count, *of_images), dtype=torch.float32, device=device)
        own = SmallStudentParams.from_buffer_copy(self._constant)
        own.indices, own.seed = indices.data_ptr(), seed
        own.noise = address(noise)
        draw(self._launch, own, labels, tokens, pixels)
        return tokens, pixels
