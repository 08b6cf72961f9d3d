"""VAR's released files: teachers, the tokenizer, and DD1's students."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from ...models.var.scales import Scales
from .base import Format

_PATCH_NUMS = {
    680: (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
    2240: (1, 2, 3, 4, 6, 9, 13, 18, 24, 32),
}
_PUBLISHED_SPLITS = {16: 5, 20: 4, 24: 4}  # DD1, by the number of blocks
_HEAD = 64
_BUFFERS = re.compile(r"lvl_1L|attn_bias_for_masking|blocks\.\d+\.attn\.zero_k_bias")
_TRANSFORMER = ("pos_1LC", "lvl_embed.weight", "head_nm.ada_lin.1.weight", "head.weight")
_STUDENT = "n_d_embed.weight"
_TOKENIZER = ("quantize.embedding.weight", "quantize.quant_resi.qresi_ls.0.weight")


def _is_student(tensors: Mapping[str, Tensor]) -> bool:
    return _has(tensors, (*_TRANSFORMER, _STUDENT))


def _is_teacher(tensors: Mapping[str, Tensor]) -> bool:
    return _has(tensors, _TRANSFORMER) and _STUDENT not in tensors


def _is_tokenizer(tensors: Mapping[str, Tensor]) -> bool:
    return _has(tensors, _TOKENIZER)


def _configure_teacher(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Any]:
    _check_names(config, ("patch_nums",))
    length = _shape(tensors, "pos_1LC", 3)[1]
    levels = _shape(tensors, "lvl_embed.weight", 2)[0]
    patch_nums = _patch_nums(config.get("patch_nums"), length, levels)
    return {"patch_nums": patch_nums, **_transformer(tensors)}


def _configure_student(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Any]:
    _check_names(config, ("patch_nums", "split", "second_step"))
    length = _shape(tensors, "pos_1LC", 3)[1] - 1
    levels = _shape(tensors, "lvl_embed.weight", 2)[0] - 1
    patch_nums = _patch_nums(config.get("patch_nums"), length, levels)
    network = _transformer(tensors)
    split = config.get("split")
    if split is None:
        split = _PUBLISHED_SPLITS.get(network["layers"])
    if split is None:
        raise ValueError(
            "split: expected the first scale of the continuous head; it is known for students of "
            f"{', '.join(map(str, _PUBLISHED_SPLITS))} blocks, this one has {network['layers']}"
        )
    second_step = config.get("second_step")
    return {"patch_nums": patch_nums, "split": split, "second_step": second_step, **network}


def _configure_tokenizer(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any]
) -> dict[str, Any]:
    _check_names(config, ("patch_nums",))
    patch_nums = config.get("patch_nums")
    sides = _PATCH_NUMS[680] if patch_nums is None else Scales.of(patch_nums).sides
    levels = _count(tensors, "decoder.up")
    widths = [_shape(tensors, f"decoder.up.{i}.block.0.conv2.weight", 4)[0] for i in range(levels)]
    channels = _shape(tensors, "encoder.conv_in.weight", 4)[0]
    if any(width % channels for width in widths):
        raise ValueError(
            f"decoder.up: expected widths that are multiples of {channels} "
            f"(encoder.conv_in.weight), got {widths}"
        )
    vocabulary, dimension = _shape(tensors, "quantize.embedding.weight", 2)
    return {
        "patch_nums": list(sides),
        "vocabulary": vocabulary,
        "dimension": dimension,
        "channels": channels,
        "multipliers": [width // channels for width in widths],
        "blocks": _count(tensors, "encoder.down.0.block"),
        "phis": _count(tensors, "quantize.quant_resi.qresi_ls"),
    }


def _transformer(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments that the shapes of a teacher and of a student tell alike."""
    width, dimension = _shape(tensors, "word_embed.weight", 2)
    temperature = "blocks.0.attn.scale_mul_1H11"
    l2_norm = temperature in tensors
    return {
        "vocabulary": _shape(tensors, "head.weight", 2)[0],
        "dimension": dimension,
        "num_classes": _shape(tensors, "class_emb.weight", 2)[0] - 1,
        "width": width,
        "layers": _count(tensors, "blocks"),
        "heads": _shape(tensors, temperature, 4)[1] if l2_norm else max(width // _HEAD, 1),
        "shared_aln": "shared_ada_lin.1.weight" in tensors,
        "l2_norm": l2_norm,
    }


def _patch_nums(given: Any, length: int, levels: int) -> list[int]:
    """The scales of ``length`` tokens: those given, if they fit, or the published ones."""
    sides = _PATCH_NUMS.get(length) if given is None else Scales.of(given).sides
    if sides is None:
        raise ValueError(
            f"patch_nums: expected the sides of {levels} scales; they are known for "
            f"{' and '.join(map(str, _PATCH_NUMS))} tokens, this file has {length}"
        )
    tokens = sum(side**2 for side in sides)
    if tokens != length or len(sides) != levels:
        raise ValueError(
            f"patch_nums: expected {levels} scales of {length} tokens together, got "
            f"{list(sides)}, which has {len(sides)} and {tokens}"
        )
    return list(sides)


def _has(tensors: Mapping[str, Tensor], names: Collection[str]) -> bool:
    return all(name in tensors for name in names)


def _is_buffer(name: str) -> bool:
    return _BUFFERS.fullmatch(name) is not None


def _check_names(config: Mapping[str, Any], known: Collection[str]) -> None:
    unknown = [name for name in config if name not in known]
    if unknown:
        raise TypeError(f"config: expected {', '.join(known)}, got {', '.join(unknown)}")


def _shape(tensors: Mapping[str, Tensor], name: str, ndim: int) -> list[int]:
    if name not in tensors:
        raise ValueError(f"{name}: expected a tensor of {ndim} dimensions, found none")
    shape = list(tensors[name].shape)
    if len(shape) != ndim:
        raise ValueError(f"{name}: expected {ndim} dimensions, got shape {shape}")
    return shape


def _count(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """How many different numbers follow ``prefix.``."""
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    return len({match[1] for match in map(pattern.match, tensors) if match})


FORMATS: tuple[Format, ...] = (
    Format("var_teacher", _is_teacher, _configure_teacher, _is_buffer, _TRANSFORMER),
    Format(
        "dd1_var_student", _is_student, _configure_student, _is_buffer, (*_TRANSFORMER, _STUDENT)
    ),
    Format(
        "var_tokenizer",
        _is_tokenizer,
        _configure_tokenizer,
        lambda name: name == "quantize.ema_vocab_hit_SV",
        _TOKENIZER,
    ),
)
