"""The index of the public API is the code's, and `dir` shows what there is."""

from __future__ import annotations

from pathlib import Path

import api_index
import griffe
from processes import run_python

import dd2_fast


def test_the_index_is_that_of_the_code() -> None:
    found = api_index.PATH.read_text("utf-8")
    assert found == api_index.index(), "python tests/api_index.py writes it anew"
    for line in ("- `sample_code(logits: Tensor, *, ", "  - `.warm_up(batch_sizes: "):
        assert f"\n{line}" in found


EXAMPLE = '''
def example(a: int, *b: str, c: float = 1.5, d: str = "x", **e: bool) -> None:
    """First of ``all`` (paper Eq. 4),
    over two lines. Not this.

    Nor this.
    """
'''


def test_entries_are_as_written(tmp_path: Path) -> None:
    module = griffe.visit("module", tmp_path / "module.py", EXAMPLE)
    (line,) = api_index.entries("example", module["example"])
    signature = "(a: int, *b: str, c: float = 1.5, d: str = 'x', **e: bool) -> None"
    assert line == f"- `example{signature}`: First of `all` (paper Eq. 4), over two lines."


def test_dir_tells_what_there_is_before_it_is_imported(tmp_path: Path) -> None:
    program = (
        "import dd2_fast, sys\n"
        "print([n for n in dir(dd2_fast) if not n.startswith('__')], 'torch' in sys.modules)"
    )
    names = sorted(name for name in dd2_fast.__all__ if not name.startswith("__"))
    assert run_python("-c", program, folder=tmp_path) == f"{names} False\n"
    assert all(getattr(dd2_fast, name) is not None for name in dd2_fast.__all__)
