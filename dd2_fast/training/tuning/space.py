"""Which settings are searched, between which values, and what a trial makes of them."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..settings import as_field, configure, field_types, flatten

_FIXED = ("seed", "device", "start", "last", "method", "family", "overwrite")
_FIXED_SECTIONS = ("source", "execution", "watch", "evaluation", "evaluation_samples")
# Settings that count steps, by the section whose `batch` says how many images a step has. The
# first of a pair: those whose step is also K guidance updates.
_STEPS = {
    "distill": (("steps",), ("guidance_start", "align_steps")),
    "logits": ((), ("pair_steps", "steps")),
    "regression": ((), ("steps",)),
    "dd1": ((), ("steps",)),
    "adaptation": ((), ("steps",)),
    "stage1": ((), ("head_steps", "steps")),
}
# The stage that a setting changes first; what begins otherwise changes the first of all, and so
# does `dd1.steps`, which says whether there is such a network.
_FIRST = {
    "logits.pair_rate": "logits_start",
    "logits.pair_steps": "logits_start",
    "logits.batch": "logits_start",
    "logits.betas": "logits_start",
    "logits.weight_decay": "logits_start",
    "logits.warmup": "logits_start",
    "logits.hold": "logits_start",
    "logits.ema_decay": "logits_start",
    "logits.temperature": "logits_start",
    "logits.flow_steps": "logits_start",
    "logits.rate": "logits",
    "logits.steps": "logits",
    "adaptation.": "adaptation",
    "stage1.": "stage1",
    "dd1.": "dd1",
    "regression.": "regression",
    "distill.": "guidance",
}
_ORDER = ("adaptation", "stage1", "dd1", "regression", "guidance", "logits_start", "logits")
_RATES, _BATCHES = 4.0, 2  # factors either way of what the configuration has
_FURTHER = 3.0  # of 1 - ema_decay


@dataclass(frozen=True)
class Searched:
    """A setting's values: ``choices``, or the numbers from ``low`` to ``high``, ``log`` evenly in
    the logarithm. Whole numbers where both ends are ``int``."""

    low: Any = None
    high: Any = None
    log: bool = False
    choices: tuple[Any, ...] = ()

    def suggest(self, trial: Any, name: str) -> Any:
        """The value that a trial of Optuna gets."""
        if self.choices:
            return trial.suggest_categorical(name, self.choices)
        kind = trial.suggest_int if isinstance(self.low, int) else trial.suggest_float
        return kind(name, self.low, self.high, log=self.log)

    def holds(self, value: Any) -> bool:
        """Whether ``value`` is one of them."""
        if self.choices:
            return value in self.choices
        return isinstance(value, int | float) and self.low <= value <= self.high

    def ends(self) -> tuple[Any, ...]:
        """The values that a configuration has to accept."""
        return self.choices or (self.low, self.high)

    def __str__(self) -> str:
        if self.choices:
            return ",".join(str(choice) for choice in self.choices)
        return f"{self.low:g}:{self.high:g}{':log' if self.log else ''}"


Space = dict[str, Searched]


def parse_search(texts: Sequence[str], config: Any) -> Space:
    """The space of ``FIELD=LOW:HIGH``, ``FIELD=LOW:HIGH:log`` and ``FIELD=A,B,C``.

    Raises:
        ValueError: names ``--search`` and the field that is unknown, given twice or not to be
            searched, or the value that is not of its type or that the configuration refuses.
    """
    known = {name: kind for name, kind in field_types(config).items() if _may_vary(name)}
    space: Space = {}
    for text in texts:
        name, separator, values = (part.strip() for part in text.partition("="))
        if not separator:
            raise ValueError(
                "--search: expected FIELD=LOW:HIGH, FIELD=LOW:HIGH:log or FIELD=A,B,C, got "
                f"{text!r}"
            )
        if name not in known:
            raise ValueError(
                f"--search: expected one of the fields {', '.join(known)}; got {name!r}"
            )
        if name in space:
            raise ValueError(f"--search: expected each field once, got {name} twice")
        space[name] = _parse(f"--search {name}", values, known[name])
    _check(space, config)
    return space


def _may_vary(name: str) -> bool:
    return name not in _FIXED and name.partition(".")[0] not in _FIXED_SECTIONS


def _parse(argument: str, text: str, kind: Any) -> Searched:
    if typing.get_origin(kind) is tuple:
        raise ValueError(f"{argument}: expected a field of one value, got one of several")
    if ":" not in text:
        parts = [part.strip() for part in text.split(",")]
        choices = tuple(as_field(argument, part, kind, text=True) for part in parts)
        if len(set(choices)) < 2 or len(set(choices)) < len(choices):
            raise ValueError(f"{argument}: expected at least two different values, got {text!r}")
        return Searched(choices=choices)
    if _number(kind) is None:
        raise ValueError(
            f"{argument}: expected values separated by commas for a field that is no number, got "
            f"{text!r}"
        )
    low, high, *more = text.split(":")
    if more not in ([], ["log"]):
        raise ValueError(f"{argument}: expected LOW:HIGH or LOW:HIGH:log, got {text!r}")
    ends = [as_field(argument, end.strip(), kind, text=True) for end in (low, high)]
    if None in ends or ends[0] >= ends[1]:
        raise ValueError(f"{argument}: expected LOW below HIGH, got {text!r}")
    if more and ends[0] <= 0:
        raise ValueError(f"{argument}: expected LOW above 0 for log, got {text!r}")
    return Searched(ends[0], ends[1], bool(more))


def _number(kind: Any) -> type | None:
    """int or float of a field that is a number, or may be None instead."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        kind = next(one for one in typing.get_args(kind) if one is not types.NoneType)
    return kind if kind in (int, float) else None


