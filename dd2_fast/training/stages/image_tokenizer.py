"""Trains VAR's multi-scale tokenizer on a user's images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...ambient import outside_autocast
from ...models import VARTokenizer
from ...models.var.quantizer import MultiScaleQuantizer
from ...ops import nearest_code
from ..image_config import ImageTokenizerConfig
from ..loop import Losses, Stage
from ..parallel import Parallel
from ..samples.draws import draw_seed
from ..samples.image_batches import ImageBatches
from ..schedule import ramp
from ..trained import Terms, Trained

_LLOYD_STEPS = 12
_SMALLEST_SCALE = 1e-4
_JITTER = 0.05  # of a restarted code, so that two at one residual part
_START_BATCH = 128

# Images [B, c, H, W] in [0, 1] -> features, one tensor or several.
Features = Callable[[Tensor], Tensor | Sequence[Tensor]]


class Quantised:
    """What the quantiser makes of features ``f [B, C, g, g]``.

    Attributes:
        f_hat: ``[B, C, g, g]`` with the gradient of ``f`` (straight through).
        vq, commitment: means over the scales of ``|f_hat_k - sg f|^2`` and ``|sg f_hat_k - f|^2``,
            ``f_hat_k`` of the first ``k`` scales.
        tokens: int64 ``[B, n]``. rests: ``[B n, C]``, the vectors that were coded.
    """

    def __init__(self, quantizer: MultiScaleQuantizer, features: Tensor) -> None:
        with outside_autocast(features.device):
            features = features.float()
            target, book = features.detach(), quantizer.embedding
            f_hat: Tensor | None = None
            vq, commitment = features.new_zeros(()), features.new_zeros(())
            tokens, rests = [], []
            for k in range(quantizer.scales.count):
                rest = target if f_hat is None else target - f_hat.detach()
                rows = quantizer.next_input(rest, k)
                codes = nearest_code(rows, book.weight.detach())
                f_hat = quantizer.add_scale(f_hat, book(codes), k)
                vq = vq + F.mse_loss(f_hat, target)
                commitment = commitment + F.mse_loss(features, f_hat.detach())
                tokens.append(codes)
                rests.append(rows.flatten(0, 1))
            assert f_hat is not None
            count = quantizer.scales.count
            self.f_hat = features + (f_hat - features).detach()
            self.vq, self.commitment = vq / count, commitment / count
            self.tokens, self.rests = torch.cat(tokens, dim=1), torch.cat(rests)


class _Coder(nn.Module):
    """Images there and back, as one call whose backward pass the processes' gradients meet in."""

    def __init__(self, parts: nn.ModuleDict, quantizer: MultiScaleQuantizer | None) -> None:
        super().__init__()
        self.parts, self.quantizer = parts, quantizer
        self.made: Quantised | None = None

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        parts = self.parts
        features = parts["quant_conv"](parts["encoder"](2 * images - 1))
        if self.quantizer is None:
            return (self._decoded(features),)
        made = self.made = Quantised(self.quantizer, features)
        return self._decoded(made.f_hat), made.vq, made.commitment

    def _decoded(self, features: Tensor) -> Tensor:
        decoded: Tensor = self.parts["decoder"](self.parts["post_quant_conv"](features))
        return decoded.float() * 0.5 + 0.5


