"""Parsing of the arguments, and what errors and exit codes look like."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from typing import NoReturn, TextIO

from .. import __version__, processes
from ..reading import shown
from . import (
    app,
    convert,
    demo,
    edit,
    evaluate,
    export,
    fid,
    info,
    inspect,
    make_data,
    plot,
    sample,
    train,
    tune,
)

PROGRAM = "dd2-fast"
_COMMANDS = (  # as --help lists them
    *(info, demo, app, sample, edit, train, tune, evaluate, plot),
    *(make_data, fid, inspect, convert, export),
)
EXIT_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_PIPE = 141
_TOLD = ("backend ", "device: ")  # how those RuntimeErrors begin that users cause


class _Parser(argparse.ArgumentParser):
    """Raises a usage error as any other."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see '{self.prog} --help')")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with every subcommand."""
    parser = _Parser(
        prog=PROGRAM,
        description="One-step image generators distilled from autoregressive teachers.",
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command")
    for module in _COMMANDS:
        module.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 2 for an error, 130 when interrupted.

    The processes of torchrun leave together, and the first that fails says why.
    """
    _open_streams()
    try:
        return _main(argv)
    finally:
        # What nobody can read is no failure; the interpreter would make it one at exit.
        try:
            sys.stderr.flush()
        except OSError:
            _discard(sys.stderr)


def _main(argv: Sequence[str] | None) -> int:
    job = None
    try:
        with processes.together() as job:
            return _run(argv, job)
    except KeyboardInterrupt as interrupt:
        _say(f"\n{PROGRAM}: {interrupt or 'interrupted'}", job)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has left; the interpreter's own flush at exit would fail again.
        _discard(sys.stdout)
        return EXIT_PIPE
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        message = _one_line(error)
    except MemoryError as error:  # NumPy's and the interpreter's
        message = f"out of memory: {_one_line(error) or 'nothing is left'}"
    except RuntimeError as error:
        if "can't allocate memory" in str(error) or "CUDA out of memory" in str(error):
            message = f"out of memory: {_one_line(error)}"
        elif isinstance(error, processes.ProcessFailed) or str(error).startswith(_TOLD):
            message = _one_line(error)
        else:
            raise
    where = f" (process {job.rank} of {job.count})" if job and job.count > 1 else ""
    _say(f"{PROGRAM}: error: {message}{where}", job)
    return EXIT_ERROR


def _run(argv: Sequence[str] | None, job: processes.Job) -> int:
    """Run the command; one that processes do not share is the first process's."""
    parser = build_parser()
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as leaving:  # --help and --version
        return int(leaving.code or 0)
    if arguments.command is None:
        parser.print_help()
        return EXIT_ERROR
    if job.rank > 0 and not getattr(arguments, "shared", False):
        return 0
    from ..checkpoints.checksums import checked

    with checked(getattr(arguments, "verify", True)):
        code = arguments.run(arguments)
    _flush()
    return code


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
        _discard(sys.stdout)
        raise OSError(error.errno, f"cannot write: {error.strerror}", "standard output") from error


def _discard(stream: TextIO) -> None:
    """Whatever is written to it goes nowhere from now on."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _say(text: str, job: processes.Job | None) -> None:
    """Print a line to stderr, if it is this process that speaks for the job."""
    with job.telling() if job else nullcontext(True) as speaks:
        if speaks:
            with suppress(OSError):  # nobody may read it any more
                print(text, file=sys.stderr, flush=True)


def _one_line(error: Exception) -> str:
    """Return the message of an error in one printable line, without errno."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return shown(" ".join(text.split()))
