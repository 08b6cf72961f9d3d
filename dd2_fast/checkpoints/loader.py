"""One entry for every model there is a file of: ours, and the released ones."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from . import formats
from .build import build_model
from .bundle import load_bundle, load_generator
from .container import Contents, open_file, state_dicts
from .formats import Format
from .io import build_own, build_own_tokenizer, is_own, own_header
from .limits import memory_limit

_TOKENIZER = "_tokenizer"
_CODEBOOK = "codebook"
_NAMED = 4


@dataclass(frozen=True)
class Found:
    """A state dict of a released format: where it lies, and its tensors without the buffers."""

    nesting: str
    format: Format
    tensors: dict[str, Tensor]


def load(
    source: str | os.PathLike[str] | Mapping[str, Any],
    *,
    tokenizer: Any = None,
    max_bytes: int | None = None,
    **config: Any,
) -> nn.Module:
    """A model from a released file, a file of ours, the folder of a bundle or run, or a state dict.

    The names of the tensors tell the kind, their shapes the sizes. Where training code nested
    several state dicts, the first of a known kind is taken: averages (``ema_parameters``, ``ema``)
    before all else, then ``trainer``, ``var_wo_ddp``, ``model``, ``module``, ``state_dict``,
    ``vae_local``, ``vae``; pass the inner state dict itself to choose another.

    Tensors keep the file's dtype (``model.to(dtype)`` changes it) and are not copied: those of a
    file are pages of it, read when first used and private to the process, so replace such a file
    by renaming, never in place; those of a state dict stay shared with it. The model evaluates and
    has its gradients off.

    Args:
        source: a ``.pth``, ``.pt`` or ``.safetensors`` file, the folder of a bundle or of a
            distillation's run (its generator), or a state dict, nested or not.
        tokenizer: what to attach as ``.tokenizer``: a tokenizer, or what ``load`` reads one from.
        max_bytes: the memory that the contents of a file may take; None: what the environment's
            ``DD2_FAST_MAX_BYTES`` says, else 1 GiB or eight times its size, whichever is more.
        config: what shapes of released files cannot tell, such as ``patch_nums``, ``n_head``,
            ``grid``, ``split``, ``codebook``; our own files need at most the last, and not that
            where they were saved with it or with a tokenizer.

    Raises:
        FileNotFoundError: nothing there.
        TypeError: a source, tokenizer or configuration of the wrong type or name.
        ValueError: damaged, of no known kind, unsafe to open, too large once opened, or tensors
            that do not fit.
    """
    with memory_limit(max_bytes):
        if isinstance(source, str | os.PathLike) and Path(source).is_dir():
            _check_no_config(config)
            model = load_generator(Path(source))
        else:
            model = _build(_open(source, "source"), config)
        if tokenizer is not None:
            _attach(model, tokenizer)
        return model


def recognise(contents: Contents) -> list[Found]:
    """The state dicts in ``contents`` that are of a released format, the preferred one first."""
    found = []
    for nesting, tensors in state_dicts(contents.tree):
        for one in formats.FORMATS:
            if one.matches(tensors):
                kept = {name: value for name, value in tensors.items() if not one.ignored(name)}
                found.append(Found(nesting, one, kept))
                break
    return found


def configure(contents: Contents, found: Found, config: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor's arguments; errors of ``config`` and the shapes name the source."""
    try:
        return found.format.configure(found.tensors, config)
    except (TypeError, ValueError) as error:
        sort = TypeError if isinstance(error, TypeError) else ValueError
        raise sort(f"{_where(contents, found)}, a {found.format.kind}: {error}") from error


def _open(source: Any, argument: str) -> Contents:
    if isinstance(source, str | os.PathLike):
        return open_file(Path(source))
    if isinstance(source, Mapping):
        return Contents("state dict", "state dict", source)
    raise TypeError(f"{argument}: expected a path or a state dict, got {type(source).__name__}")


def _build(contents: Contents, config: Mapping[str, Any], ending: str = "") -> nn.Module:
    """The model in ``contents`` whose kind ends with ``ending``."""
    if is_own(contents):
        header = own_header(contents)
        if "tokenizer" in header and ending == _TOKENIZER:
            return build_own_tokenizer(contents)
        # A codebook is data beside the weights, unless the file has one.
        has_one = _CODEBOOK in contents.tree or _CODEBOOK in header.get("data", ())
        free = () if has_one else (_CODEBOOK,)
        _check_no_config({name: config[name] for name in config if name not in free})
        return build_own(contents, **config)
    for found in recognise(contents):
        if found.format.kind.endswith(ending):
            arguments = configure(contents, found, config)
            where = _where(contents, found)
            return build_model(where, found.format.kind, arguments, found.tensors)
    raise ValueError(_unrecognised(contents, ending))


def _attach(model: nn.Module, tokenizer: Any) -> None:
    if not hasattr(type(model), "tokenizer"):
        raise TypeError(
            f"tokenizer: expected a generator or a teacher to attach it to, got a "
            f"{type(model).__name__}, which takes none"
        )
    model.tokenizer = _tokenizer(tokenizer)


def _tokenizer(source: Any) -> Any:
    if isinstance(source, str | os.PathLike) and Path(source).is_dir():
        return load_bundle(Path(source)).tokenizer
    if isinstance(source, str | os.PathLike | Mapping):
        source = _build(_open(source, "tokenizer"), {}, _TOKENIZER)
    if not all(hasattr(source, name) for name in ("encode", "embed", "decode", "codebook")):
        raise TypeError(
            f"tokenizer: expected a tokenizer (encode, embed, decode, codebook) or a path of one, "
            f"got {type(source).__name__}"
        )
    return source


def _check_no_config(config: Mapping[str, Any]) -> None:
    if config:
        raise TypeError(
            f"config: our own checkpoints carry their configuration, got {', '.join(config)}"
        )


def _where(contents: Contents, found: Found) -> str:
    return f"{contents.source} ({found.nesting})" if found.nesting else contents.source


def _unrecognised(contents: Contents, ending: str) -> str:
    kinds = [one.kind for one in formats.FORMATS if one.kind.endswith(ending)]
    expected = f"{contents.source}: expected a dd2_fast checkpoint or one of {', '.join(kinds)}"
    candidates = state_dicts(contents.tree)
    if not candidates:
        keys = ", ".join(map(repr, list(contents.tree)[:_NAMED])) or "nothing"
        return f"{expected}; found no tensors, only {keys}"
    nesting, tensors = max(candidates, key=lambda candidate: len(candidate[1]))
    names = ", ".join(f"{name} {list(v.shape)}" for name, v in list(tensors.items())[:_NAMED])
    inside = f" under {nesting}" if nesting else ""
    more = f" and {len(tensors) - _NAMED} more" if len(tensors) > _NAMED else ""
    found = f"{expected}; found {len(tensors)} tensors{inside} of none of these: {names}{more}"
    return found + _nearest(tensors, ending)


def _nearest(tensors: Mapping[str, Tensor], ending: str) -> str:
    """The known kind that most of its names speak for, and which it misses; empty if none."""

    def share(one: Format) -> float:
        return sum(name in tensors for name in one.names) / max(len(one.names), 1)

    kinds = [one for one in formats.FORMATS if one.kind.endswith(ending)]
    best = max(kinds, key=share, default=None)
    if best is None or share(best) < 0.5:
        return ""
    missing = [name for name in best.names if name not in tensors]
    return f"; nearest is {best.kind}, without {', '.join(missing)}"
