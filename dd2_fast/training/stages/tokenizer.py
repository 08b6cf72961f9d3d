"""Trains the VQ tokenizer: an auto-encoder, then k-means codes kept by running averages."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ...models import VQTokenizer
from ...ops import nearest_code
from ..config import TokenizerConfig
from ..loop import Losses, Stage
from ..parallel import Parallel
from ..schedule import ramp
from ..trained import Terms, Trained

_LLOYD_STEPS = 20
_SMALLEST_COUNT = 1e-2


class TokenizerStage(Stage):
    """Reconstruction and commitment losses on ``images [N, 3, H, W]``."""

    def __init__(self, tokenizer: VQTokenizer, images: Tensor, config: TokenizerConfig) -> None:
        super().__init__("tokenizer", config.steps, batch=config.batch)
        self.tokenizer, self.images, self.config = tokenizer, images, config
        self.trained = {"tokenizer": Trained(tokenizer, Parallel(), (0.9, 0.99))}

    def step(self, index: int, rng: torch.Generator) -> Losses:
        config, tokenizer = self.config, self.tokenizer
        if index == config.continuous_steps:
            self._start_codes(rng)
        chosen = torch.randint(len(self.images), (config.batch,), generator=rng)

        def loss(part: Tensor) -> tuple[Tensor, Terms]:
            images = self.images[chosen[part]]
            latents = tokenizer.latents(images)
            terms: Terms = {}
            quantised = latents
            if index >= config.continuous_steps:
                tokens = nearest_code(latents.detach(), tokenizer.codebook)
                codes = tokenizer.codebook[tokens]
                terms["commitment"] = F.mse_loss(latents, codes)
                quantised = latents + (codes - latents).detach()
                self._average_codes(latents.detach().flatten(0, 1), tokens.flatten(), rng)
            total = F.mse_loss(tokenizer.reconstruct(quantised), images[:, :1])
            terms["reconstruction"] = total
            if "commitment" in terms:
                total = total + config.commitment * terms["commitment"]
            return total, terms

        rate = config.rate * ramp(index, self.steps, warmup=20)
        return self.trained["tokenizer"].update("tokenizer", rate, config.batch, loss)

    def finish(self) -> None:
        self.tokenizer.set_raw_codebook(self.tokenizer.codebook.clone())

    @torch.no_grad()
    def _start_codes(self, rng: torch.Generator) -> None:
        """k-means over the latents of all images; the running averages start from its clusters."""
        latents = self.tokenizer.latents(self.images).flatten(0, 1)
        codebook = self.tokenizer.codebook
        codes = latents[torch.randperm(len(latents), generator=rng)[: len(codebook)]]
        for _ in range(_LLOYD_STEPS):
            counts, sums = _clusters(latents, nearest_code(latents, codes), len(codes))
            codes = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp(min=1), codes)
        codebook.copy_(codes)
        share = self.config.batch / len(self.images)
        counts, sums = _clusters(latents, nearest_code(latents, codes), len(codes))
        self.buffers = {"counts": counts * share, "sums": sums * share}

    @torch.no_grad()
    def _average_codes(self, latents: Tensor, tokens: Tensor, rng: torch.Generator) -> None:
        """Each code follows the mean of its latents; one that nothing uses restarts at a latent."""
        counts, sums = _clusters(latents, tokens, len(self.tokenizer.codebook))
        rate = 1 - self.config.codebook_decay
        self.buffers["counts"].lerp_(counts, rate)
        self.buffers["sums"].lerp_(sums, rate)
        unused = self.buffers["counts"] < _SMALLEST_COUNT
        if bool(unused.any()):
            count = int(unused.sum())
            chosen = torch.randint(len(latents), (count,), generator=rng)
            self.buffers["sums"][unused] = latents[chosen]
            self.buffers["counts"][unused] = 1.0
        self.tokenizer.codebook.copy_(self.buffers["sums"] / self.buffers["counts"][:, None])


def _clusters(latents: Tensor, tokens: Tensor, vocabulary: int) -> tuple[Tensor, Tensor]:
    """Number ``[V]`` and sum ``[V, C]`` of the latents of each code."""
    assignment = F.one_hot(tokens, vocabulary).to(latents.dtype)
    return assignment.sum(0), assignment.T @ latents
