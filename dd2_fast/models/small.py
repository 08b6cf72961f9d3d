"""Small networks' weights, packed as the kernels of ``small_generator``, ``small_student`` and
``small_teacher`` read them.

The packed copy is no part of a network: it is kept beside it while the network's tensors are those
it was made of (:class:`.watch.Watch`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..ops import registry
from ..ops.small_generator import small_generator
from ..ops.small_network import (
    MOST_TOKENS,
    PANEL,
    WIDEST,
    GeneratorSizes,
    TeacherSizes,
    Writer,
)
from .causal.transformer import CausalTransformer
from .head import FlowHead, time_embedding
from .watch import Watch, same_layers

Parts = Callable[[Any], list[nn.Module]]
Fresh = Callable[[Any], list[nn.Module] | None]
Pack = Callable[[Writer, Any], tuple[int, ...]]


class Packed(Watch):
    """A network's packed weights, and what tells whether they are still its own.

    Attributes:
        weights: in the network's dtype, on its device. sizes: those that go with them.
        covered: whether the kernels can run the network.
    """

    weights: Tensor
    sizes: Any

    def __init__(self, network: nn.Module, parts: list[nn.Module]) -> None:
        super().__init__(network, parts)
        self.covered = self.plain and _are_of_one_kind(self.tensors)

    def usable(self) -> bool:
        """Whether the weights are current and stand for the network: no hook waits for its parts,
        and nothing traces or counts torch's operations."""
        return (
            self.covered
            and self.current()
            and not self.hooked()
            and not torch._C._len_torch_dispatch_stack()
            and torch._C._functorch.peek_interpreter_stack() is None
            and not torch.compiler.is_compiling()
        )


_packed: WeakKeyDictionary[nn.Module, Packed] = WeakKeyDictionary()


def _of(network: Any, parts: Parts, fresh: Fresh, pack: Pack) -> Packed | None:
    """A network's weights, packed anew after a change; None where the kernels cannot run it.

    Args:
        parts: of the network. fresh: parts as they should be, to be compared, or None.
        pack: writes the parts and the network's own tensors.
    """
    packed = _packed.get(network)
    if packed is None or not packed.current():
        known = packed is not None and packed.covered and packed.whole()
        try:
            packed = Packed(network, parts(network))
        except RuntimeError:  # a tensor of inference mode has no version
            return None
        packed.covered = packed.covered and (known or _same(network, parts, fresh))
        if packed.covered:
            with torch.inference_mode(False), torch.no_grad():
                writer = Writer()
                packed.sizes = pack(writer, network)
                packed.weights = writer.array().to(next(network.parameters()).dtype)
        _packed[network] = packed
    return packed if packed.usable() else None


def packed_generator(generator: Any) -> Packed | None:
    """The weights of a ``DD2Generator`` over a :class:`.CausalTransformer`: backbone and head."""
    return _of(generator, _generator_parts, _fresh_generator, _pack_generator)


def packed_decoder(tokenizer: Any) -> Packed | None:
    """The weights of the decoder of a ``VQTokenizer``."""
    return _of(tokenizer, _decoder_parts, _fresh_decoder, _pack_decoder)


def decoded_at_once(tokenizer: Any, embeddings: Tensor) -> Tensor | None:
    """Images ``[B, 3, H, W]`` of embeddings ``[B, n, C]`` by one call of ``small_generator``; None
    where it does not cover the tokenizer, or gradients are wanted."""
    if torch.is_grad_enabled() or embeddings.dtype != torch.float32:
        return None
    # A graph reads the modules' weights as they are at its replay.
    if embeddings.is_cuda and torch.cuda.is_current_stream_capturing():
        return None
    if not registry.has_kernel("small_generator", embeddings.device, embeddings.dtype):
        return None
    packed = packed_decoder(tokenizer)
    if packed is None:
        return None
    return small_generator(embeddings, None, None, packed.weights, packed.sizes)[1]


