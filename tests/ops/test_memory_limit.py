"""Memory that runs out inside a kernel is a MemoryError, whichever of its allocations fails."""

from __future__ import annotations

import ast
import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
from native.build import compiler_command
from processes import run_python

from dd2_fast.ops import available_backends

# Stands in for aligned_alloc, which every kernel's scratch comes from: the allocation with a number
# fails. The rest of the process is left alone.
FAILING = r"""
#include <cstdlib>
#include <new>
#include <atomic>
#include <dlfcn.h>
static std::atomic<long> left{-1};
extern "C" void fail_after(long count) { left = count; }
extern "C" long still_left() { return left; }
extern "C" void* aligned_alloc(std::size_t alignment, std::size_t size) {
  using Allocate = void* (*)(std::size_t, std::size_t);
  static const auto next = reinterpret_cast<Allocate>(dlsym(RTLD_NEXT, "aligned_alloc"));
  if (left >= 0 && left-- == 0) return nullptr;
  return next(alignment, size);
}
"""

CALLS = """
import ctypes, sys
import torch
from ops.calls import FUNCTIONS, arguments, backed
from dd2_fast.ops import default_backend
library = ctypes.CDLL(sys.argv[1])
library.fail_after.argtypes = [ctypes.c_long]
library.still_left.restype = ctypes.c_long
torch.set_num_threads(3)
failures = {}
with default_backend("cpu"):
    for op, _ in backed(["cpu"]):
        function = FUNCTIONS[op]
        for filters in ({}, {"top_k": 0, "top_p": 1.0}):
            given = arguments(op)
            given |= filters if "top_k" in given else {}
            wanted = function(**given)
            count = 0
            while True:
                library.fail_after(count)
                try:
                    result = function(**given)
                except MemoryError:
                    count += 1
                    continue
                finally:
                    reached = library.still_left() < 0
                    library.fail_after(-1)
                assert torch.equal(result, wanted) and not reached
                break
            failures[op] = failures.get(op, 0) + count
print(failures)
"""


@pytest.mark.skipif(available_backends("cpu")["cpu"] is not None, reason="no compiled kernels")
@pytest.mark.skipif(shutil.which(compiler_command()[0]) is None, reason="no C++ compiler")
def test_every_allocation_may_fail(tmp_path: Path) -> None:
    source, library = tmp_path / "failing.cpp", tmp_path / "failing.so"
    source.write_text(FAILING)
    command = [*compiler_command(), "-O1", "-fPIC", "-shared", str(source), "-o", str(library)]
    subprocess.run([*command, "-ldl"], check=True)
    ctypes.CDLL(str(library))
    output = run_python(
        "-W", "ignore", "-c", CALLS, str(library), folder=tmp_path, timeout=300,
        LD_PRELOAD=str(library),
    )  # fmt: skip
    failures = ast.literal_eval(output.strip().splitlines()[-1])
    assert failures.pop("image_normal") == 0
    assert min(failures.values()) >= 4, failures  # two of nearest_code, in two calls


LIMITED = """
import resource, sys
import torch
from dd2_fast.ops import conditional_score, flow_solve, nearest_code, sample_code
torch.set_num_threads(2)
vocabulary = 2_000_000
logits, codebook = torch.randn(2, vocabulary), torch.randn(vocabulary, 1)
x = torch.randn(2, 1)
torch.randn(300, 300) @ torch.randn(300, 300)
sample_code(logits[:, :9], backend="cpu")  # starts the threads
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
errors = 0
for room in range(0, 160, 16):
    resource.setrlimit(resource.RLIMIT_AS, (used + (room << 20), resource.RLIM_INFINITY))
    for call in (
        lambda: conditional_score(x, 1.0, logits, codebook, backend="cpu"),
        lambda: conditional_score(x, 1.0, logits, codebook, top_k=9, backend="cpu"),
        lambda: sample_code(logits, top_p=0.9, backend="cpu"),
        lambda: flow_solve(x, logits, codebook, steps=1, top_k=900, backend="cpu"),
        lambda: nearest_code(x, codebook, backend="cpu"),
    ):
        try:
            call()
        except MemoryError:
            errors += 1
        except RuntimeError as error:  # torch's own tensors
            assert "can't allocate memory" in str(error), error
print(errors)
"""


@pytest.mark.skipif(available_backends("cpu")["cpu"] is not None, reason="no compiled kernels")
@pytest.mark.slow
def test_limited_address_space(tmp_path: Path) -> None:
    output = run_python("-W", "ignore", "-c", LIMITED, folder=tmp_path, timeout=300)
    assert int(output) > 5
