"""Small generators and students, a teacher's passes and the decoder by one kernel, where it covers
them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..models import ARTeacher, DD2Generator, LogitStudent
from ..models.causal.tokenizer import VQTokenizer
from ..models.causal.transformer import CausalTransformer
from ..models.small import Packed, packed_decoder, packed_generator, packed_student
from ..ops import nearest_code, registry
from ..ops.small_generator.native import Drawn
from ..ops.small_student.native import DrawnCodes
from .jacobi import FLOW_STEPS
from .noise import image_noise


class AtOnce:
    """A generator and its tokenizer's decoder by ``small_generator``'s kernel, noise included.

    None is drawn where the kernel does not cover the networks as they are: of another kind or
    size, not in float32, with hooks, or where nothing is compiled.
    """

    def __init__(self, generator: Any, tokenizer: Any) -> None:
        self._generator, self._tokenizer = generator, tokenizer
        self._covered = (
            type(generator) is DD2Generator
            and type(generator.backbone) is CausalTransformer
            and type(tokenizer) is VQTokenizer
        )
        self._draws: dict[tuple[str, bool], tuple[Packed, Packed | None, Drawn]] = {}

    def finished(
        self, seed: int | Tensor, indices: Tensor, labels: Tensor, output: str
    ) -> Tensor | None:
        """What a sampler's output is made of: embeddings for "latent", else images."""
        if output == "tokens":
            return None
        return self.draw(seed, indices, labels, images=output != "latent")

    def draw(
        self, seed: int | Tensor, indices: Tensor, labels: Tensor, images: bool = False
    ) -> Tensor | None:
        """Embeddings ``[B, n, C]``, or images ``[B, 3, H, W]``, of noise under a seed, or under
        int64 seeds ``[B]``."""
        if not self._covered:
            return None
        key = registry.named(), images
        kept = self._draws.get(key)
        if kept is not None:
            generator, decoder, draw = kept
            if generator.usable() and (decoder is None or decoder.usable()):
                return self._of_noise(draw, seed, indices, labels)
        made = self._make(images)
        if made is None:
            return None
        self._draws[key] = made
        return self._of_noise(made[2], seed, indices, labels)

    def _of_noise(self, draw: Drawn, seed: int | Tensor, indices: Tensor, labels: Tensor) -> Tensor:
        if not isinstance(seed, Tensor):
            return draw(seed, indices, labels)
        return draw(0, indices, labels, _noise(seed, indices, self._tokenizer, self._generator))

    def _make(self, images: bool) -> tuple[Packed, Packed | None, Drawn] | None:
        if not self._runs() or "forward" in self._generator.__dict__:
            return None
        packed, decoder = packed_generator(self._generator), None
        if packed is None:
            return None
        if images:
            decoder = packed_decoder(self._tokenizer)
            if decoder is None:
                return None
        return packed, decoder, self._drawn(packed, decoder)

    def _drawn(self, packed: Packed, decoder: Packed | None) -> Drawn:
        codebook = self._tokenizer.codebook
        shape = self._generator.num_tokens, codebook.shape[1]
        weights = None if decoder is None else decoder.weights
        sizes = packed.sizes
        if decoder is not None:
            sizes = sizes._replace(decoder_width=decoder.sizes.decoder_width)
        module = registry.resolve("small_generator", "", codebook.device, codebook.dtype)
        return Drawn(module.launcher(codebook.device), packed.weights, weights, sizes, *shape)

    def _runs(self) -> bool:
        if not self._covered or "decode" in self._tokenizer.__dict__:
            return False
        codebook = self._tokenizer.codebook
        return codebook.dtype == torch.float32 and registry.has_kernel(
            "small_generator", codebook.device, codebook.dtype
        )


