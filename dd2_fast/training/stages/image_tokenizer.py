"""Trains the tokenizer of a family on a user's images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...models.families import family_of
from ...models.family import Coded, Coding
from ..image_config import ImageTokenizerConfig
from ..loop import Losses, Stage
from ..parallel import Parallel
from ..samples.draws import draw_seed
from ..samples.image_batches import ImageBatches
from ..schedule import ramp
from ..trained import Terms, Trained

_JITTER = 0.05  # of a restarted code, so that two at one residual part
_START_BATCH = 128

# Images [B, c, H, W] in [0, 1] -> features, one tensor or several.
Features = Callable[[Tensor], Tensor | Sequence[Tensor]]


class _Coder(nn.Module):
    """Images there and back, as one call whose backward pass the processes' gradients meet in."""

    def __init__(self, parts: nn.ModuleDict, coding: Coding, quantizer: nn.Module | None) -> None:
        super().__init__()
        self.parts, self.quantizer, self.coding = parts, quantizer, coding
        self.made: Coded | None = None

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        parts = self.parts
        features = parts["quant_conv"](parts["encoder"](2 * images - 1))
        if self.quantizer is None:
            return (self._decoded(self.coding.plain(features)),)
        made = self.made = self.coding.code(features)
        return self._decoded(made.quantised), made.vq, made.commitment

    def _decoded(self, features: Tensor) -> Tensor:
        decoded: Tensor = self.parts["decoder"](self.parts["post_quant_conv"](features))
        return decoded.float() * 0.5 + 0.5