def packed_teacher(teacher: Any) -> Packed | None:
    """The weights of an ``ARTeacher``: backbone and classifier."""
    return _of(teacher, _teacher_parts, _fresh_teacher, _pack_teacher)


def packed_student(student: Any) -> Packed | None:
    """The weights of a ``LogitStudent`` over a :class:`.CausalTransformer`: backbone and a
    classifier with a bias."""
    return _of(student, _generator_parts, _fresh_student, _pack_student)


def _generator_parts(generator: Any) -> list[nn.Module]:
    return [generator.backbone, generator.head]


def _fresh_generator(generator: Any) -> list[nn.Module] | None:
    backbone, head = generator.backbone, generator.head
    width = generator.config["head_width"]
    if not _fits(backbone, width):
        return None
    made = CausalTransformer(**backbone.backbone_config)
    sizes = {"dimension": made.dimension, "features": made.width}
    return [made, FlowHead(**sizes, width=width, blocks=head.blocks)]


def _pack_generator(writer: Writer, generator: Any) -> GeneratorSizes:
    backbone, head = generator.backbone, generator.head
    _pack_transformer(writer, backbone)
    _pack_head(writer, head, backbone.norm)
    return GeneratorSizes(*_sizes(backbone), head.input.out_features, head.blocks)


def _decoder_parts(tokenizer: Any) -> list[nn.Module]:
    return [tokenizer.decoder]


def _fresh_decoder(tokenizer: Any) -> list[nn.Module] | None:
    config = tokenizer.config
    if tokenizer.num_tokens > MOST_TOKENS or not _narrow(config["width"]):
        return None
    return [type(tokenizer)(**config).decoder] if config["dimension"] <= WIDEST else None


def _teacher_parts(teacher: Any) -> list[nn.Module]:
    return [teacher.backbone, teacher.classifier]


def _fresh_teacher(teacher: Any) -> list[nn.Module] | None:
    backbone = teacher.backbone
    if not _fits(backbone):
        return None
    made = CausalTransformer(**backbone.backbone_config)
    return [made, nn.Linear(made.width, len(teacher.codebook))]


def _pack_teacher(writer: Writer, teacher: Any) -> TeacherSizes:
    return _pack_logits(writer, teacher.backbone, teacher.classifier)


def _fresh_student(student: Any) -> list[nn.Module] | None:
    backbone = student.backbone
    if not _fits(backbone):
        return None
    made = CausalTransformer(**backbone.backbone_config)
    return [made, nn.Linear(made.width, student.config["codes"])]


def _pack_student(writer: Writer, student: Any) -> TeacherSizes:
    return _pack_logits(writer, student.backbone, student.head)


def _pack_logits(
    writer: Writer, backbone: CausalTransformer, classifier: nn.Linear
) -> TeacherSizes:
    _pack_transformer(writer, backbone)
    writer.layer(*_after_norm(backbone.norm, classifier))
    return TeacherSizes(*_sizes(backbone))


def _narrow(width: int) -> bool:
    return width % PANEL == 0 and 0 < width <= WIDEST


def _fits(backbone: CausalTransformer, *widths: int) -> bool:
    """Whether a transformer is within what the kernels have room for."""
    return (
        type(backbone) is CausalTransformer
        and all(map(_narrow, (backbone.width, *widths)))
        and backbone.width // backbone.heads % PANEL == 0
        and backbone.num_tokens <= MOST_TOKENS
        and backbone.dimension <= WIDEST
    )


def _are_of_one_kind(tensors: list[Tensor]) -> bool:
    """Whether all lie on one device, and parameters have one dtype."""
    dtypes = {t.dtype for t in tensors if isinstance(t, nn.Parameter)}
    return len(dtypes) == len({t.device for t in tensors}) == 1 and all(
        t.is_floating_point() for t in tensors
    )


