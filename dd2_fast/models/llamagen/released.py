"""LlamaGen's released files: class-conditional teachers, tokenizers, and DD1's students."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from numbers import Real
from typing import Any

from torch import Tensor

from ..released import (
    Format,
    Unsupported,
    check_names,
    count,
    has,
    integer,
    known,
    number,
    shape_of,
)

_HEAD = 64
_HEADS = {3200: 32, 4096: 32}  # by width, where heads are not of 64 channels
_PUBLISHED_SPLITS = {768: 80, 1024: 130}  # DD1, by width: LlamaGen-B and L
_GRID, _DIMENSION, _PIXELS = 16, 8, 16  # of every released file at 256 px
_GROUPS = 32
_TOKENIZER_SETTINGS = {name: name for name in ("grid", "groups", "code_length")}
_TEACHER_SETTINGS = {name: name for name in ("n_head", "grid", "codebook", "dimension")}
_STUDENT_SETTINGS = {n: n for n in ("n_head", "grid", "split", "second_step", "codebook")}
_TEACHER_SETTINGS["n_head"] = _STUDENT_SETTINGS["n_head"] = "heads"
_BUFFERS = re.compile(
    r"freqs_cis|causal_mask|layers\.\d+\.attention\.kv_cache\.[kv]_cache|quantize\.codebook_used"
)
_TRANSFORMER = (
    "cls_embedding.embedding_table.weight",
    "tok_embeddings.weight",
    "layers.0.attention.wqkv.weight",
    "layers.0.feed_forward.w1.weight",
    "output.weight",
)
_STUDENT = ("n_d_embed.weight", "final_layer_conti.linear.weight")
_TOKENIZER = (
    "quantize.embedding.weight",
    "quant_conv.weight",
    "encoder.conv_in.weight",
    "encoder.conv_blocks.0.res.0.conv1.weight",
    "decoder.conv_blocks.0.res.0.conv1.weight",
)


def _is_teacher(tensors: Mapping[str, Tensor]) -> bool:
    return has(tensors, _TRANSFORMER) and not any(name in tensors for name in _STUDENT)


def _is_student(tensors: Mapping[str, Tensor]) -> bool:
    return has(tensors, (*_TRANSFORMER, *_STUDENT))


def _is_tokenizer(tensors: Mapping[str, Tensor]) -> bool:
    return has(tensors, _TOKENIZER)


def _configure_teacher(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Any]:
    check_names(config, _TEACHER_SETTINGS)
    arguments = _transformer(tensors, config)
    codebook, dimension = arguments["codebook"], integer("dimension", config.get("dimension"))
    # The table of a teacher does not tell C.
    if dimension is None:
        dimension = _DIMENSION if codebook is None else codebook.shape[1]
    return {**arguments, "dimension": dimension}


def _configure_student(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Any]:
    check_names(config, _STUDENT_SETTINGS)
    arguments = _transformer(tensors, config)
    split = config.get("split")
    if split is None:
        split = _PUBLISHED_SPLITS.get(arguments["width"])
    if split is None:
        raise ValueError(
            "split: expected the first token of the continuous head; it is known for students of "
            f"width {', '.join(map(str, _PUBLISHED_SPLITS))}, this one has {arguments['width']}"
        )
    dimension = shape_of(tensors, "tok_embeddings.weight", 2)[1]
    return {
        **arguments,
        "dimension": dimension,
        "split": integer("split", split),
        "second_step": integer("second_step", config.get("second_step")),
    }


def _configure_tokenizer(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any]
) -> dict[str, Any]:
    check_names(config, _TOKENIZER_SETTINGS)
    channels = shape_of(tensors, "encoder.conv_in.weight", 4)[0]
    levels = count(tensors, "encoder.conv_blocks")
    widths = [
        shape_of(tensors, f"encoder.conv_blocks.{i}.res.0.conv1.weight", 4)[0]
        for i in range(levels)
    ]
    if any(width % channels for width in widths):
        raise ValueError(
            f"encoder.conv_blocks: expected widths that are multiples of {channels} "
            f"(encoder.conv_in.weight), got {widths}"
        )
    vocabulary, dimension = shape_of(tensors, "quantize.embedding.weight", 2)
    return {
        "channels": channels,
        "multiples": [width // channels for width in widths],
        "latents": shape_of(tensors, "quant_conv.weight", 4)[1],
        "blocks": count(tensors, "encoder.conv_blocks.0.res"),
        "vocabulary": vocabulary,
        "dimension": dimension,
        "grid": integer("grid", config.get("grid")),
        "image_channels": shape_of(tensors, "encoder.conv_in.weight", 4)[1],
        "groups": integer("groups", config.get("groups")) or _GROUPS,
        "code_length": _length(config.get("code_length")),
    }


def _transformer(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that a teacher and a student share."""
    classes, width = shape_of(tensors, "cls_embedding.embedding_table.weight", 2)
    rows = shape_of(tensors, "layers.0.attention.wqkv.weight", 2)[0]
    if rows != 3 * width:
        raise ValueError(
            f"layers.0.attention.wqkv.weight: expected {3 * width} rows (as many key and value "
            f"heads as query heads), got {rows}"
        )
    heads = integer("n_head", config.get("n_head"))
    heads = _HEADS.get(width, max(width // _HEAD, 1)) if heads is None else heads
    if heads < 1 or width % (4 * heads):
        raise ValueError(
            f"n_head: expected heads of a multiple of 4 channels over width {width}, got {heads}"
        )
    grid = integer("grid", config.get("grid"))
    return {
        "width": width,
        "layers": count(tensors, "layers"),
        "heads": heads,
        "hidden": shape_of(tensors, "layers.0.feed_forward.w1.weight", 2)[0],
        "num_classes": classes - 1,
        "grid": _GRID if grid is None else grid,
        "vocabulary": shape_of(tensors, "output.weight", 2)[0],
        "codebook": _codebook(config.get("codebook")),
    }


def _length(value: Any) -> float:
    if value is None:
        return 1.0
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"code_length: expected a number, got {type(value).__name__}")
    return float(value)


def _codebook(value: Any) -> Tensor | None:
    if value is None:
        return None
    if not isinstance(value, Tensor) or not value.is_floating_point():
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"codebook: expected a float torch.Tensor, got {got}")
    if value.ndim != 2:
        raise ValueError(f"codebook: expected shape [V, C], got {list(value.shape)}")
    return value


