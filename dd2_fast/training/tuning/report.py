"""What a study leaves: its trials, the best configuration, and a picture of what mattered."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...checkpoints.files import write_atomic
from ..settings import flatten
from .space import own_values, trial_config
from .study import CPU, DISTANCES, ENDED, OWN, Study, import_optuna

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .tuner import Task

TRIALS, BEST, PICTURE = "trials.json", "best.toml", "importances.png"
_FEWEST = 4  # trials to tell importances by
_COLUMNS, _WIDTH, _HEIGHT = 3, 3.6, 2.8


def write_reports(out: Path, task: Task, study: Study, shares: Any = None) -> None:
    """Write `TRIALS`, with what `importances` found, and, where a trial is complete, `BEST`."""
    told = {**summary(task, study), "importances": shares or {}}
    text = json.dumps(told, indent=1, sort_keys=True, allow_nan=False) + "\n"
    write_atomic(out / TRIALS, text.encode())
    best = study.best()
    if best is not None:
        write_atomic(out / BEST, best_toml(task, best).encode())


def summary(task: Task, study: Study) -> dict[str, Any]:
    """What is known of the trials, for `TRIALS`."""
    best, kept = study.best(), [_told(task, trial) for trial in study.trials]
    return {
        "recipe": task.recipe,
        "objective": task.objective,
        "judged": dict(task.judged),
        "teacher": study.floor(),
        "search": {name: str(searched) for name, searched in task.space.items()},
        "own": own_values(task.space, task.config),
        "best": None if best is None else best.number,
        "trials": [trial for trial in kept if trial["state"] not in ("fail", "waiting")],
        "settings": flatten(task.config),
    }


def _told(task: Task, trial: Any) -> dict[str, Any]:
    """A trial; its settings with those that follow from the searched ones."""
    attributes, values = trial.user_attrs, dict(trial.params)
    settings = values
    if len(values) == len(task.space):
        own, flat = flatten(task.config), flatten(trial_config(task.config, values))
        settings = {**values, **{k: v for k, v in flat.items() if own[k] != v and k not in values}}
    value = trial.value if trial.state.name == "COMPLETE" else None
    return {
        "number": trial.number,
        "state": trial.state.name.lower(),
        "own": bool(attributes.get(OWN)),
        "value": value if value is None or math.isfinite(value) else None,
        "reports": {str(k): v for k, v in sorted(trial.intermediate_values.items())},
        "distances": attributes.get(DISTANCES),
        "settings": settings,
        "cpu_seconds": attributes.get(CPU),
        "ended": attributes.get(ENDED),
    }


def importances(study: Study) -> dict[str, dict[str, float]]:
    """Shares of the variance that each setting alone explains, by fANOVA: ``final`` among the
    complete trials, ``early`` among all by their first report. Left out where there are too few
    trials, or all are alike."""
    optuna = import_optuna()
    ended = [t for t in study.trials if t.state.name in ("COMPLETE", "PRUNED")]
    first = [(t, t.intermediate_values[min(t.intermediate_values)]) for t in ended
             if t.intermediate_values]  # fmt: skip
    final = [(t, t.value) for t in ended if t.state.name == "COMPLETE"]
    found = {}
    for name, pairs in (("final", final), ("early", first)):
        pairs = [(t, v) for t, v in pairs if v is not None and math.isfinite(v)]
        if len(pairs) < _FEWEST or len({v for _, v in pairs}) < 2 or len(study.space) < 2:
            continue
        copy = optuna.create_study(direction="minimize")
        copy.add_trials(
            optuna.trial.create_trial(params=t.params, distributions=t.distributions, value=v)
            for t, v in pairs
        )
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        try:
            told = optuna.importance.get_param_importances(copy, evaluator=evaluator)
        except ValueError:  # no setting has two values
            continue
        found[name] = {key: float(value) for key, value in told.items()}
    return found


def best_toml(task: Task, best: Any) -> str:
    """The configuration of a trial, as ``dd2-fast train`` takes it."""
    config = trial_config(task.config, dict(best.params))
    head = f"# Trial {best.number} of dd2-fast tune, {task.objective} {best.value:.4f}.\n"
    return head + toml_of(task.recipe, config)


def toml_of(recipe: str, config: Any) -> str:
    """A configuration as TOML: what differs from the recipe's own, but for ``overwrite``.

    Raises:
        ValueError: a setting is None where the recipe's own is not, which TOML cannot say.
    """
    lines, tables = [f"recipe = {json.dumps(recipe)}"], []
    plain = type(config)()
    for field in dataclasses.fields(config):
        value, usual = getattr(config, field.name), getattr(plain, field.name)
        if field.name == "overwrite" or value == usual:
            continue
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            inner = [
                _line(one.name, getattr(value, one.name), f"{field.name}.")
                for one in dataclasses.fields(value)
                if getattr(value, one.name) != getattr(usual, one.name)
            ]
            tables += ["", f"[{field.name}]", *inner]
        else:
            lines.append(_line(field.name, value))
    return "\n".join([*lines, *tables]) + "\n"


def _line(name: str, value: Any, section: str = "") -> str:
    if value is None:
        raise ValueError(f"{section}{name}: expected a value that TOML has, got None")
    # JSON's numbers, texts and lists are TOML's too.
    return f"{name} = {json.dumps(list(value) if isinstance(value, tuple) else value)}"


def finish(out: Path, task: Task, study: Study) -> bool:
    """Write the reports with importances, and `PICTURE` of them and of the distance over each
    setting; False where there are too few trials for it.

    Raises:
        ImportError: matplotlib or scikit-learn is not installed.
    """
    shares = importances(study)
    with study.alone():
        write_reports(out, task, study, shares)
    if not shares:
        return False
    picture = io.BytesIO()
    figure = _figure(task, summary(task, study), shares)
    figure.savefig(picture, format="png", dpi=110, metadata={"Software": None})
    write_atomic(out / PICTURE, picture.getvalue())
    return True


def _figure(task: Task, told: Mapping[str, Any], shares: Mapping[str, Any]) -> Figure:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure as Made
    except ImportError as error:
        raise ImportError(
            "the picture is drawn by matplotlib, which is not installed: "
            "pip install 'dd2-fast[tune]'"
        ) from error
    names = sorted(task.space, key=lambda name: -max(one.get(name, 0) for one in shares.values()))
    rows = -(-(len(names) + 1) // _COLUMNS)
    figure = Made(figsize=(_COLUMNS * _WIDTH, rows * _HEIGHT), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(rows, _COLUMNS, 1)
    for i, (kind, one) in enumerate(shares.items()):
        places = [k + 0.4 * i - 0.2 for k in range(len(names))]
        axes.barh(places, [one.get(name, 0) for name in names], 0.36, label=kind)
    axes.set_yticks(range(len(names)), [_short(name) for name in names], fontsize=7)
    axes.invert_yaxis()
    axes.set_title("share of the variance", fontsize=9)
    axes.legend(fontsize=7)
    for i, name in enumerate(names, 2):
        _slice(figure.add_subplot(rows, _COLUMNS, i), task, told, name)
    return figure


def _slice(axes: Any, task: Task, told: Mapping[str, Any], name: str) -> None:
    """The distance over a setting: of complete trials at the end, of the others at their last
    report."""
    searched, trials = task.space[name], told["trials"]
    place = {choice: i for i, choice in enumerate(searched.choices)}
    groups: tuple[tuple[str, str, Sequence[Any]], ...] = (
        ("o", "C0", [t for t in trials if t["value"] is not None]),
        ("x", "0.6", [t for t in trials if t["value"] is None and t["reports"]]),
    )
    for marker, colour, some in groups:
        xs = [t["settings"][name] for t in some]
        ys = [list(t["reports"].values())[-1] for t in some]
        axes.scatter([place.get(x, x) for x in xs], ys, 14, colour, marker=marker)
    for trial in trials:
        if trial["value"] is not None and (trial["own"] or trial["number"] == told["best"]):
            x = trial["settings"][name]
            text = "own" if trial["own"] else "best"
            axes.annotate(text, (place.get(x, x), trial["value"]), fontsize=7)
    if searched.choices:
        axes.set_xticks(range(len(place)), [str(choice) for choice in place], fontsize=7)
    elif searched.log:
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter("")
    axes.set_yscale("log")
    axes.tick_params(which="both", labelsize=7)
    axes.set_title(_short(name), fontsize=9)


def _short(name: str) -> str:
    return name.partition(".")[2] or name