def _same(network: Any, parts: Parts, fresh: Fresh) -> bool:
    """Whether parts are built as fresh ones."""
    with torch.device("meta"):
        made = fresh(network)
    return made is not None and same_layers(parts(network), made)


def _sizes(backbone: CausalTransformer) -> tuple[int, int, int, int]:
    classes = backbone.class_embedding.num_embeddings
    return classes, backbone.width, len(backbone.blocks), backbone.heads


def _wide(layer: Any) -> tuple[Tensor, Tensor]:
    """A layer's weight and bias, to be combined with others before one rounding."""
    weight, bias = (t.to(torch.float64, copy=True) for t in (layer.weight, layer.bias))
    return weight, bias


def _after_norm(norm: nn.LayerNorm, layer: nn.Linear) -> tuple[Tensor, Tensor]:
    """A layer that takes over the gain and the bias of the norm before it."""
    (weight, bias), (gain, shift) = _wide(layer), _wide(norm)
    return weight * gain, bias + weight @ shift


def _pack_transformer(writer: Writer, backbone: CausalTransformer) -> None:
    writer.floats(backbone.class_embedding.weight.double())
    writer.floats(backbone.positions.double())
    writer.layer(*_wide(backbone.input))
    width, size = backbone.width, backbone.width // backbone.heads
    block: Any
    for block in backbone.blocks:
        weight, bias = _after_norm(block.attention_norm, block.qkv)
        weight[:width] *= size**-0.5  # the queries
        bias[:width] *= size**-0.5
        writer.layer(weight, bias)
        writer.layer(*_wide(block.projection))
        writer.layer(*_after_norm(block.mlp_norm, block.expand))
        writer.layer(*_wide(block.contract))


def _pack_head(writer: Writer, head: FlowHead, norm: nn.LayerNorm) -> None:
    weight, bias = _after_norm(norm, head.condition)
    frequencies = head.constants.frequencies
    dtype = head.input.weight.dtype
    time = time_embedding(1.0, frequencies.to(torch.promote_types(dtype, torch.float32)))
    first, _, second = head.time.children()
    (w1, b1), (w2, b2) = _wide(first), _wide(second)
    hidden = nn.functional.silu(w1 @ time.to(dtype).double() + b1)
    writer.layer(weight, bias + w2 @ hidden + b2)
    writer.layer(*_wide(head.input))
    weight, bias = _wide(head.modulation)
    width, blocks = head.input.out_features, head.blocks
    for scale in [3 * i + 1 for i in range(blocks + 1)]:
        bias[scale * width : (scale + 1) * width] += 1
    for i, (expand, contract) in enumerate(zip(head.expand, head.contract, strict=True)):
        rows = slice(3 * i * width, 3 * (i + 1) * width)
        writer.layer(weight[rows], bias[rows])
        writer.layer(*_wide(expand))
        writer.layer(*_wide(contract))
    writer.layer(weight[3 * blocks * width :], bias[3 * blocks * width :])
    writer.layer(*_wide(head.output))


def _pack_decoder(writer: Writer, tokenizer: Any) -> GeneratorSizes:
    first, residual, _, up, _, last = tokenizer.decoder.children()
    body: Any = residual.body
    _, inner, _, mix = body
    writer.floats(tokenizer.shift.double())
    writer.floats(tokenizer.scale.double())

    def taps(weight: Tensor) -> Tensor:
        return weight.permute(0, 2, 3, 1).flatten(1)  # [O, (dy, dx, C)]

    for layer in (first, inner, mix):
        weight, bias = _wide(layer)
        writer.layer(taps(weight), bias)
    weight, bias = _wide(up)  # [C, O, 2, 2]
    writer.layer(weight.permute(2, 3, 1, 0).flatten(0, 2), bias.repeat(4))
    weight, bias = _wide(last)  # [1, C, 3, 3]
    writer.layer(weight[0].flatten(1).T, torch.zeros_like(bias).expand(9))
    writer.floats(bias)
    return GeneratorSizes(decoder_width=tokenizer.config["width"])
