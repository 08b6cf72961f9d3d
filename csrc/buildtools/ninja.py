"""A build.ninja, for paths and flags of any characters."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

# What ninja itself puts into a command.
_PLACES = ("$in", "$out", "$flags", "$out.d")


class NinjaFile:
    """Ninja runs in ``folder`` and rebuilds what a changed source, header or flag touches.

    Paths are written relative to ``folder``: then no character of where the checkout lies reaches
    a compiler, and objects are the same wherever it lies.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lines = ["ninja_required_version = 1.5"]
        self.objects: list[str] = []

    def relative(self, path: Path) -> str:
        return os.path.relpath(path, self.folder)

    def rule(self, name: str, command: list[str], depfile: bool = True) -> None:
        words = [word if word in _PLACES else _value(shlex.quote(word)) for word in command]
        self.lines += [f"rule {name}", f"  command = {' '.join(words)}"]
        if depfile:
            self.lines += ["  depfile = $out.d", "  deps = gcc"]

    def compile(self, rule: str, source: Path, suffix: str = "", flags: Sequence[str] = ()) -> None:
        target = _path(f"{source.stem}{suffix}{source.suffix}.o")
        self.lines += [
            f"build {target}: {rule} {_path(self.relative(source))}",
            f"  flags = {_value(shlex.join(flags))}",
        ]
        self.objects.append(target)

    def link(self, target: Path) -> None:
        self.lines += [f"build {_path(self.relative(target))}: link {' '.join(self.objects)}", ""]

    def write(self) -> None:
        content = os.fsencode("\n".join(self.lines))
        (self.folder / "build.ninja").write_bytes(content)


def _value(text: str) -> str:
    if "\n" in text:
        raise SystemExit(f"the build takes no path or flag with a line break, got {text!r}")
    return text.replace("$", "$$")


def _path(text: str) -> str:
    return _value(text).replace(" ", "$ ").replace(":", "$:")