class ImageTokenizerStage(Stage):
    """A tokenizer: a plain autoencoder first, then with codes that start at k-means.

    The loss is the squared and absolute error of the pixels, the family's error of the codes and
    its commitment (:class:`dd2_fast.models.family.Coding`), and where networks for them are given a
    distance of features and a discriminator's verdict (hinge loss). Codes that are hardly used
    start again from what the step's images had coded. At the end the codes get unit variance.

    Args:
        tokenizer: of a family that is trained on images, on the run's device.
        batches: of images. config: settings.
        features: a perceptual extractor, frozen; None leaves its term out.
        discriminator: images to logits of any shape, trained with the tokenizer; None for none.
    """

    def __init__(
        self,
        tokenizer: Any,
        batches: ImageBatches,
        config: ImageTokenizerConfig,
        parallel: Parallel | None = None,
        *,
        features: Features | None = None,
        discriminator: nn.Module | None = None,
    ) -> None:
        super().__init__("tokenizer", config.steps, batch=config.batch)
        self.tokenizer, self.batches, self.config = tokenizer, batches, config
        self.features, self.discriminator = features, discriminator
        self.parallel = parallel or Parallel(device=tokenizer.codebook.device)
        names = ("encoder", "quant_conv", "post_quant_conv", "decoder")
        parts = nn.ModuleDict({name: getattr(tokenizer, name) for name in names})
        tokenizer.requires_grad_(True)
        family = family_of(tokenizer)
        if family.images is None:
            raise TypeError(f"tokenizer: expected one trained on images, got {family.name}'s")
        self.coding = family.images.coding(tokenizer)
        self._coder = _Coder(parts, self.coding, tokenizer.quantize)
        adam: tuple[Any, ...] = (self.parallel, config.betas, config.weight_decay)
        self.trained = {
            "autoencoder": Trained(_Coder(parts, self.coding, None), *adam),
            "tokenizer": Trained(self._coder, *adam),
        }
        if discriminator is not None:
            self.trained["discriminator"] = Trained(discriminator, self.parallel, (0.0, 0.99))
        usage = torch.full((config.vocabulary,), 1 / config.vocabulary)
        self.buffers = {"usage": usage}

    def step(self, index: int, rng: torch.Generator) -> Losses:
        config = self.config
        if index == config.continuous_steps:
            self._start_codes(draw_seed(rng))
        quantised = index >= config.continuous_steps
        trained = self.trained["tokenizer" if quantised else "autoencoder"]
        counts = torch.zeros(config.vocabulary, device=self.parallel.device)
        kept: list[tuple[Tensor, Tensor]] = []

        def loss(part: Tensor) -> tuple[Tensor, Terms]:
            images, _ = self.batches.take(index, part)
            made, *losses = trained(images)
            self.seen(reconstruction=made)
            squared = F.mse_loss(made, images)
            total = squared + config.absolute * F.l1_loss(made, images)
            terms = {"reconstruction": squared}
            if losses:
                terms["vq"], terms["commitment"] = losses
                total = total + losses[0] + config.commitment * losses[1]
                tokens = cast(Coded, self._coder.made).tokens
                counts.add_(torch.bincount(tokens.flatten(), minlength=config.vocabulary))
            if self.features is not None:
                terms["perceptual"] = self._distance(self.features, made, images)
                total = total + config.perceptual * terms["perceptual"]
            if self.discriminator is not None:
                terms["adversarial"] = -self.discriminator(made).mean()
                total = total + config.adversarial * terms["adversarial"]
                kept.append((images, made.detach()))
            return total, terms

        steps = config.steps - config.continuous_steps if quantised else config.continuous_steps
        done = index - config.continuous_steps if quantised else index
        rate = config.rate * ramp(done, steps, warmup=min(config.warmup, steps // 4))
        if self.discriminator is not None:
            self.discriminator.requires_grad_(False)
        terms = trained.update("tokenizer", rate, config.batch, loss)
        if self.discriminator is not None:
            self.discriminator.requires_grad_(True)
            terms = {**terms, **self._judge(kept, rate)}
        if quantised:
            terms["codes_used"] = (counts > 0).float().mean()
            self._restart(index, counts, draw_seed(rng))
        self._coder.made = None
        return terms

    def finish(self) -> None:
        self.coding.finish()
        self.tokenizer.requires_grad_(False)

    @staticmethod
    def _distance(features: Features, made: Tensor, images: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = features(images)
        found = features(made)
        if isinstance(wanted, Tensor):
            wanted, found = [wanted], [cast(Tensor, found)]
        pairs = zip(found, wanted, strict=True)
        return torch.stack([F.mse_loss(a, b) for a, b in pairs]).mean()

    def _judge(self, kept: list[tuple[Tensor, Tensor]], rate: float) -> Terms:
        """The discriminator's own update by the hinge loss."""
        discriminator, parts = self.trained["discriminator"], list(kept)

        def loss(part: Tensor) -> tuple[Tensor, Terms]:
            real, made = parts.pop(0)
            verdicts = discriminator(torch.cat([real, made]))
            on_real, on_made = verdicts.chunk(2)
            value = F.relu(1 - on_real).mean() + F.relu(1 + on_made).mean()
            return value, {"discriminator": value}

        return discriminator.update("discriminator", rate, self.config.batch, loss)

    @torch.no_grad()
    def _start_codes(self, seed: int) -> None:
        """Codes by k-means of the features of some images."""
        config, device = self.config, self.parallel.device
        generator = torch.Generator().manual_seed(seed)
        numbers = self.batches.data.train
        order = torch.randperm(len(numbers), generator=generator)[: config.start_images]
        features = torch.cat(
            [
                self.tokenizer.features(self.batches.data.load(part)[0].to(device))
                for part in _split(numbers[order.numpy()], _START_BATCH)
            ]
        )
        self.coding.start(features, generator)
        for parameter in self.tokenizer.quantize.parameters():  # the same on every process
            parameter.copy_(self.parallel.first(parameter.detach().cpu()).to(device))

    @torch.no_grad()
    def _restart(self, index: int, counts: Tensor, seed: int) -> None:
        """Follow how often codes are used, and start those again that hardly are."""
        config = self.config
        counts = self.parallel.mean(counts)
        usage = self.buffers["usage"] = self.buffers["usage"].to(counts.device)
        usage.lerp_(counts / counts.sum().clamp(min=1), 1 - config.usage_decay)
        last = config.continuous_steps + config.restart_until * (
            config.steps - config.continuous_steps
        )
        if (index + 1) % config.restart_every or index >= last:
            return
        dead = (usage < config.restart / config.vocabulary).nonzero()[:, 0]
        if not len(dead):
            return
        rests = cast(Coded, self._coder.made).rests.detach()
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randint(len(rests), (len(dead),), generator=generator)
        noise = torch.randn(len(dead), config.dimension, generator=generator)
        rows = rests[chosen.to(rests.device)]
        rows = rows + _JITTER * rests.std(0) * noise.to(rests.device)
        weight = self.coding.codes
        weight[dead] = self.parallel.first(rows.cpu()).to(weight)
        usage[dead] = 1 / config.vocabulary
        moments = self.trained["tokenizer"].optimizer.state.get(weight, {})
        for name in ("exp_avg", "exp_avg_sq"):
            if name in moments:
                moments[name][dead] = 0


def _split(numbers: Any, size: int) -> list[Any]:
    return [numbers[i : i + size] for i in range(0, len(numbers), size)]
