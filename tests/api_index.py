"""The index of the public API, `dd2_fast/API.md`, made from signatures and docstrings.

`python tests/api_index.py` writes it anew; a test compares it.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PATH = Path(__file__).parents[1] / "dd2_fast" / "API.md"
MODULES = ("", "ops", "losses", "models", "checkpoints", "sampling", "metrics")
_HEAD = """# Public API

Every public name, from signatures and docstrings, whose rest says shapes, units and errors
(`help(name)`). Made by `python tests/api_index.py`; a test compares it.
"""
# Of the models, what the package calls itself; models/family.py has it for those who add a family.
_INNER = {
    *("advance", "attached", "blocks", "data", "draw_at_once", "dtype", "embed_codes"),
    *("embed_vectors", "modulations", "network_config", "new_cache", "positions", "run_blocks"),
    "run_step",
}
_SENTENCE = re.compile(r".*?(?<!Eq)(?<!Alg)\.(?=\s|$)")
_ROLE = re.compile(r":\w+:`[~.]*([^`]+)`")


def index() -> str:
    """The text of the index."""
    lines, told = [_HEAD], {}
    for name in MODULES:
        module = importlib.import_module(f"dd2_fast.{name}" if name else "dd2_fast")
        lines += [f"## `{module.__name__}`", "", first_sentence(module), ""]
        for public in sorted(module.__all__, key=str.lower):
            value = getattr(module, public)
            if inspect.ismodule(value):
                lines.append(f"- `{public}`: {first_sentence(value)}")
            elif id(value) in told:
                lines.append(f"- `{public}`: the same as `{told[id(value)]}.{public}`.")
            elif not public.startswith("__"):
                told[id(value)] = module.__name__
                lines += entries(public, value)
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def entries(name: str, value: Any) -> Iterator[str]:
    """The line of a function or a class, and those of its own public methods."""
    yield f"- `{name}{signature(value)}`: {first_sentence(value)}"
    if not inspect.isclass(value):
        return
    for method, found in sorted(methods(value).items()):
        if isinstance(found, property):
            yield f"  - `.{method}`: {first_sentence(found)}"
        else:
            yield f"  - `.{method}{signature(found)}`: {first_sentence(found)}"


def methods(kind: type) -> dict[str, Any]:
    """Public methods and properties that this package defines and documents."""
    found: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        if not base.__module__.startswith("dd2_fast."):
            continue
        for name, value in vars(base).items():
            inner = value.__func__ if isinstance(value, classmethod | staticmethod) else value
            documented = isinstance(inner, property) or inspect.isfunction(inner)
            if documented and name[0] != "_" and name not in _INNER and inspect.getdoc(inner):
                found[name] = inner
    return found


def signature(value: Any) -> str:
    """As it is written, without `self` or `cls`, on one line."""
    found = inspect.signature(value)
    parameters = [p for p in found.parameters.values() if p.name not in ("self", "cls")]
    texts, named = [], False
    for one in parameters:
        star = {one.VAR_POSITIONAL: "*", one.VAR_KEYWORD: "**"}.get(one.kind, "")
        if one.kind == one.KEYWORD_ONLY and not named:
            texts.append("*")
        named = named or one.kind in (one.KEYWORD_ONLY, one.VAR_POSITIONAL)
        default = "" if one.default is one.empty else f" = {one.default!r}"
        texts.append(f"{star}{one.name}: {one.annotation}{default}")
    returns = "" if inspect.isclass(value) else f" -> {found.return_annotation}"
    return f"({', '.join(texts)}){returns}"


def first_sentence(value: Any) -> str:
    """Of the docstring, on one line; AssertionError where there is none."""
    text = inspect.getdoc(value)
    assert text, f"{value}: expected a docstring, found none"
    paragraph = " ".join(text.split("\n\n")[0].split())
    sentence = _SENTENCE.match(paragraph)
    plain = _ROLE.sub(r"`\1`", sentence[0] if sentence else paragraph)
    return plain.replace("``", "`").rstrip(".:") + "."


if __name__ == "__main__":
    PATH.write_text(index(), encoding="utf-8")
