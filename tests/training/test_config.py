"""Values and bounds of configurations: from TOML, from a command line, and by their fields."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from dd2_fast.cli.settings import apply_settings, field_types
from dd2_fast.training import config
from dd2_fast.training.config import Amount, Checked, Count
from dd2_fast.training.recipes import digits, distil, watching
from dd2_fast.training.settings import as_field, configure


@dataclass(frozen=True)
class Bounds(Checked):
    """Names that once had a meaning have none."""

    decays: Amount = 1.0
    start: int = 1
    noises: Count = 1
    rate: float = 1.0
    size: Count | None = None


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(Bounds)])
def test_the_bound_of_a_field_is_in_its_type(name: str) -> None:
    zero = {name: 0}
    if name in ("start", "rate"):
        with pytest.raises(ValueError, match=f"^{name}: expected a positive number, got 0"):
            Bounds(**zero)
    else:
        assert getattr(Bounds(**zero), name) == 0
    with pytest.raises(ValueError, match=f"^{name}: expected (zero or more|a positive number)"):
        Bounds(**{name: -1})
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"^{name}: expected a finite number"):
            Bounds(**{name: value})


def test_sizes_are_positive_and_rates_may_be_zero() -> None:
    """Of every configuration that comes with the package."""
    sizes = {"batch", "draws", "heads", "layers", "width", "vocabulary", "dimension", "count"}
    sizes |= {"hold", "time_low", "head_width", "head_depth", "ode_steps", "images", "save_every"}
    sizes |= {"guidance_updates", "guidance_floor", "generator_time_low", "guidance_time_low"}
    sizes |= {"report_every", "flow_steps", "pair_batch", "temperature"}
    values = [value for m in (config, distil, watching) for value in vars(m).values()]
    kinds = {k for k in values if isinstance(k, type) and issubclass(k, Checked)} - {Checked}
    assert len(kinds) > 8
    found = set()
    for kind in kinds:
        for one in dataclasses.fields(kind):
            value = getattr(kind(), one.name)
            if isinstance(value, int | float) and not isinstance(value, bool):
                try:
                    dataclasses.replace(kind(), **{one.name: 0})
                except ValueError as error:
                    if "continuous_steps" not in str(error):
                        found.add(one.name)
    assert found == sizes


@dataclass(frozen=True)
class Inner:
    rate: float = 0.1
    betas: tuple[float, float] = (0.0, 0.99)
    sizes: tuple[int, ...] = (1,)


@dataclass(frozen=True)
class Values:
    seed: Count = 0
    name: str = "a"
    fast: bool = False
    limit: int | None = None
    kind: Literal["sid", "dmd"] = "sid"
    inner: Inner = field(default_factory=Inner)


SAME: list[tuple[str, Any, Any]] = [
    ("seed", "3", 3),
    ("name", "none", "none"),
    ("fast", "yes", True),
    ("limit", "7", 7),
    ("kind", "dmd", "dmd"),
    ("inner.rate", "1e-3", 1e-3),
    ("inner.rate", "2", 2),
    ("inner.betas", "(0, 0.9)", [0, 0.9]),
    ("inner.sizes", "4,5,6", [4, 5, 6]),
    ("inner.sizes", "", []),
]


@pytest.mark.parametrize(("name", "text", "value"), SAME)
def test_a_file_and_a_command_line_give_the_same(name: str, text: str, value: Any) -> None:
    kind = field_types(Values())[name]
    section, _, last = name.rpartition(".")
    table = {section: {last: value}} if section else {last: value}
    assert apply_settings(Values(), [f"{name}={text}"]) == configure(Values(), table)
    first, second = as_field(name, text, kind, text=True), as_field(name, value, kind)
    assert first == second and type(first) is type(second)


@pytest.mark.parametrize(
    ("name", "text", "value", "expected"),
    [
        ("seed", "1.5", 1.5, "an integer"),
        ("seed", "yes", True, "an integer"),
        ("limit", "few", "few", "an integer"),
        ("fast", "2", 1, "true or false"),
        ("inner.rate", "quick", "1", "a number"),
        ("inner.rate", "inf", float("inf"), "a finite number"),
        ("inner.betas", "0.1", [0.1], "2 values"),
        ("inner.betas", "0.1,x", [0.1, "x"], "a number"),
        ("inner.betas", "", [], "2 values"),
        ("inner.sizes", ",", [""], "an integer"),
        ("kind", "kl", "kl", "one of sid, dmd"),
    ],
)
def test_both_refuse_with_the_same_words(name: str, text: str, value: Any, expected: str) -> None:
    kind = field_types(Values())[name]
    with pytest.raises(ValueError, match=f"^{name}: expected {expected}"):
        as_field(name, text, kind, text=True)
    with pytest.raises((TypeError, ValueError), match=f"^{name}: expected {expected}"):
        as_field(name, value, kind)


def test_assignments_are_applied_together() -> None:
    """What is refused half-way only may be given in any order."""
    both = ["method=dd1", "regression.steps=3"]
    wanted = apply_settings(distil.DistilConfig(), both)
    assert wanted == apply_settings(distil.DistilConfig(), both[::-1])
    assert wanted.method == "dd1" and wanted.regression.steps == 3
    with pytest.raises(ValueError, match="^distill.batch: expected a positive number"):
        apply_settings(digits.DigitsConfig(), ["distill.batch=0"])


def test_a_class_that_got_another_name_keeps_the_old_one() -> None:
    assert config.DistillConfig is type(distil.DistilConfig().distill) is config.CsdConfig