def _is_buffer(name: str) -> bool:
    return _BUFFERS.fullmatch(name) is not None


def _told(record: Mapping[Any, Any]) -> dict[str, Any]:
    """What LlamaGen's or DD1's trainer (``args``) or a hub configuration (``ModelArgs``) says."""
    pixels, block = number(record, "image_size"), number(record, "block_size")
    grid = number(record, "latent_size")
    if grid is None and pixels is not None:
        grid = pixels // (number(record, "downsample_size") or _PIXELS)
    if grid is None and block is not None:
        grid = math.isqrt(block)
    # DD1's split_t is a default of its sampling program, not what a student was trained with.
    return known(
        grid=grid,
        n_head=number(record, "n_head"),
        layers=number(record, "n_layer"),
        width=number(record, "dim"),
        num_classes=number(record, "num_classes"),
        vocabulary=number(record, "vocab_size"),
        dimension=number(record, "codebook_embed_dim"),
    )


def _told_of_tokenizer(record: Mapping[Any, Any]) -> dict[str, Any]:
    """What the trainer of a tokenizer says; images of any size go through it."""
    return known(
        vocabulary=number(record, "codebook_size"),
        dimension=number(record, "codebook_embed_dim"),
    )


def _held(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The raster and the heads by the rotary table, where a file has it."""
    table = tensors.get("freqs_cis")
    width = shape_of(tensors, "cls_embedding.embedding_table.weight", 2)[1]
    if table is None or table.ndim != 3 or table.shape[2] != 2:
        return {}
    grid, pairs = math.isqrt(max(table.shape[0] - 1, 0)), table.shape[1]
    if grid < 1 or grid * grid + 1 != table.shape[0] or pairs < 1 or width % (2 * pairs):
        return {}
    return {"grid": grid, "n_head": width // (2 * pairs)}


def _assumed(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> set[str]:
    names = {"grid"} - set(config)
    if "n_head" not in config:
        names.add("heads")
    return names


def _assumed_of_teacher(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> set[str]:
    unknown = config.get("codebook") is None and "dimension" not in config
    return _assumed(tensors, config) | ({"dimension"} if unknown else set())


def _assumed_of_student(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> set[str]:
    return _assumed(tensors, config) | ({"split", "second_step"} - set(config))


def _assumed_of_tokenizer(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> set[str]:
    return {"grid", "groups", "code_length"} - set(config)


FORMATS: tuple[Format, ...] = (
    Format(
        "llamagen_teacher",
        _is_teacher,
        _configure_teacher,
        _is_buffer,
        _TRANSFORMER,
        settings=_TEACHER_SETTINGS,
        told=_told,
        held=_held,
        assumed=_assumed_of_teacher,
    ),
    Format(
        "dd1_llamagen_student",
        _is_student,
        _configure_student,
        _is_buffer,
        (*_TRANSFORMER, *_STUDENT),
        settings=_STUDENT_SETTINGS,
        told=_told,
        held=_held,
        assumed=_assumed_of_student,
    ),
    Format(
        "llamagen_tokenizer",
        _is_tokenizer,
        _configure_tokenizer,
        _is_buffer,
        _TOKENIZER,
        settings=_TOKENIZER_SETTINGS,
        told=_told_of_tokenizer,
        assumed=_assumed_of_tokenizer,
    ),
)


def _is_of_text(tensors: Mapping[str, Tensor]) -> bool:
    return "cls_embedding.cap_proj.fc1.weight" in tensors and "tok_embeddings.weight" in tensors


UNSUPPORTED = (
    Unsupported(
        _is_of_text,
        "a text-conditional LlamaGen (cls_embedding.cap_proj in place of a table of classes); "
        "only class-conditional ones can be loaded",
    ),
)