def _check(space: Space, config: Any) -> None:
    for name, searched in space.items():
        for value in searched.ends():
            try:
                replaced(config, {name: value})
            except ValueError as error:
                raise ValueError(f"--search {name}: {error}") from error


def default_space(config: Any) -> Space:
    """What is searched where nothing is said: around the configuration's own values.

    Learning rates by a factor of 4 either way; the batch by 2, at the same number of images; how
    far the average looks back by 3; of DD2 its weight power and K, and the auxiliary loss where
    there are pairs; of the logit student its temperature.
    """
    flat = flatten(config)
    method = flat.get("method", "dd2")
    space: Space = {}

    def rate(name: str) -> None:
        if flat[name]:
            space[name] = Searched(flat[name] / _RATES, flat[name] * _RATES, log=True)

    def batch(name: str) -> None:
        sizes = {max(1, flat[name] // _BATCHES), flat[name], flat[name] * _BATCHES}
        space[name] = Searched(choices=tuple(sorted(sizes)))

    def average(name: str) -> None:
        back = [(1 - flat[name]) * factor for factor in (_FURTHER, 1.0, 1 / _FURTHER)]
        decays = {flat[name], *(round(1 - one, 5) for one in back if 0 < one < 1)}
        space[name] = Searched(choices=tuple(sorted(decays)))

    if method == "logits":
        if flat["logits.pair_steps"]:
            rate("logits.pair_rate")
        rate("logits.rate")
        batch("logits.batch")
        average("logits.ema_decay")
        space["logits.temperature"] = Searched(0.8, 1.1)
    elif method == "dd1":
        rate("regression.rate")
        batch("regression.batch")
        average("distill.ema_decay")
    else:
        rate("distill.generator_rate")
        rate("distill.guidance_rate")
        batch("distill.batch")
        space["distill.weight_power"] = Searched(0.0, 1.5)
        space["distill.guidance_updates"] = Searched(choices=(1, 2, 3))
        if flat.get("pairs.count"):
            space["distill.auxiliary"] = Searched(choices=(0.0, 0.25, 0.5, 1.0))
    return space


def own_values(space: Space, config: Any) -> dict[str, Any] | None:
    """The configuration's own values, None where one of them is not in the space."""
    flat = flatten(config)
    own = {name: flat[name] for name in space}
    return own if all(space[name].holds(value) for name, value in own.items()) else None


def replaced(config: Any, values: Mapping[str, Any]) -> Any:
    """The configuration with some settings replaced, by dotted names."""
    table: dict[str, Any] = {}
    for name, value in values.items():
        *sections, field = name.split(".")
        section = table
        for part in sections:
            section = section.setdefault(part, {})
        section[field] = value
    return configure(config, table)


def trial_config(config: Any, values: Mapping[str, Any]) -> Any:
    """The configuration of a trial that takes as long as ``config``.

    A batch is traded against steps at the same number of images, and K guidance updates at the same
    number of networks' updates, ``1 + K`` a step, each of which takes about as long as another.
    Steps that are searched themselves stay as they are.
    """
    own, flat = flatten(config), flatten(replaced(config, values))
    changes = dict(values)
    for section, (with_guidance, alone) in _STEPS.items():
        if f"{section}.batch" not in flat:
            continue
        images = own[f"{section}.batch"] / flat[f"{section}.batch"]
        for name in (*with_guidance, *alone):
            field = f"{section}.{name}"
            factor = images
            if name in with_guidance:
                updates = f"{section}.guidance_updates"
                factor *= (1 + own[updates]) / (1 + flat[updates])
            if own[field] and field not in values and not math.isclose(factor, 1.0):
                changes[field] = max(1, round(own[field] * factor))
    return replaced(config, changes)


def changing(space: Space) -> tuple[str, ...]:
    """The settings in which trials differ."""
    names = [
        f"{section}.{name}" for section, pair in _STEPS.items() for part in pair for name in part
    ]
    touched = {name.partition(".")[0] for name in space}
    return tuple({*space, *(name for name in names if name.partition(".")[0] in touched)})


def late_stages(space: Space, config: Any) -> tuple[str, ...]:
    """The stages before which all trials are alike, none where they differ from the start."""
    first = [_stage_of(name, config) for name in space]
    places = [_ORDER.index(stage) for stage in first if stage is not None]
    return _ORDER[min(places) :] if len(places) == len(first) else ()


def _stage_of(name: str, config: Any) -> str | None:
    found = max((key for key in _FIRST if name.startswith(key)), key=len, default=None)
    if found is None or name == "dd1.steps":
        return None
    if name == "distill.ema_decay":  # the average's of DD1 too
        return "dd1"
    return _FIRST[found]


def described(space: Space) -> dict[str, str]:
    """The space as text, by which studies are compared."""
    return {name: str(searched) for name, searched in sorted(space.items())}


def plain(config: Any) -> Any:
    """The configuration with nothing kept, shown or saved but the log."""
    changes: dict[str, Any] = {}
    known = field_types(config)
    quiet = {
        "execution.keep_state": False,
        "execution.keep_every": 0,
        "watch.images_every": 0,
        "watch.tensorboard": False,
        "watch.save_every": 1e9,
    }
    changes.update({name: value for name, value in quiet.items() if name in known})
    return dataclasses.replace(replaced(config, changes), overwrite=False)
