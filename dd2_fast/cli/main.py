"""Parsing of the arguments, and what errors and exit codes look like."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

from .. import __version__
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
    _open_streams()
    parser = build_parser()
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as leaving:
        return int(leaving.code or 0)
    if arguments.command is None:
        parser.print_help()
        return EXIT_ERROR
    try:
        code = arguments.run(arguments)
        _flush()
        return code
    except KeyboardInterrupt as interrupt:
        _complain(f"\n{PROGRAM}: {interrupt or 'interrupted'}")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has left; the interpreter's own flush at exit would fail again.
        _discard_output()
        return EXIT_PIPE
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        message = _one_line(error)
    except MemoryError as error:
        message = _one_line(error) or "not enough memory"
    except RuntimeError as error:
        if not str(error).startswith(("backend ", "device: ")):
            raise
        message = _one_line(error)
    _complain(f"{PROGRAM}: error: {message}")
    return EXIT_ERROR


def _open_streams() -> None:
    """Open those that the caller has closed, whose numbers the next files would get; let a path
    that is not UTF-8 be printed."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _flush() -> None:
    """Write out what was printed, so that a full disk is an error here, not at exit."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        _discard_output()
        raise OSError(error.errno, f"cannot write: {error.strerror}", "standard output") from error


def _discard_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _complain(text: str) -> None:
    with suppress(OSError):  # nobody may read it any more
        print(text, file=sys.stderr, flush=True)


def _one_line(error: Exception) -> str:
    """Return the message of an error, without errno and line breaks."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(text.split())
