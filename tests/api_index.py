"""The index of the public API, `dd2_fast/API.md`, made from signatures and docstrings by griffe.

`python tests/api_index.py` writes it anew; a test compares it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import griffe

ROOT = Path(__file__).parents[1]
PATH = ROOT / "dd2_fast" / "API.md"
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
    package = griffe.load("dd2_fast", search_paths=[ROOT])
    lines, told = [_HEAD], {}
    for name in MODULES:
        module = package[name] if name else package
        lines += [f"## `{module.path}`", "", first_sentence(module), ""]
        for public in sorted(map(str, module.exports), key=str.lower):
            value = target(module[public])
            if value.is_module and public in value.members:  # a function that has its module's name
                value = target(value[public])
            if value.is_module:
                lines.append(f"- `{public}`: {first_sentence(value)}")
            elif value.path in told:
                lines.append(f"- `{public}`: the same as `{told[value.path]}.{public}`.")
            elif not public.startswith("__"):
                told[value.path] = module.path
                lines += entries(public, value)
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def target(value: griffe.Object | griffe.Alias) -> griffe.Object:
    """What a name stands for."""
    return value.final_target if isinstance(value, griffe.Alias) else value


def entries(name: str, value: griffe.Object) -> Iterator[str]:
    """The line of a function or a class, and those of its own public methods."""
    yield f"- `{signature(name, value)}`: {first_sentence(value)}"
    if not value.is_class:
        return
    for method, found in sorted(value.all_members.items()):
        inner = target(found)
        if method[0] == "_" or method in _INNER or not inner.has_docstring:
            continue
        if "property" in inner.labels:
            yield f"  - `.{method}`: {first_sentence(inner)}"
        elif inner.is_function:
            yield f"  - `.{signature(method, inner)}`: {first_sentence(inner)}"


def signature(name: str, value: griffe.Object) -> str:
    """As it is written, without `self` or `cls`, on one line."""
    call = target(value.all_members["__init__"]) if value.is_class else value
    text: str = call.signature(name=name, return_type=not value.is_class)
    return re.sub(r"\((self|cls)(: \w+)?(, )?", "(", text, count=1)


def first_sentence(value: griffe.Object) -> str:
    """Of the docstring, on one line; AssertionError where there is none."""
    assert value.docstring, f"{value.path}: expected a docstring, found none"
    paragraph = " ".join(value.docstring.value.split("\n\n")[0].split())
    sentence = _SENTENCE.match(paragraph)
    plain = _ROLE.sub(r"`\1`", sentence[0] if sentence else paragraph)
    return plain.replace("``", "`").rstrip(".:") + "."


if __name__ == "__main__":
    PATH.write_text(index(), encoding="utf-8")