class ImageTokenizerStage(Stage):
    """VAR's tokenizer: a plain autoencoder first, then with codes that start at k-means.

    The loss is the squared and absolute error of the pixels, ``|f_hat - sg f|^2`` and its
    commitment (arXiv 2404.02905, Eq. 5), and where networks for them are given a distance of
    features and a discriminator's verdict (hinge loss). Codes that are hardly used start again
    from residuals of the step's images. At the end the codes' scale becomes one a dimension.

    Args:
        tokenizer: on the run's device. batches: of images. config: settings.
        features: a perceptual extractor, frozen; None leaves its term out.
        discriminator: images to logits of any shape, trained with the tokenizer; None for none.
    """

    def __init__(
        self,
        tokenizer: VARTokenizer,
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
        self.quantizer = tokenizer.quantize
        for i, phi in enumerate(self.quantizer.quant_resi.qresi_ls):
            phi.requires_grad_(i in self.quantizer.phi_indices)  # some serve no scale
        self._coder = _Coder(parts, self.quantizer)
        adam: tuple[Any, ...] = (self.parallel, config.betas, config.weight_decay)
        self.trained = {
            "autoencoder": Trained(_Coder(parts, None), *adam),
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
                tokens = cast(Quantised, self._coder.made).tokens
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
        unit_scale(self.tokenizer)
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
        """Features of unit variance, ``phi`` near the identity, and codes by k-means over each
        scale's residuals, an equal number of codes a scale."""
        tokenizer, quantizer, config = self.tokenizer, self.quantizer, self.config
        generator = torch.Generator().manual_seed(seed)
        numbers = self.batches.data.train
        order = torch.randperm(len(numbers), generator=generator)[: config.start_images]
        device = self.parallel.device
        features = torch.cat(
            [
                tokenizer.features(self.batches.data.load(part)[0].to(device))
                for part in _split(numbers[order.numpy()], _START_BATCH)
            ]
        )
        scale = features.std((0, 2, 3), correction=0).clamp(min=_SMALLEST_SCALE)
        _scale_features(tokenizer, scale)
        rest = features / scale[:, None, None]
        for phi in quantizer.quant_resi.qresi_ls:
            convolution = cast(nn.Conv2d, phi)
            convolution.weight.mul_(0.1)
            convolution.weight[:, :, 1, 1] += torch.eye(config.dimension, device=device)
            cast(Tensor, convolution.bias).zero_()
        book, count = quantizer.embedding.weight, quantizer.scales.count
        sizes = [len(part) for part in torch.arange(config.vocabulary).tensor_split(count)]
        for k, own in enumerate(torch.arange(config.vocabulary).split(sizes)):
            rows = quantizer.next_input(rest, k).flatten(0, 1)
            book[own] = _means(rows, len(own), generator)
            codes = nearest_code(rows, book[: int(own[-1]) + 1])
            maps = book[codes].view(len(rest), -1, config.dimension)
            rest = rest - quantizer.add_scale(None, maps, k)
        for parameter in quantizer.parameters():  # the same on every process
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
        rests = cast(Quantised, self._coder.made).rests.detach()
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randint(len(rests), (len(dead),), generator=generator)
        noise = torch.randn(len(dead), config.dimension, generator=generator)
        rows = rests[chosen.to(rests.device)]
        rows = rows + _JITTER * rests.std(0) * noise.to(rests.device)
        weight = self.quantizer.embedding.weight
        weight[dead] = self.parallel.first(rows.cpu()).to(weight)
        usage[dead] = 1 / config.vocabulary
        moments = self.trained["tokenizer"].optimizer.state.get(weight, {})
        for name in ("exp_avg", "exp_avg_sq"):
            if name in moments:
                moments[name][dead] = 0


@torch.no_grad()
def unit_scale(tokenizer: VARTokenizer) -> Tensor:
    """Give the codes unit variance a dimension, and return the factors ``s [C]`` they were divided
    by.

    What the decoder makes of any tokens stays exactly the same: ``c / s`` adds up to ``f_hat / s``
    by ``phi`` between scaled axes, and ``post_quant_conv`` takes the factor back. Encoding looks
    for the nearest code in the scaled axes from then on.
    """
    quantizer = tokenizer.quantize
    weight = quantizer.embedding.weight
    scale = weight.std(0, correction=0).clamp(min=_SMALLEST_SCALE)
    weight.div_(scale)
    for phi in quantizer.quant_resi.qresi_ls:
        convolution = cast(nn.Conv2d, phi)
        convolution.weight.mul_(scale[:, None, None]).div_(scale[:, None, None, None])
        cast(Tensor, convolution.bias).div_(scale)
    _scale_features(tokenizer, scale)
    return scale


@torch.no_grad()
def _scale_features(tokenizer: VARTokenizer, scale: Tensor) -> None:
    """Divide the quantised features by ``scale [C]``; the decoder takes it back."""
    tokenizer.quant_conv.weight.div_(scale[:, None, None, None])
    cast(Tensor, tokenizer.quant_conv.bias).div_(scale)
    tokenizer.post_quant_conv.weight.mul_(scale[:, None, None])


def _split(numbers: Any, size: int) -> list[Any]:
    return [numbers[i : i + size] for i in range(0, len(numbers), size)]


def _means(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """k-means of ``rows [N, C]`` from random ones, ``[count, C]``; where there are fewer rows than
    means, copies that are moved a little."""
    chosen = torch.randint(len(rows), (count,), generator=generator)
    if len(rows) >= count:
        chosen = torch.randperm(len(rows), generator=generator)[:count]
    means = rows[chosen.to(rows.device)]
    noise = torch.randn(means.shape, generator=generator).to(means.device)
    means = means + 1e-3 * rows.std() * noise
    for _ in range(_LLOYD_STEPS):
        codes = nearest_code(rows, means)
        counts = torch.bincount(codes, minlength=count)
        sums = torch.zeros_like(means).index_add_(0, codes, rows)
        found = counts > 0
        means[found] = sums[found] / counts[found, None]
    return means