class CodesAtOnce:
    """As :class:`AtOnce` what makes codes, with its tokenizer's decoder, by ``small_student``'s
    kernel: a logit student's pass, and passes of a teacher after it or after another generator's.

    Args:
        teacher: of the passes, with its guidance and filters as :func:`.jacobi.jacobi` has them.
    """

    def __init__(
        self,
        generator: Any,
        tokenizer: Any,
        teacher: Any,
        *,
        passes: int,
        cfg: float | None,
        top_k: int,
        top_p: float,
    ) -> None:
        self._generator: Any = generator
        self._tokenizer: Any = tokenizer
        self._teacher: Any = teacher if passes else None
        self._passes, self._cfg, self._filters = passes, cfg, (top_k, top_p)
        self._first = None if type(generator) is LogitStudent else AtOnce(generator, tokenizer)
        self._covered = (
            type(generator) in (LogitStudent, DD2Generator)
            and type(generator.backbone) is CausalTransformer
            and type(tokenizer) is VQTokenizer
            and (not passes or type(teacher) is ARTeacher)
        )
        self._draws: dict[Any, tuple[list[Packed], DrawnCodes]] = {}

    def finished(
        self, seed: int | Tensor, indices: Tensor, labels: Tensor, output: str
    ) -> Tensor | None:
        """What a sampler's output is made of, after the passes: tokens ``[B, n]``, embeddings
        ``[B, n, C]`` or images ``[B, 3, H, W]``. None, too, where a token is none."""
        images = output not in ("tokens", "latent")
        drawn = self._drawn(seed, indices, labels, self._passes, images)
        if drawn is None or images:
            return None if drawn is None else drawn[1]
        tokens = drawn[0]
        if tokens.amin() < 0:
            return None
        return tokens if output == "tokens" else self._codes(tokens)

    def draw(self, seed: int | Tensor, indices: Tensor, labels: Tensor) -> Tensor | None:
        """Embeddings ``[B, n, C]`` before the passes."""
        if self._first is not None:
            return self._first.draw(seed, indices, labels)
        drawn = self._drawn(seed, indices, labels, 0, images=False)
        if drawn is None or drawn[0].amin() < 0:
            return None
        return self._codes(drawn[0])

    def _codes(self, tokens: Tensor) -> Tensor:
        codebook: Tensor = self._tokenizer.codebook
        return codebook[tokens]

    def _drawn(
        self, seed: int | Tensor, indices: Tensor, labels: Tensor, passes: int, images: bool
    ) -> tuple[Tensor, Tensor] | None:
        if not self._covered:
            return None
        key = registry.named(), passes, images, *self._settings()
        kept = self._draws.get(key)
        if kept is None or not all(packed.usable() for packed in kept[0]):
            kept = self._make(passes, images)
            if kept is None:
                return None
            self._draws = {key: kept}
        tokens = None
        if self._first is not None:
            embeddings = self._first.draw(seed, indices, labels)
            if embeddings is None or not math.isfinite(embeddings.sum()):
                return None
            tokens = nearest_code(embeddings, self._tokenizer.codebook)
        if not isinstance(seed, Tensor):
            return kept[1](seed, indices, labels, tokens)
        noise = _noise(seed, indices, self._tokenizer, self._generator)
        return kept[1](0, indices, labels, tokens, noise)

    def _settings(self) -> tuple[float, int]:
        """The temperature, and the steps of a flow."""
        generator = self._generator
        if self._first is not None:
            return 1.0, FLOW_STEPS
        return generator.temperature, generator.flow_steps

    def _make(self, passes: int, images: bool) -> tuple[list[Packed], DrawnCodes] | None:
        generator, tokenizer = self._generator, self._tokenizer
        codebook = tokenizer.codebook
        if (
            codebook.dtype != torch.float32
            or not registry.has_kernel("small_student", codebook.device, codebook.dtype)
            or not {"forward", "tokens"}.isdisjoint(generator.__dict__)
            or not {"decode", "embed"}.isdisjoint(tokenizer.__dict__)
        ):
            return None
        packed: dict[str, Packed | None] = {}
        if self._first is None:
            if generator.tokenizer is not tokenizer:
                return None
            packed["student"] = packed_student(generator)
        # The codebook is watched with the decoder, whether that is called or not.
        packed["decoder"] = packed_decoder(tokenizer)
        scale = 1.0
        if passes:
            packed["teacher"] = self._teacher.packed_for("small_student")
            # The passes read and flow to the teacher's own codes.
            if not torch.equal(self._teacher.codebook, codebook):
                return None
            if self._cfg is not None:
                scale = self._teacher.guidance_scale(self._cfg)
        whole = {name: each for name, each in packed.items() if each is not None}
        if len(whole) < len(packed):
            return None

        def of(name: str) -> tuple[Tensor | None, Any]:
            return (whole[name].weights, whole[name].sizes) if name in whole else (None, ())

        weights, sizes = of("decoder")
        temperature, flow_steps = self._settings()
        module = registry.resolve("small_student", "", codebook.device, codebook.dtype)
        draw = DrawnCodes(
            module.launcher(codebook.device),
            generator.num_tokens,
            *of("student"),
            *of("teacher"),
            codebook.contiguous(),
            weights if images else None,
            sizes.decoder_width,
            temperature,
            flow_steps,
            passes,
            scale,
            *self._filters,
        )
        return list(whole.values()), draw


def at_once(generator: Any, tokenizer: Any, teacher: Any, **passes: Any) -> AtOnce | CodesAtOnce:
    """A generator with what comes after it, by the kernel of its kind.

    Args:
        passes: as of :class:`CodesAtOnce`.
    """
    if passes["passes"] or type(generator) is LogitStudent:
        return CodesAtOnce(generator, tokenizer, teacher, **passes)
    return AtOnce(generator, tokenizer)


def _noise(seed: Tensor, indices: Tensor, tokenizer: Any, generator: Any) -> Tensor:
    """That of images with seeds of their own."""
    codebook = tokenizer.codebook
    shape = generator.num_tokens, codebook.shape[1]
    return image_noise(seed.to(codebook.device), indices.to(codebook.device), shape)
