"""Parsing of the arguments, and what errors and exit codes look like."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from .. import __version__
from ..reading import shown
from . import convert, demo, fid, info, inspect, make_data, plot, sample, train

PROGRAM = "dd2-fast"
EXIT_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_PIPE = 141


class _Parser(argparse.ArgumentParser):
    """Reports a usage error in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_ERROR, f"{PROGRAM}: error: {message} (see '{self.prog} --help')\n")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with every subcommand."""
    parser = _Parser(
        prog=PROGRAM,
        description="One-step image generators distilled from autoregressive teachers.",
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command")
    for module in (info, demo, sample, train, plot, make_data, fid, inspect, convert):
        module.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 2 for an error, 130 when interrupted."""
    parser = build_parser()
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as leaving:
        return int(leaving.code or 0)
    if arguments.command is None:
        parser.print_help()
        return EXIT_ERROR
    try:
        return arguments.run(arguments)
    except KeyboardInterrupt as interrupt:
        print(f"\n{PROGRAM}: {interrupt or 'interrupted'}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has left; the interpreter's own flush at exit would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        message = _one_line(error)
    except MemoryError as error:  # NumPy's and the interpreter's
        message = f"out of memory: {_one_line(error) or 'nothing is left'}"
    except RuntimeError as error:
        if "can't allocate memory" in str(error) or "CUDA out of memory" in str(error):
            message = f"out of memory: {_one_line(error)}"
        elif str(error).startswith(("backend ", "device: ")):
            message = _one_line(error)
        else:
            raise
    print(f"{PROGRAM}: error: {message}", file=sys.stderr)
    return EXIT_ERROR


def _one_line(error: Exception) -> str:
    """Return the message of an error in one printable line, without errno."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return shown(" ".join(text.split()))
