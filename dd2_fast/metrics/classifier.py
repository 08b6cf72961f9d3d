"""A small convolutional classifier of digits, by whose labels and features images are judged."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ambient import outside_autocast


class DigitsClassifier(nn.Module):
    """Classifies images [B, in_channels, 8, 8] in [0, 1]; Fréchet distances use its `features`."""

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 10,
        width: int = 32,
        feature_dim: int = 32,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.config = {
            "in_channels": in_channels,
            "num_classes": num_classes,
            "width": width,
            "feature_dim": feature_dim,
            "dropout": dropout,
        }
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.conv3 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.norm1 = nn.GroupNorm(4, width)
        self.norm2 = nn.GroupNorm(4, width)
        self.norm3 = nn.GroupNorm(4, 2 * width)
        self.project = nn.Linear(2 * width * 16, feature_dim)
        self.dropout = nn.Dropout(dropout)
        self.classify = nn.Linear(feature_dim, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """Return the penultimate activations [B, feature_dim] of images [B, in_channels, 8, 8]."""
        channels = self.config["in_channels"]
        if images.ndim != 4 or tuple(images.shape[1:]) != (channels, 8, 8):
            raise ValueError(
                f"images: expected shape [B, {channels}, 8, 8], got {list(images.shape)}"
            )
        h = F.silu(self.norm1(self.conv1(2.0 * images - 1.0)))
        h = F.max_pool2d(F.silu(self.norm2(self.conv2(h))), 2)
        h = F.silu(self.norm3(self.conv3(h)))
        return F.silu(self.project(self.dropout(h.flatten(1))))

    def forward(self, images: Tensor) -> Tensor:
        """Return class logits [B, num_classes] of images [B, in_channels, 8, 8]."""
        logits: Tensor = self.classify(self.features(images))
        return logits


def train_classifier(
    images: Tensor,
    labels: Tensor,
    *,
    seed: int = 0,
    epochs: int = 30,
    batch_size: int = 64,
) -> DigitsClassifier:
    """Train a `DigitsClassifier` on images [N, 3, 8, 8] in [0, 1] and int64 labels [N].

    Deterministic in `seed` on one machine, whatever the caller's autocast and gradients; the images
    are shifted by up to one pixel while training. The global random state is left as it was.
    Returned in evaluation mode, frozen, in the dtype and on the device of the images.
    """
    if images.shape[0] != labels.shape[0] or images.shape[0] == 0:
        raise ValueError(
            "labels: expected one label an image and at least one image, "
            f"got {images.shape[0]} images and {labels.shape[0]} labels"
        )
    with (
        torch.random.fork_rng(devices=[]),
        torch.inference_mode(False),
        torch.enable_grad(),
        outside_autocast(images.device),
        images.device,
    ):
        images, labels = images.clone(), labels.clone()  # inference mode's could not be trained on
        model = DigitsClassifier(in_channels=images.shape[1]).to(images.dtype)
        torch.manual_seed(seed)
        for layer in model.children():  # drawn in this dtype, not the default one
            getattr(layer, "reset_parameters", lambda: None)()
        steps = epochs * -(-images.shape[0] // batch_size)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
        for _ in range(epochs):
            for index in torch.randperm(images.shape[0]).split(batch_size):
                loss = F.cross_entropy(
                    model(_shift(images[index])), labels[index], label_smoothing=0.05
                )
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
    return model.eval().requires_grad_(False)


def _shift(images: Tensor) -> Tensor:
    """Move the whole batch by -1, 0 or 1 pixels along each axis, zeros coming in."""
    dy, dx = (int(v) for v in torch.randint(0, 3, (2,)))
    height, width = images.shape[-2:]
    return F.pad(images, (1, 1, 1, 1))[..., dy : dy + height, dx : dx + width]
