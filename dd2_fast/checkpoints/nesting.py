"""The state dicts in a checkpoint, however training code has nested, wrapped and averaged them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..reading import shown

# Where public training code keeps weights, in order of preference; averages come first anywhere.
NESTING = (
    "ema_parameters",
    "ema",
    "trainer",
    "var_wo_ddp",
    "model",
    "module",
    "state_dict",
    "vae_local",
    "vae",
)
CONFIG = "config.json"  # of a hub's folder, which is as if it were in the file
# Where it keeps what the model was made with.
_RECORDS = (
    CONFIG,
    *("config", "cfg", "args", "opt", "hparams", "hyper_parameters", "params"),
    *("model_args", "model_config", "model_kwargs", "vae_kwargs"),
)

_DEEPEST, _LONGEST, _WIDEST = 8, 1000, 8  # levels, characters of a name, prefixes looked into
_WRAPPERS = re.compile(
    r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_fpw_module)\."
)
_PARTS = r"model|net|network|params?|weights|state|dict"
_AVERAGE = re.compile(  # of a name in small letters whose words are apart
    r"(?:^|[^a-z])(?:emas?|swa|avg|averag(?:e|es|ed|ing)|movingaverages?|shadow|polyak)(?:[^a-z]|$)"
    rf"|(?:^|[^a-z])(?:ema|swa|avg)(?:{_PARTS})|(?:{_PARTS})(?:ema|swa|avg)(?:[^a-z]|$)"
    rf"|^mean_?(?:{_PARTS}|teacher)"
)
_WORDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_NO_WEIGHTS = re.compile(r"optim|sched|scaler|(?:^|_)opt$", re.IGNORECASE)
# Scalars that averages keep among their weights; that of torch's tells that it is one.
_TELLING = "n_averaged"
_COUNTERS = (_TELLING, "num_updates", "initted", "decay", "updates", "step", "steps", "epoch")


Record = tuple[str, Mapping[Any, Any]]


@dataclass(frozen=True)
class StateDict:
    """A state dict and its surroundings.

    Attributes:
        path: the names it lies under. tensors: without the prefixes that wrapping gave them.
        records: (where, entries) of each configuration beside or above it, the nearest last.
        average: whether it is an average of weights. named: False for a list of tensors.
    """

    path: tuple[str, ...]
    tensors: dict[str, Tensor]
    records: tuple[Record, ...] = ()
    average: bool = False
    named: bool = True

    @property
    def nesting(self) -> str:
        """The names it lies under, with dots, printable."""
        return shown(".".join(self.path))


def is_average(name: str) -> bool:
    """Whether training code calls averaged weights so: ``ema``, ``model_ema``, ``swa_model``..."""
    return _AVERAGE.search(_WORDS.sub("_", name).lower()) is not None


def state_dicts(tree: Mapping[Any, Any]) -> list[StateDict]:
    """Every state dict in ``tree``, in the order of :data:`NESTING`, then of ``tree``.

    Names lose what data parallelism, compilation and nesting put before them (``module.``,
    ``_orig_mod.``, ...), and a dictionary whose names say that it holds several is taken apart.
    """
    return list(_walk(tree, (), (), set()))


def by_component(one: StateDict) -> list[StateDict]:
    """``one`` taken apart by the first part of its names: the largest parts."""
    groups: dict[str, dict[str, Tensor]] = {}
    for name, value in one.tensors.items():
        first, _, rest = name.partition(".")
        if rest:
            groups.setdefault(first, {})[rest] = value
    parts = []
    for first in sorted(groups, key=lambda name: -len(groups[name]))[:_WIDEST]:
        parts += list(_parts((*one.path, first), groups[first], one.records, one.average))
    return parts


def like(average: StateDict, raw: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """The tensors of ``average`` under the names in ``raw``; None where they are not the same.

    Averages may be kept as a list in the order of the parameters, or without the names' dots.
    """
    if not average.named:
        pairs = list(zip(raw, average.tensors.values(), strict=False))
        if len(raw) != len(average.tensors):
            return None
    else:
        dotless = {name.replace(".", ""): name for name in raw}
        names = [dotless.get(name.replace(".", "")) for name in average.tensors]
        pairs = [
            (name, value)
            for name, value in zip(names, average.tensors.values(), strict=True)
            if name is not None
        ]
    if len(pairs) < len(raw) or any(raw[name].shape != value.shape for name, value in pairs):
        return None
    return dict(pairs)


def overlaps(average: StateDict, raw: Mapping[str, Tensor]) -> bool:
    """Whether ``average`` seems to be one of ``raw``, by half of the names or of the number."""
    if not average.named:
        return 2 * len(average.tensors) >= len(raw)
    dotless = {name.replace(".", "") for name in raw}
    return 2 * sum(name.replace(".", "") in dotless for name in average.tensors) >= len(raw)


def _walk(
    tree: Mapping[Any, Any],
    path: tuple[str, ...],
    records: tuple[Record, ...],
    seen: set[int],
) -> Iterator[StateDict]:
    if id(tree) in seen or len(path) > _DEEPEST:
        return
    seen.add(id(tree))
    records = (*records, *_records(tree, path))
    average = any(map(is_average, path))
    known = [name for name in NESTING if name in tree]
    other = [name for name in tree if name not in NESTING]
    for name in known:
        yield from _inside(tree[name], (*path, name), records, seen)
    tensors = {k: v.detach() for k, v in tree.items() if isinstance(v, Tensor)}
    if tensors and all(isinstance(name, str) for name in tensors):
        yield from _parts(path, tensors, records, average)
    for name in other:
        if not isinstance(tree[name], Tensor) and not _NO_WEIGHTS.search(str(name)):
            yield from _inside(tree[name], (*path, str(name)), records, seen)


def _inside(
    value: Any,
    path: tuple[str, ...],
    records: tuple[Record, ...],
    seen: set[int],
) -> Iterator[StateDict]:
    """The state dicts in an entry: a dictionary, or a list of them or of averaged tensors."""
    if isinstance(value, Mapping):
        yield from _walk(value, path, records, seen)
    elif isinstance(value, list | tuple) and id(value) not in seen and len(path) < _DEEPEST:
        seen.add(id(value))
        tensors = {str(i): v.detach() for i, v in enumerate(value) if isinstance(v, Tensor)}
        if tensors and len(tensors) == len(value) and any(map(is_average, path)):
            yield StateDict(path, tensors, records, average=True, named=False)
        for i, item in enumerate(value):
            if isinstance(item, Mapping):
                yield from _walk(item, (*path, str(i)), records, seen)


def _parts(
    path: tuple[str, ...],
    tensors: dict[str, Tensor],
    records: tuple[Record, ...],
    average: bool,
    levels: int = 2 * _DEEPEST,
) -> Iterator[StateDict]:
    """The state dicts whose names are mixed in one, each without the prefix that marks it."""
    long = any(len(name) > _LONGEST for name in tensors)
    names = list(tensors) if long else [_WRAPPERS.sub("", name) for name in tensors]
    if len(set(names)) < len(names) or long or not levels:
        yield StateDict(path, tensors, records, average)
        return
    renamed = dict(zip(names, tensors.values(), strict=True))
    average = average or _TELLING in renamed
    groups: dict[str, dict[str, Tensor]] = {}
    for name, value in renamed.items():
        if name in _COUNTERS and value.numel() == 1:
            continue
        first, _, rest = name.partition(".")
        prefix = first if rest and (first in NESTING or is_average(first)) else ""
        groups.setdefault(prefix, {})[rest if prefix else name] = value
    for prefix in sorted(groups, key=lambda name: (not is_average(name), name == "")):
        group = groups[prefix]
        if not prefix:
            yield StateDict(path, group, records, average)
        elif is_average(prefix):
            yield from _parts((*path, prefix), group, records, True, levels - 1)
        else:
            here = (*path, prefix) if len(groups) > 1 else path
            yield from _parts(here, group, records, average, levels - 1)


def _records(tree: Mapping[Any, Any], path: tuple[str, ...]) -> Iterator[Record]:
    """The configurations that ``tree`` holds, and those inside them, each once."""
    waiting, seen = [(path, tree)], {id(tree)}
    while waiting:
        where, holder = waiting.pop(0)
        for name in _RECORDS:
            value = holder.get(name)
            entries = value if isinstance(value, Mapping) else getattr(value, "__dict__", None)
            if isinstance(value, Tensor) or not isinstance(entries, Mapping):
                continue
            if id(entries) not in seen:
                seen.add(id(entries))
                waiting.append(((*where, name), entries))
                yield shown(".".join((*where, name))), entries
