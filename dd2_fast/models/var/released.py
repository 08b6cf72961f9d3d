"""VAR's released files: teachers, the tokenizer, and DD1's students."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from numbers import Integral
from typing import Any

import numpy as np
from torch import Tensor

from ..released import Format, check_names, count, has, integer, known, number, shape_of
from .scales import Scales

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
_TOKENIZER_SETTINGS = {"patch_nums": "patch_nums"}
_TEACHER_SETTINGS = {**_TOKENIZER_SETTINGS, "n_head": "heads"}
_STUDENT_SETTINGS = {
    "patch_nums": "patch_nums",
    "split": "split",
    "second_step": "second_step",
    "n_head": "heads",
}


def _is_student(tensors: Mapping[str, Tensor]) -> bool:
    return has(tensors, (*_TRANSFORMER, _STUDENT))


def _is_teacher(tensors: Mapping[str, Tensor]) -> bool:
    return has(tensors, _TRANSFORMER) and _STUDENT not in tensors


def _is_tokenizer(tensors: Mapping[str, Tensor]) -> bool:
    return has(tensors, _TOKENIZER)


def _configure_teacher(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Any]:
    check_names(config, _TEACHER_SETTINGS)
    length = shape_of(tensors, "pos_1LC", 3)[1]
    levels = shape_of(tensors, "lvl_embed.weight", 2)[0]
    patch_nums = _patch_nums(config.get("patch_nums"), length, levels)
    return {"patch_nums": patch_nums, **_transformer(tensors, config)}


def _configure_student(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Any]:
    check_names(config, _STUDENT_SETTINGS)
    length = shape_of(tensors, "pos_1LC", 3)[1] - 1
    levels = shape_of(tensors, "lvl_embed.weight", 2)[0] - 1
    patch_nums = _patch_nums(config.get("patch_nums"), length, levels)
    network = _transformer(tensors, config)
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
    check_names(config, _TOKENIZER_SETTINGS)
    patch_nums = config.get("patch_nums")
    sides = _PATCH_NUMS[680] if patch_nums is None else Scales.of(patch_nums).sides
    levels = count(tensors, "decoder.up")
    widths = [
        shape_of(tensors, f"decoder.up.{i}.block.0.conv2.weight", 4)[0] for i in range(levels)
    ]
    channels = shape_of(tensors, "encoder.conv_in.weight", 4)[0]
    if any(width % channels for width in widths):
        raise ValueError(
            f"decoder.up: expected widths that are multiples of {channels} "
            f"(encoder.conv_in.weight), got {widths}"
        )
    vocabulary, dimension = shape_of(tensors, "quantize.embedding.weight", 2)
    return {
        "patch_nums": list(sides),
        "vocabulary": vocabulary,
        "dimension": dimension,
        "channels": channels,
        "multipliers": [width // channels for width in widths],
        "blocks": count(tensors, "encoder.down.0.block"),
        "phis": count(tensors, "quantize.quant_resi.qresi_ls"),
        "image_channels": shape_of(tensors, "encoder.conv_in.weight", 4)[1],
    }


def _transformer(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that shapes tell in the same way for teachers and students."""
    width, dimension = shape_of(tensors, "word_embed.weight", 2)
    temperature = "blocks.0.attn.scale_mul_1H11"
    l2_norm = temperature in tensors
    heads = shape_of(tensors, temperature, 4)[1] if l2_norm else max(width // _HEAD, 1)
    given = integer("n_head", config.get("n_head"))
    if given is not None and (given < 1 or width % given or (l2_norm and given != heads)):
        wanted = f"{heads} ({temperature})" if l2_norm else f"a divisor of the width {width}"
        raise ValueError(f"n_head: expected {wanted}, got {given}")
    return {
        "vocabulary": shape_of(tensors, "head.weight", 2)[0],
        "dimension": dimension,
        "num_classes": shape_of(tensors, "class_emb.weight", 2)[0] - 1,
        "width": width,
        "layers": count(tensors, "blocks"),
        "heads": heads if given is None else given,
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


def _is_buffer(name: str) -> bool:
    return _BUFFERS.fullmatch(name) is not None


def _told(record: Mapping[Any, Any]) -> dict[str, Any]:
    """What VAR's trainer (``trainer.config``, ``args``), its hub configuration or DD1's says."""
    return known(
        patch_nums=_sides(record),
        n_head=number(record, "num_heads"),
        layers=number(record, "depth"),
        width=number(record, "embed_dim"),
        num_classes=number(record, "num_classes"),
    )


def _told_of_tokenizer(record: Mapping[Any, Any]) -> dict[str, Any]:
    return known(
        patch_nums=_sides(record),
        vocabulary=number(record, "vocab_size"),
        dimension=number(record, "z_channels"),
        channels=number(record, "ch"),
    )


def _sides(record: Mapping[Any, Any]) -> list[int] | None:
    """The sides of the scales, as a list or as text such as ``1_2_3``; None where there are none.

    The public tokenizer calls them ``v_patch_nums``.
    """
    for name in ("patch_nums", "v_patch_nums", "pn"):
        value = record.get(name)
        if isinstance(value, str) and re.fullmatch(r"\d{1,6}(?:[-_,]\d{1,6})+", value):
            value = [int(part) for part in re.split(r"[-_,]", value)]
        if isinstance(value, np.ndarray):
            value = value.tolist()
        sides = value if isinstance(value, list | tuple) else ()
        whole = [isinstance(side, Integral) and not isinstance(side, bool) for side in sides]
        if whole and all(whole):
            return [int(side) for side in sides]
    return None


def _held(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The scales by the buffer that gives the level of every token."""
    levels = tensors.get("lvl_1L")
    length = shape_of(tensors, "pos_1LC", 3)[1]
    if levels is None or levels.is_meta or list(levels.shape) != [1, length]:
        return {}
    counts = levels.flatten().long().unique_consecutive(return_counts=True)[1].tolist()
    if "n_d_embed.weight" in tensors:  # a student's first level is the class token
        counts = counts[1:]
    sides = [math.isqrt(count) for count in counts]
    square = all(side * side == count for side, count in zip(sides, counts, strict=True))
    rising = all(low < high for low, high in zip(sides, sides[1:], strict=False))
    return {"patch_nums": sides} if square and rising and len(sides) > 1 else {}


def _assumed(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> set[str]:
    names = {"patch_nums"} - set(config)
    if "n_head" not in config and "blocks.0.attn.scale_mul_1H11" not in tensors:
        names.add("heads")
    return names


def _assumed_of_student(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> set[str]:
    return _assumed(tensors, config) | ({"split", "second_step"} - set(config))


def _assumed_of_tokenizer(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> set[str]:
    return {"patch_nums"} - set(config)


FORMATS: tuple[Format, ...] = (
    Format(
        "var_teacher",
        _is_teacher,
        _configure_teacher,
        _is_buffer,
        _TRANSFORMER,
        settings=_TEACHER_SETTINGS,
        told=_told,
        held=_held,
        assumed=_assumed,
    ),
    Format(
        "dd1_var_student",
        _is_student,
        _configure_student,
        _is_buffer,
        (*_TRANSFORMER, _STUDENT),
        settings=_STUDENT_SETTINGS,
        told=_told,
        held=_held,
        assumed=_assumed_of_student,
    ),
    Format(
        "var_tokenizer",
        _is_tokenizer,
        _configure_tokenizer,
        lambda name: name == "quantize.ema_vocab_hit_SV",
        _TOKENIZER,
        settings=_TOKENIZER_SETTINGS,
        told=_told_of_tokenizer,
        assumed=_assumed_of_tokenizer,
    ),
)
