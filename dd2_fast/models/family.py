"""What a family of models has: its parts, and the record by which the package knows them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from ..condition import Condition, Rows
from .editing import Known
from .released import Format, Unsupported
from .sampling import Choose

if TYPE_CHECKING:
    from typing_extensions import Self


class Module(Protocol):
    """What every torch module has, as far as it is asked of models here."""

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def state_dict(self) -> Mapping[str, Any]: ...

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any: ...

    def requires_grad_(self, requires_grad: bool = True) -> Self: ...

    def to(self, *args: Any, **kwargs: Any) -> Self: ...


def as_module(model: Module) -> nn.Module:
    """``model``, which is a torch module, as one."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    return model


class Tokenizer(Module, Protocol):
    """Images ``[B, 3, H, W]`` in [0, 1] to int64 tokens ``[B, n]``, and embeddings to images."""

    @property
    def codebook(self) -> Tensor:
        """The code vectors ``[V, C]``."""

    def encode(self, images: Tensor) -> Tensor:
        """Tokens ``[B, n]`` of images."""

    def embed(self, tokens: Tensor) -> Tensor:
        """Code vectors ``[B, n, C]`` of tokens."""

    def decode(self, embeddings: Tensor) -> Tensor:
        """Images of embeddings ``[B, n, C]``, codes or not."""

    def known(self, images: Tensor, mask: Tensor) -> Known:
        """What is known of images under ``mask``, bool ``[B, 1, H, W]``, True where to draw."""


class Backbone(Module, Protocol):
    """Features ``[B, n, width]`` of embeddings ``[B, n, C]`` and the images' conditions; those of a
    token read only what comes before it.

    Attributes:
        backbone_config: the arguments that make another one.
    """

    num_tokens: int
    dimension: int
    width: int
    backbone_config: dict[str, Any]

    @property
    def condition(self) -> Condition:
        """What images are conditioned on: of ``labels [B]`` a :class:`ClassCondition`."""

    @property
    def blocks(self) -> nn.ModuleList:
        """What the trainer compiles, checkpoints and shards one by one."""

    @property
    def apart(self) -> Sequence[tuple[nn.Module, str]]:
        """Blocks, or parts of blocks, that are also called on their own, and by which method."""

    @property
    def adapted(self) -> bool:
        """Whether it reads any vector, not just codes."""

    def network_config(self, exact: bool) -> dict[str, Any]:
        """``backbone_config`` for a DD2 network that starts from this one.

        Args:
            exact: whether to keep what reads codes exactly but exceeds the paper's size.

        Raises:
            ValueError: it reads codes only.
        """

    def __call__(self, embeddings: Tensor, labels: Rows) -> Tensor: ...


class Teacher(Module, Protocol):
    """``p(tokens of a step | those of the steps before it, condition)``."""

    num_tokens: int

    @property
    def condition(self) -> Condition:
        """What images are conditioned on: of ``labels [B]`` a :class:`ClassCondition`."""

    @property
    def tokenizer(self) -> Tokenizer | None:
        """What is attached."""

    @property
    def codebook(self) -> Tensor:
        """The code vectors ``[V, C]``."""

    @property
    def steps(self) -> list[slice]:
        """The positions of each step."""

    @property
    def unguided(self) -> float:
        """The ``cfg`` that means no guidance."""

    def logits(self, tokens_or_embeddings: Tensor, labels: Rows) -> Tensor:
        """Teacher-forced logits ``[B, n, V]``, of null conditions too."""

    def guidance_scale(self, cfg: float) -> Tensor | float:
        """``s`` of ``l_uncond + s (l_cond - l_uncond)``: a number, or one per token ``[n]``."""

    def generate(
        self,
        labels: Rows,
        choose: Choose,
        *,
        guided: bool = False,
        prefix: Tensor | None = None,
        drawn_steps: Sequence[bool] | None = None,
    ) -> Tensor:
        """Tokens ``[B, n]`` that ``choose`` picks step by step after a ``prefix [B, m]``; where
        ``drawn_steps`` has False for a step, it gets no logits."""


