"""One entry for every model there is a file of: ours, and the released ones."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..models.released import Format
from ..reading import shown
from . import formats
from .build import build_model
from .bundle import is_bundle, load_bundle, load_generator
from .checksums import checked
from .configuration import Configured, Found, configure
from .container import Contents, open_file
from .folder import is_folder_of_weights, open_folder
from .io import build_own, build_own_tokenizer, is_own, own_header
from .limits import memory_limit
from .nesting import StateDict, by_component, like, overlaps, state_dicts
from .registry import class_of

_TOKENIZER = "_tokenizer"
_CODEBOOK = "codebook"
_NAMED = 4


def load(
    source: str | os.PathLike[str] | Mapping[str, Any],
    *,
    tokenizer: Any = None,
    max_bytes: int | None = None,
    verify: bool | None = None,
    **config: Any,
) -> nn.Module:
    """A model from a released file, a file of ours, a folder or a state dict.

    The names of the tensors tell the kind, their shapes the sizes. Where training code nested
    several state dicts, the first of a known kind is taken, and the average of its weights if there
    is one, by whatever name: ``ema_parameters``, ``ema`` (or ``model_ema``, ``state_dict_ema``,
    what torch's AveragedModel saves ...). The order is ``trainer``, ``var_wo_ddp``, ``model``,
    ``module``, ``state_dict``, ``vae_local``, ``vae``, then other names; pass the inner state dict
    itself to choose another. A tokenizer comes last, and is attached to the model it lies beside.
    What the file keeps of its training (``args``, ``config``, a hub's ``config.json``) tells what
    shapes cannot.

    Floating tensors keep the file's dtype, the commonest if it has several (``model.to(dtype)``
    changes it), and are not copied: those of a file are pages of it, read when first used and
    private to the process, so replace such a file by renaming, never in place; those of a state
    dict stay shared with it. The model evaluates and has its gradients off. Any number of threads
    may load at once.

    Args:
        source: a ``.pth``, ``.pt`` or ``.safetensors`` file, the folder of a bundle or of a
            distillation's run (its generator), a folder with ``model.safetensors`` or
            ``pytorch_model.bin``, whole or in parts, or a state dict, nested or not.
        tokenizer: what to attach as ``.tokenizer``: a tokenizer, or what ``load`` reads one from.
        max_bytes: the memory that the contents of a file may take; None: what the environment's
            ``DD2_FAST_MAX_BYTES`` says, else 1 GiB or eight times its size, whichever is more.
        verify: compare a file with the checksums in it, which reads all of it, some 0.4 s a GB;
            None: where it is of at most 16 MiB. Archives of torch have checksums, and our own
            files; PyTorch's older format and others' safetensors have none. The commands of
            ``dd2-fast`` always compare, ``inspect`` with ``--verify``.
        config: what neither shapes nor the file tell, such as ``patch_nums``, ``n_head``,
            ``grid``, ``split``, ``codebook``; our own files need at most the last, and not that
            where they were saved with it or with a tokenizer.

    Raises:
        FileNotFoundError: nothing there.
        TypeError: a source, tokenizer or configuration of the wrong type or name.
        ValueError: damaged, of no known kind, unsafe to open, too large once opened, tensors that
            do not fit, or two facts that contradict each other.
    """
    with torch.inference_mode(False), memory_limit(max_bytes), checked(verify):
        attached = None if tokenizer is None else tokenizer_of(tokenizer)
        if (folder := _bundle_folder(source)) is not None:
            _check_no_config(config)
            model = load_generator(folder)
        else:
            model = _build(open_source(source, "source"), config, tokenizer=attached)
        if attached is not None:
            _attach(model, attached)
        return model


def open_source(source: Any, argument: str) -> Contents:
    """The contents of a file, of a folder with weights or of a state dict."""
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        return open_folder(path) if path.is_dir() else open_file(path)
    if isinstance(source, Mapping):
        return Contents("state dict", "state dict", source)
    raise TypeError(f"{argument}: expected a path or a state dict, got {type(source).__name__}")


def recognise(contents: Contents) -> list[Found]:
    """The state dicts in ``contents`` that are of a released format, the preferred one first.

    Kinds come in the order of their first state dict, tokenizers last; averages before the raw
    weights of their kind.
    """
    candidates = state_dicts(contents.tree)
    known = [(one, _found(one) or _inside(one)) for one in candidates]
    found = [inner for _, several in known for inner in several]
    for one, several in known:
        if one.average and not several:
            found += [average for raw in found if (average := _average(one, raw))]
    kinds = [one.format.kind for one in found]
    return sorted(
        (_with_surroundings(one, found) for one in found),
        key=lambda one: (
            one.format.kind.endswith(_TOKENIZER),
            kinds.index(one.format.kind),
            not one.state.average,
        ),
    )


def arguments_of(
    contents: Contents, found: Found, config: Mapping[str, Any], tokenizer: Any = None
) -> Configured:
    """The constructor's arguments; errors of ``config`` and the file name the source."""
    try:
        return configure(found, config, tokenizer)
    except (TypeError, ValueError) as error:
        sort = TypeError if isinstance(error, TypeError) else ValueError
        raise sort(f"{_where(contents, found)}, a {found.format.kind}: {error}") from error


def _found(one: StateDict) -> list[Found]:
    """The format of a state dict, as a list of none or one."""
    if any(kind.matches(one.tensors) for kind in formats.UNSUPPORTED):
        return []
    for kind in formats.FORMATS:
        if one.named and kind.matches(one.tensors):
            return [Found(one, kind, _kept(one.tensors, kind))]
    return []


def _inside(one: StateDict, levels: int = 3) -> list[Found]:
    """What a state dict of no format holds under the first parts of its names."""
    if not one.named or not levels:
        return []
    parts = by_component(one)
    return [found for part in parts for found in _found(part) or _inside(part, levels - 1)]


def _with_surroundings(one: Found, found: list[Found]) -> Found:
    """``one`` with the buffers and records of every state dict of its kind, its own first."""
    buffers: dict[str, Tensor] = {}
    records: dict[str, Mapping[Any, Any]] = {}
    for other in sorted(found, key=lambda other: other is not one):
        if other.format is one.format:
            inner = other.state.tensors.items()
            buffers = {**{k: v for k, v in inner if one.format.ignored(k)}, **buffers}
            records = {**dict(other.state.records), **records}
    return replace(one, buffers=buffers, records=records)


def _kept(tensors: Mapping[str, Tensor], kind: Format) -> dict[str, Tensor]:
    return {name: value for name, value in tensors.items() if not kind.ignored(name)}


def _average(one: StateDict, raw: Found) -> Found | None:
    """The average of ``raw`` that is kept in another form; None where ``one`` is not that."""
    if raw.state.average or (tensors := like(one, raw.tensors)) is None:
        return None
    state = StateDict(one.path, tensors, raw.state.records, average=True)
    return Found(state, raw.format, tensors)


def _check_averages(contents: Contents, found: Found) -> None:
    """Raise where raw weights would be taken though an average of them cannot be read."""
    if found.state.average:
        return
    for one in state_dicts(contents.tree):
        if one.average and not _found(one) and overlaps(one, found.tensors):
            raise ValueError(
                f"{_where(contents, found)}, a {found.format.kind}: expected the average beside it "
                f"({one.nesting}) to have its {len(found.tensors)} tensors, got "
                f"{len(one.tensors)} that differ in names or shapes; pass the inner state dict "
                "itself to load the raw weights"
            )


def _build(
    contents: Contents, config: Mapping[str, Any], ending: str = "", tokenizer: Any = None
) -> nn.Module:
    """The model in ``contents`` whose kind ends with ``ending``.

    A tokenizer beside it in the file is attached, unless another one is given.
    """
    if is_own(contents):
        header = own_header(contents)
        if "tokenizer" in header and ending == _TOKENIZER:
            return build_own_tokenizer(contents)
        # A codebook is data beside the weights, unless the file has one.
        has_one = _CODEBOOK in contents.tree or _CODEBOOK in header.get("data", ())
        free = () if has_one else (_CODEBOOK,)
        _check_no_config({name: config[name] for name in config if name not in free})
        return build_own(contents, **config)
    recognised = recognise(contents)
    found = next((one for one in recognised if one.format.kind.endswith(ending)), None)
    if found is None:
        raise ValueError(_unrecognised(contents, ending))
    takes_one = hasattr(class_of(found.format.kind), "tokenizer")
    beside = [one for one in recognised if one.format.kind.endswith(_TOKENIZER)]
    own = None
    if takes_one and tokenizer is None and beside:
        own = tokenizer = _make(contents, beside[0], {})
    model = _make(contents, found, config, tokenizer)
    if own is not None:
        model.tokenizer = own
    return model


def _make(
    contents: Contents, found: Found, config: Mapping[str, Any], tokenizer: Any = None
) -> nn.Module:
    _check_averages(contents, found)
    arguments = arguments_of(contents, found, config, tokenizer).arguments
    return build_model(_where(contents, found), found.format.kind, arguments, found.tensors)


def _attach(model: nn.Module, tokenizer: Any) -> None:
    if not hasattr(type(model), "tokenizer"):
        raise TypeError(
            f"tokenizer: expected a generator or a teacher to attach it to, got a "
            f"{type(model).__name__}, which takes none"
        )
    model.tokenizer = tokenizer


def tokenizer_of(source: Any) -> Any:
    """``source`` where it is a tokenizer, else the one in the file, folder or state dict it is."""
    if (folder := _bundle_folder(source)) is not None:
        return load_bundle(folder).tokenizer
    if isinstance(source, str | os.PathLike | Mapping):
        source = _build(open_source(source, "tokenizer"), {}, _TOKENIZER)
    if not all(hasattr(source, name) for name in ("encode", "embed", "decode", "codebook")):
        raise TypeError(
            f"tokenizer: expected a tokenizer (encode, embed, decode, codebook) or a path of one, "
            f"got {type(source).__name__}"
        )
    return source


def _bundle_folder(source: Any) -> Path | None:
    """The folder that a recipe wrote, where a path is one; else a folder without weights."""
    if not isinstance(source, str | os.PathLike) or not Path(source).is_dir():
        return None
    folder = Path(source)
    return folder if is_bundle(folder) or not is_folder_of_weights(folder) else None


def _check_no_config(config: Mapping[str, Any]) -> None:
    if config:
        raise TypeError(
            f"config: our own checkpoints carry their configuration, got {', '.join(config)}"
        )


def _where(contents: Contents, found: Found) -> str:
    return f"{contents.source} ({found.nesting})" if found.nesting else contents.source


def unsupported(contents: Contents) -> str:
    """What a file of no format is, where that is known; else empty."""
    candidates = state_dicts(contents.tree)
    for kind in formats.UNSUPPORTED:
        for one in candidates:
            if kind.matches(one.tensors):
                return f"{kind.what} (under {one.nesting})" if one.nesting else kind.what
    return ""


def _unrecognised(contents: Contents, ending: str) -> str:
    kinds = [one.kind for one in formats.FORMATS if one.kind.endswith(ending)]
    expected = f"{contents.source}: expected a dd2_fast checkpoint or one of {', '.join(kinds)}"
    candidates = state_dicts(contents.tree)
    if not candidates:
        keys = ", ".join(shown(repr(key)) for key in list(contents.tree)[:_NAMED]) or "nothing"
        return f"{expected}; found no tensors, only {keys}"
    if what := unsupported(contents):
        return f"{contents.source}: expected one of {', '.join(kinds)}, got {what}"
    largest = max(candidates, key=lambda one: len(one.tensors))
    nesting, tensors = largest.nesting, largest.tensors
    first = list(tensors.items())[:_NAMED]
    names = ", ".join(f"{shown(name)} {list(value.shape)}" for name, value in first)
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
