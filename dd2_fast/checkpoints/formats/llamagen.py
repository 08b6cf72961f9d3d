"""LlamaGen's released files: class-conditional teachers, tokenizers, and DD1's students."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from .base import Format

_HEAD = 64
_HEADS = {3200: 32}  # by width, where heads are not of 64 channels
_PUBLISHED_SPLITS = {768: 80, 1024: 130}  # DD1, by width: LlamaGen-B and L
_GRID = 16
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
    return _has(tensors, _TRANSFORMER) and not any(name in tensors for name in _STUDENT)


def _is_student(tensors: Mapping[str, Tensor]) -> bool:
    return _has(tensors, (*_TRANSFORMER, *_STUDENT))


def _is_tokenizer(tensors: Mapping[str, Tensor]) -> bool:
    return _has(tensors, _TOKENIZER)


def _configure_teacher(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Any]:
    _check_names(config, ("n_head", "grid", "codebook"))
    arguments = _transformer(tensors, config)
    codebook = config.get("codebook")
    # The table of a teacher does not tell C; every released one is of 8.
    return {**arguments, "dimension": 8 if codebook is None else codebook.shape[1]}


def _configure_student(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Any]:
    _check_names(config, ("n_head", "grid", "split", "second_step", "codebook"))
    arguments = _transformer(tensors, config)
    split = config.get("split")
    if split is None:
        split = _PUBLISHED_SPLITS.get(arguments["width"])
    if split is None:
        raise ValueError(
            "split: expected the first token of the continuous head; it is known for students of "
            f"width {', '.join(map(str, _PUBLISHED_SPLITS))}, this one has {arguments['width']}"
        )
    dimension = _shape(tensors, "tok_embeddings.weight", 2)[1]
    return {
        **arguments,
        "dimension": dimension,
        "split": _integer("split", split),
        "second_step": _integer("second_step", config.get("second_step")),
    }


def _configure_tokenizer(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any]
) -> dict[str, Any]:
    _check_names(config, ("grid",))
    channels = _shape(tensors, "encoder.conv_in.weight", 4)[0]
    levels = _count(tensors, "encoder.conv_blocks")
    widths = [
        _shape(tensors, f"encoder.conv_blocks.{i}.res.0.conv1.weight", 4)[0] for i in range(levels)
    ]
    if any(width % channels for width in widths):
        raise ValueError(
            f"encoder.conv_blocks: expected widths that are multiples of {channels} "
            f"(encoder.conv_in.weight), got {widths}"
        )
    vocabulary, dimension = _shape(tensors, "quantize.embedding.weight", 2)
    return {
        "channels": channels,
        "multiples": [width // channels for width in widths],
        "latents": _shape(tensors, "quant_conv.weight", 4)[1],
        "blocks": _count(tensors, "encoder.conv_blocks.0.res"),
        "vocabulary": vocabulary,
        "dimension": dimension,
        "grid": _integer("grid", config.get("grid")),
    }


def _transformer(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that a teacher and a student share."""
    classes, width = _shape(tensors, "cls_embedding.embedding_table.weight", 2)
    rows = _shape(tensors, "layers.0.attention.wqkv.weight", 2)[0]
    if rows != 3 * width:
        raise ValueError(
            f"layers.0.attention.wqkv.weight: expected {3 * width} rows (as many key and value "
            f"heads as query heads), got {rows}"
        )
    heads = _integer("n_head", config.get("n_head"))
    heads = _HEADS.get(width, max(width // _HEAD, 1)) if heads is None else heads
    if heads < 1 or width % (4 * heads):
        raise ValueError(
            f"n_head: expected heads of a multiple of 4 channels over width {width}, got {heads}"
        )
    grid = _integer("grid", config.get("grid"))
    return {
        "width": width,
        "layers": _count(tensors, "layers"),
        "heads": heads,
        "hidden": _shape(tensors, "layers.0.feed_forward.w1.weight", 2)[0],
        "num_classes": classes - 1,
        "grid": _GRID if grid is None else grid,
        "vocabulary": _shape(tensors, "output.weight", 2)[0],
        "codebook": _codebook(config.get("codebook")),
    }


def _codebook(value: Any) -> Tensor | None:
    if value is None:
        return None
    if not isinstance(value, Tensor) or not value.is_floating_point():
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"codebook: expected a float torch.Tensor, got {got}")
    if value.ndim != 2:
        raise ValueError(f"codebook: expected shape [V, C], got {list(value.shape)}")
    return value


def _integer(name: str, value: Any) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
    return value


def _has(tensors: Mapping[str, Tensor], names: Collection[str]) -> bool:
    return all(name in tensors for name in names)


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


def _is_buffer(name: str) -> bool:
    return _BUFFERS.fullmatch(name) is not None


FORMATS: tuple[Format, ...] = (
    Format("llamagen_teacher", _is_teacher, _configure_teacher, _is_buffer, _TRANSFORMER),
    Format(
        "dd1_llamagen_student",
        _is_student,
        _configure_student,
        _is_buffer,
        (*_TRANSFORMER, *_STUDENT),
    ),
    Format("llamagen_tokenizer", _is_tokenizer, _configure_tokenizer, _is_buffer, _TOKENIZER),
)