class Student(Module, Protocol):
    """Embeddings ``[B, n, C]`` of noise ``[B, n, C]`` and conditions, all tokens at once."""

    num_tokens: int

    @property
    def condition(self) -> Condition:
        """What images are conditioned on: of ``labels [B]`` a :class:`ClassCondition`."""

    @property
    def tokenizer(self) -> Tokenizer | None:
        """What is attached."""

    def __call__(self, noise: Tensor, labels: Rows) -> Tensor: ...


def _as_it_is(teacher: Teacher, seed: int) -> Teacher:
    return teacher


@dataclass(frozen=True)
class Coded:
    """What a quantiser in training makes of features ``[B, C, g, g]``.

    Attributes:
        quantised: what the decoder's side reads, with the gradient of the features.
        vq, commitment: ``|codes - sg features|^2`` and ``|sg codes - features|^2``, means.
        tokens: int64 ``[B, n]``. rests: ``[B n, C]``, the vectors that were coded.
    """

    quantised: Tensor
    vq: Tensor
    commitment: Tensor
    tokens: Tensor
    rests: Tensor


class Coding(Protocol):
    """How the codes of a tokenizer are trained; its ``encoder``, ``quant_conv``, ``quantize``,
    ``post_quant_conv`` and ``decoder`` are trained with them."""

    @property
    def codes(self) -> nn.Parameter:
        """The codes ``[V, C]``, as they are trained."""

    def plain(self, features: Tensor) -> Tensor:
        """What the decoder's side reads of features while there are no codes yet."""

    def code(self, features: Tensor) -> Coded:
        """The features coded, in float32 or wider whatever the autocast."""

    def start(self, features: Tensor, generator: torch.Generator) -> None:
        """Codes by k-means of the features of some images."""

    def finish(self) -> None:
        """The codes as they are distilled: of unit variance."""


@dataclass(frozen=True)
class FromImages:
    """How a family is trained on images, from settings by name; of each the family takes its own.

    Attributes:
        tokenizer: makes a new one for images of a size and a number of channels.
        fit: makes a loaded one fit them, or raises ValueError.
        teacher: makes a new one over a tokenizer, for a number of classes.
        coding: the :class:`Coding` of a tokenizer.
        classes: the name of the teacher's parameter that has a row a class, the null class's last.
    """

    tokenizer: Callable[[int, int, Mapping[str, Any]], Any]
    fit: Callable[[Any, int, int], Any]
    teacher: Callable[[Any, int, Mapping[str, Any]], Any]
    coding: Callable[[Any], Coding]
    classes: str


@dataclass(frozen=True)
class Family:
    """What the package knows of a family; :data:`.families.FAMILIES` lists them all.

    Attributes:
        name: in the configurations of DD2's networks, so files hold it.
        backbone: the class of what a teacher's features come from, a :class:`Backbone`.
        kinds: the classes of its models, by the names of their kind that files hold.
        random: makes a small teacher with its tokenizer attached and random weights (torch's
            generator) that has every kind of arithmetic a released one has.
        formats, unsupported: its released files.
        adapt: makes of a ``teacher`` that reads codes only, and a ``seed``, a copy that reads any
            vector.
        images: how it is trained on images; None: it is not.
        classifier: the name of its teachers' last layer, an ``nn.Linear``: features to logits.
        prepared: by classes of modules, what stands for one when images are drawn: another module,
            or the same with constants added as its ``prepared`` (:func:`.prepared.prepare`).
    """

    name: str
    backbone: type[Any]
    kinds: Mapping[str, type[nn.Module]]
    random: Callable[[], Teacher]
    formats: tuple[Format, ...] = ()
    unsupported: tuple[Unsupported, ...] = ()
    adapt: Callable[[Any, int], Any] = _as_it_is
    images: FromImages | None = None
    classifier: str = "head"
    prepared: Mapping[type[nn.Module], Callable[[Any], nn.Module]] = field(default_factory=dict)


# Sizes of the random networks that all families share.
RANDOM_SIZES: dict[str, Any] = {"vocabulary": 64, "dimension": 8}
RANDOM_CLASSES = 10
