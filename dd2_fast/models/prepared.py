"""Networks for inference: the same functions, with what does not change between calls made once.

A prepared network has the classes and the weights of its own, and parts of :mod:`.folded` in it.
It is no part of the network: it is kept beside it, so that neither training nor files see it.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import nn

from ..ambient import outside_autocast
from .dd2 import DD2Generator
from .families import FAMILIES
from .folded import Folded, FoldedHead
from .fp8 import to_fp8
from .head import FlowHead
from .int8 import to_int8
from .logit_student import LogitStudent
from .watch import Watch, same_layers

Network = TypeVar("Network")
Rounding = Callable[[nn.Module], int]

_PARTS: dict[type[nn.Module], Callable[[Any], nn.Module]] = {FlowHead: FoldedHead}
_KINDS: set[type[nn.Module]] = set()
for _family in FAMILIES.values():
    _PARTS.update(_family.prepared)
    _KINDS.update(_family.kinds.values() if _family.prepared else ())

# What of a network runs when images are drawn, where that is not all of it.
_DECODING = ("decoder", "quantize", "post_quant_conv")


def prepare(network: Network, *, int8: bool = False, fp8: bool = False) -> Network:
    """A network that computes the same for inference, in fewer kernels.

    Biases, gains, positions, masks and the modulations of classes are worked out once, products of
    the same input are one, upsampling is in the convolution after it, attention takes few calls.
    Results differ by roundings. It is kept until the network's tensors are replaced or moved; when
    they change in place, the next call of this function works them out anew where they lie, so
    that compiled code and CUDA graphs of it stay good.

    Args:
        network: a generator, a teacher or a tokenizer of a released family. Others, and networks
            whose modules have hooks, are changed, or are compiled in place, are returned as they
            are, and so is any while code is traced.
        int8: large layers by eight-bit integers (:mod:`.int8`), of float32 networks on a CPU.
        fp8: large products in float8 (:mod:`.fp8`), of bfloat16 networks on a GPU; its tokenizer
            has none.

    The result is not to be trained, moved, converted or saved; there are no gradients for its
    weights. It takes memory for what is folded: of LlamaGen's 2/3 of the MLPs, of VAR's
    :class:`.var.prepared.ClassRows`, and on a GPU a copy of the decoder's convolutions.
    """
    if not isinstance(network, nn.Module) or not _is_covered(network):
        return network
    if int8 and fp8:
        raise ValueError("int8, fp8: expected one of them, got both")
    rounding = to_int8 if int8 else to_fp8 if fp8 else None
    with _lock:
        forms = _kept.setdefault(network, {})
        kept = forms.get(rounding)
        if kept is None or not kept.follows(network):
            try:
                watch = Watch(network, _running(network))
            except RuntimeError:  # a tensor of inference mode has no version
                return network
            kept = forms[rounding] = _Kept(network, watch, rounding)
    return network if kept.network is None or kept.watch.hooked() else kept.network


class _Kept:
    """A prepared network, None where modules are not as their classes make them, and what tells
    whether it is still the network's own."""

    network: Any = None

    def __init__(self, network: nn.Module, watch: Watch, rounding: Rounding | None) -> None:
        self.watch, self._int8 = watch, rounding is to_int8
        self._tokenizers = _tokenizers(network)
        self._prepared = self._of_tokenizers(self._tokenizers)
        if self.watch.plain and _as_built(network):
            with _folding(network):
                self.network = _shadow(network, zip(self._tokenizers, self._prepared, strict=True))
                if rounding is not None:
                    for part in _running(self.network):
                        rounding(part)

    def _of_tokenizers(self, tokenizers: list[Any]) -> list[Any]:
        return [prepare(tokenizer, int8=self._int8) for tokenizer in tokenizers]

    def follows(self, network: nn.Module) -> bool:
        """Whether it is, after changes in place were followed."""
        tokenizers = _tokenizers(network)
        if self._of_tokenizers(tokenizers) != self._prepared:
            return False
        if self.watch.current():
            return True
        if not self.watch.in_place():
            return False
        if self.network is not None:
            with _folding(network):
                for part in self.network.modules():
                    if isinstance(part, Folded):
                        part.refold()
        self.watch.renew()
        return True


_kept: WeakKeyDictionary[nn.Module, dict[Rounding | None, _Kept]] = WeakKeyDictionary()
_lock = threading.RLock()


@contextmanager
def _folding(network: nn.Module) -> Iterator[None]:
    """Where constants are made, whatever state torch is in where they are asked for."""
    device = next(network.parameters()).device
    with torch.inference_mode(False), torch.no_grad(), outside_autocast(device):
        yield


def _is_covered(network: Any) -> bool:
    kind = type(network)
    known = kind in _KINDS
    if kind in (DD2Generator, LogitStudent):
        known = bool(FAMILIES[network.config["family"]].prepared)
    compiled = getattr(network, "_compiled_call_impl", None) is not None
    return known and not compiled and not torch.compiler.is_compiling()


def _running(network: nn.Module) -> list[nn.Module]:
    parts = [getattr(network, name, None) for name in _DECODING]
    return [part for part in parts if part is not None] or list(network.children())


def _tokenizers(network: Any) -> list[Any]:
    """What is attached to a network, and to its backbone."""
    holders = network, getattr(network, "backbone", None)
    attached = dict.fromkeys(getattr(holder, "tokenizer", None) for holder in holders)
    return [tokenizer for tokenizer in attached if tokenizer is not None]


def _as_built(network: Any) -> bool:
    """Whether a network has the layers that its configuration makes."""
    with torch.device("meta"):
        fresh = type(network)(**network.config, **getattr(network, "data", {}))
    return same_layers(_running(network), _running(fresh))


def _shadow(network: nn.Module, replaced: Iterable[tuple[Any, Any]]) -> nn.Module:
    """A copy of the modules over the same tensors, with other parts where there are any.

    Args:
        replaced: what the copy holds another thing in the place of, and that.
    """
    memo: dict[int, Any] = {id(own): other for own, other in replaced}
    teacher = getattr(network, "teacher", None)
    memo[id(teacher)] = teacher
    for parameter in network.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
    for buffer in network.buffers():
        memo[id(buffer)] = buffer.detach()
    shadow = copy.deepcopy(network, memo)
    for name, child in _children(_replaced(shadow)):
        if any(child is part for part in _running(shadow)):
            setattr(shadow, name, _swapped(child))
    return shadow.eval()


def _replaced(module: nn.Module) -> nn.Module:
    make = _PARTS.get(type(module))
    return module if make is None else make(module)


def _swapped(module: nn.Module) -> nn.Module:
    """A module with every part that has a folded one replaced by it."""
    replaced = _replaced(module)
    if replaced is module:
        for name, child in _children(module):
            setattr(module, name, _swapped(child))
    return replaced


def _children(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Those that can be replaced, by name; what was added as prepared is left."""
    return ((n, m) for n, m in list(module.named_children()) if n != "prepared")
