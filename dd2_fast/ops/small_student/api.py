"""``small_student``: validation."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import checks, teacher_checks
from ..small_network import MOST_TOKENS, PANEL, WIDEST, GeneratorSizes, TeacherSizes
from . import schema as schema

_small_student = torch.ops.dd2_fast.small_student.default


def small_student(
    noise: Tensor,
    labels: Tensor,
    codebook: Tensor,
    *,
    tokens: Tensor | None = None,
    student: Tensor | None = None,
    student_sizes: TeacherSizes | None = None,
    temperature: float = 1.0,
    teacher: Tensor | None = None,
    teacher_sizes: TeacherSizes | None = None,
    passes: int = 0,
    guidance_scale: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    flow_steps: int = 20,
    decoder: Tensor | None = None,
    decoder_width: int = 0,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Codes [B, n] of noise and images [B, 3, H, W] in [0, 1] of those, in one call: a small logit
    student's pass, then passes of its teacher over all tokens at once, then the decoder.

    ``reference.py`` has the formulas. Results are constants.

    Args:
        noise: [B, n, C]. codebook: [V, C] in its dtype.
        labels: int64 [B], in 0..classes-2, which is not checked; classes-1 is the null class.
        tokens: int64 [B, n] below V, which is not checked, to start the passes from; in place of a
            student.
        student, teacher: of backbone and classifier, packed. student_sizes, teacher_sizes: theirs.
        temperature: what the student's logits are divided by.
        passes: of the teacher; they end early where a pass changes nothing.
        guidance_scale, top_k, top_p: of the passes, as of `flow_solve`.
        flow_steps: Heun steps of every flow.
        decoder: packed. None: images are [B, 3, 0, 0]. decoder_width: its channels.
        backend: a name in `available_backends`, or None for the fastest that can run.

    Where logits or noise are not finite a code is -1 and an image NaN; passes leave an image whose
    student's codes have -1 as it is. Raises TypeError or ValueError for arguments that do not fit
    one another, or sizes over the kernels' limits.
    """
    checks.check_tensor("noise", noise)
    if noise.ndim != 3 or not 0 < noise.shape[1] <= MOST_TOKENS or not 0 < noise.shape[2] <= WIDEST:
        raise ValueError(
            f"noise: expected shape [B, n, C] with n in 1..{MOST_TOKENS} and C in 1..{WIDEST}, "
            f"got {list(noise.shape)}"
        )
    batch, length, dim = noise.shape
    checks.check_tensor("labels", labels, (torch.int64,))
    checks.check_shape("labels", labels, (batch,), "[B], that of noise")
    checks.check_tensor("codebook", codebook, (noise.dtype,))
    if codebook.ndim != 2 or codebook.shape[0] < 1 or codebook.shape[1] != dim:
        raise ValueError(f"codebook: expected shape [V, {dim}], got {list(codebook.shape)}")
    checks.check_same_device("noise", noise, labels=labels, codebook=codebook)
    if (tokens is None) == (student is None):
        raise ValueError("tokens: expected either tokens or a student, got both or neither")
    if tokens is not None:
        checks.check_tensor("tokens", tokens, (torch.int64,))
        checks.check_shape("tokens", tokens, (batch, length), "[B, n], that of noise")
        checks.check_same_device("noise", noise, tokens=tokens)
    flow_steps = checks.check_count("flow_steps", flow_steps)
    if passes < 0:
        raise ValueError(f"passes: expected at least 0, got {passes}")
    if passes and teacher is None:
        raise ValueError(f"passes: expected 0 without a teacher, got {passes}")
    for name, weights, sizes in (
        ("student", student, student_sizes),
        ("teacher", teacher, teacher_sizes),
    ):
        if weights is not None:
            _check_network(name, weights, sizes, noise, len(codebook))
    if decoder is not None:
        if decoder_width % PANEL or not 0 < decoder_width <= WIDEST:
            raise ValueError(
                f"decoder_width: expected a multiple of {PANEL} up to {WIDEST}, got {decoder_width}"
            )
        if math.isqrt(length) ** 2 != length:
            raise ValueError(f"noise: expected a square number of tokens to decode, got {length}")
        size = GeneratorSizes(decoder_width=decoder_width).decoder_length(dim)
        _check_array("decoder", decoder, noise, size)
    temperature = checks.check_number("temperature", temperature)
    if not temperature > 0:
        raise ValueError(f"temperature: expected a positive number, got {temperature}")
    top_k, top_p = teacher_checks.check_filters(top_k, top_p)
    return _small_student(
        noise, labels, tokens, student, student_sizes or [], teacher, teacher_sizes or [], codebook,
        decoder, decoder_width, temperature, flow_steps, passes,
        checks.check_number("guidance_scale", guidance_scale), top_k, top_p,
        checks.check_backend(backend),
    )  # fmt: skip


def _check_network(
    name: str, weights: Tensor, sizes: TeacherSizes | None, noise: Tensor, vocabulary: int
) -> None:
    if sizes is None:
        raise ValueError(f"{name}_sizes: expected those of the weights, got None")
    width, heads = sizes.width, sizes.heads
    if not 0 < width <= WIDEST or heads < 1 or width % (heads * PANEL):
        raise ValueError(
            f"{name}_sizes: expected a width up to {WIDEST}, a multiple of {PANEL} for each head, "
            f"got {width} for {heads} heads"
        )
    _check_array(name, weights, noise, sizes.length(noise.shape[1], noise.shape[2], vocabulary))


def _check_array(name: str, array: Tensor, noise: Tensor, length: int) -> None:
    checks.check_tensor(name, array, (noise.dtype,))
    checks.check_same_device("noise", noise, **{name: array})
    checks.check_shape(name, array, (length,), "as sizes say")
