"""VAR in plain code, straight from the released names: one scale, one head, one row at a time where
it matters, a dense mask and no cache. It shares nothing with the package."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

State = Mapping[str, Tensor]


def phi(state: State, h: Tensor, scale: int, scales: int) -> Tensor:
    ticks = torch.linspace(1 / 12, 11 / 12, 4, dtype=torch.float64)
    released = {10: [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]}
    near = (ticks - scale / (scales - 1)).abs().argmin()
    index = released[scales][scale] if scales in released else int(near)
    name = f"quantize.quant_resi.qresi_ls.{index}"
    weight, bias = state[f"{name}.weight"].to(h), state[f"{name}.bias"].to(h)
    return 0.5 * h + 0.5 * F.conv2d(h, weight, bias, padding=1)


def accumulate(state: State, embeddings: Tensor, sides: Sequence[int]) -> tuple[Tensor, Tensor]:
    """``f_hat`` and the next scales' inputs, scale by scale."""
    last, start = sides[-1], 0
    f_hat: Tensor = embeddings.new_zeros(len(embeddings), embeddings.shape[2], last, last)
    inputs = []
    for k, side in enumerate(sides):
        h = (
            embeddings[:, start : start + side**2]
            .transpose(1, 2)
            .reshape(*f_hat.shape[:2], side, side)
        )
        start += side**2
        if side != last:
            h = F.interpolate(h, size=(last, last), mode="bicubic")
        f_hat = f_hat + phi(state, h, k, len(sides))
        if k + 1 < len(sides):
            area = F.interpolate(f_hat, size=(sides[k + 1],) * 2, mode="area")
            inputs.append(area.flatten(2).transpose(1, 2))
    return f_hat, torch.cat(inputs, 1)


def layer_norm(h: Tensor) -> Tensor:
    centred = h - h.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def attention(state: State, name: str, h: Tensor, heads: int, mask: Tensor) -> Tensor:
    width = h.shape[-1]
    size = width // heads
    qkv = h @ state[f"{name}.mat_qkv.weight"].T
    q, k, v = qkv.split(width, -1)
    q, v = q + state[f"{name}.q_bias"], v + state[f"{name}.v_bias"]
    out = []
    for i in range(heads):
        own = slice(i * size, (i + 1) * size)
        a, b = q[..., own], k[..., own]
        factor = torch.tensor(0.25 / math.sqrt(size))
        if f"{name}.scale_mul_1H11" in state:
            a, b = a / a.norm(dim=-1, keepdim=True), b / b.norm(dim=-1, keepdim=True)
            factor = state[f"{name}.scale_mul_1H11"][0, i, 0, 0].clamp(max=math.log(100)).exp()
        score = (factor * a @ b.transpose(1, 2)).masked_fill(~mask, -torch.inf)
        out.append(score.softmax(-1) @ v[..., own])
    return torch.cat(out, -1) @ state[f"{name}.proj.weight"].T + state[f"{name}.proj.bias"]


def logits(
    state: State, inputs: Tensor, labels: Tensor, sides: Sequence[int], heads: int
) -> Tensor:
    """Teacher-forced logits of a VAR teacher that reads ``inputs [B, n - 1, C]``."""
    linear = lambda name, x: x @ state[f"{name}.weight"].T + state[f"{name}.bias"]  # noqa: E731
    level = torch.tensor([k for k, side in enumerate(sides) for _ in range(side**2)])
    condition = state["class_emb.weight"][labels]
    h = torch.cat([condition[:, None] + state["pos_start"], linear("word_embed", inputs)], 1)
    h = h + state["lvl_embed.weight"][level] + state["pos_1LC"]
    mask = level[:, None] >= level[None]
    silu = condition * condition.sigmoid()
    width = h.shape[-1]
    for i in range(sum(name.endswith("ffn.fc1.bias") for name in state)):
        name = f"blocks.{i}"
        if "shared_ada_lin.1.weight" in state:
            vectors = linear("shared_ada_lin.1", silu) + state[f"{name}.ada_gss"].reshape(1, -1)
        else:
            vectors = linear(f"{name}.ada_lin.1", silu)
        gamma1, gamma2, scale1, scale2, shift1, shift2 = vectors[:, None].split(width, -1)
        x = layer_norm(h) * (1 + scale1) + shift1
        h = h + gamma1 * attention(state, f"{name}.attn", x, heads, mask)
        x = linear(f"{name}.ffn.fc1", layer_norm(h) * (1 + scale2) + shift2)
        x = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        h = h + gamma2 * linear(f"{name}.ffn.fc2", x)
    scale, shift = linear("head_nm.ada_lin.1", silu)[:, None].split(width, -1)
    return linear("head", layer_norm(h) * (1 + scale) + shift)


def encoder(state: State, images: Tensor, levels: int = 5, blocks: int = 2) -> Tensor:
    """Features of images in [-1, 1], after the quant convolution."""

    def conv(name: str, h: Tensor, **options: int) -> Tensor:
        return F.conv2d(h, state[f"{name}.weight"], state[f"{name}.bias"], **options)

    def norm(name: str, h: Tensor) -> Tensor:
        groups = h.reshape(len(h), 32, -1)
        groups = groups - groups.mean(-1, keepdim=True)
        groups = groups / (groups.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        shape = (1, -1, 1, 1)
        return groups.reshape(h.shape) * state[f"{name}.weight"].view(shape) + state[
            f"{name}.bias"
        ].view(shape)

    def act(h: Tensor) -> Tensor:
        return h * h.sigmoid()

    def residual(name: str, h: Tensor) -> Tensor:
        out = conv(f"{name}.conv1", act(norm(f"{name}.norm1", h)), padding=1)
        out = conv(f"{name}.conv2", act(norm(f"{name}.norm2", out)), padding=1)
        short = f"{name}.nin_shortcut"
        return out + (conv(short, h) if f"{short}.weight" in state else h)

    def attend(name: str, h: Tensor) -> Tensor:
        q, k, v = conv(f"{name}.qkv", norm(f"{name}.norm", h)).flatten(2).chunk(3, 1)
        weight = (q.transpose(1, 2) @ k / math.sqrt(q.shape[1])).softmax(-1)
        mixed = (v @ weight.transpose(1, 2)).reshape(h.shape)
        return h + conv(f"{name}.proj_out", mixed)

    h = conv("encoder.conv_in", images, padding=1)
    for i in range(levels):
        for j in range(blocks):
            h = residual(f"encoder.down.{i}.block.{j}", h)
            if i == levels - 1:
                h = attend(f"encoder.down.{i}.attn.{j}", h)
        if i < levels - 1:
            h = conv(f"encoder.down.{i}.downsample.conv", F.pad(h, (0, 1, 0, 1)), stride=2)
    h = residual("encoder.mid.block_1", h)
    h = residual("encoder.mid.block_2", attend("encoder.mid.attn_1", h))
    h = conv("encoder.conv_out", act(norm("encoder.norm_out", h)), padding=1)
    return conv("quant_conv", h, padding=1)
