"""The Triton backend without a GPU: its kernels run by Triton's interpreter, and every variant that
the host code launches compiled ahead for three GPUs, within their shared memory and registers.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_python

from dd2_fast.ops import registry

TESTS = Path(__file__).resolve().parents[1]
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("triton") is None, reason="Triton is not installed"
    ),
    pytest.mark.skipif(INTERPRETED, reason="this process already is the interpreter's"),
]
# ptxas may spill a few words where that lets one more block onto a multiprocessor.
SPILLED_LIMIT = 16  # bytes
CAPABILITIES = (80, 90, 100)
SHARED_LIMIT = {80: 166_912, 90: 232_448, 100: 232_448}  # bytes a block may have

# Of the tests that every backend has to pass, those that take the interpreter least: every kernel,
# filtered and not, every dtype.
QUICK = {
    "add_norm_modulate": "triton and (one_value-layer or tiles-modulated or tiles-rms_every)",
    "conditional_score": "one_code-float32 or ragged-bfloat16 or dense_draws-float16 "
    "or test_minus_infinity_removes_codes[k or test_no_tokens or test_strided",
    "csd_loss": "one_code or dmd-ragged or alpha_two-ragged or test_no_rows",
    "sample_code": "one_code or test_shapes or test_invalid or test_strided",
    "logit_distillation_loss": "(one_code and not bfloat16) or ragged-float32 or no_rows",
    "flow_solve": "one_code-heun-float32 or posterior_mean or two_steps-euler-float16",
    "nearest_code": "few_tokens-0.0 or one_dimension-0.0 or test_equal_codes_give_the_first[8",
    "image_normal": "test_draws_the_definition",
    # The interpreter cuts a float off at bfloat16, which kernels round.
    "block_causal_attention": "(var_tiny and not bfloat16) or strides",
    "group_norm_silu": "(groups_of_5 and not bfloat16) or ragged_channels-residual",
    "triton_kernels": "normal-filters2 or two_values-filters1",
}
# Those that take it seconds.
SLOW = {
    "add_norm_modulate": "triton and (definition or asked or strides or not_depend) "
    "and not bfloat16",
    "conditional_score": "triton and (one_code or ragged-bfloat16 or dense_draws or dense_block "
    "or many_draws-float32 or wide_codes-float16 or ties or invalid or minus_inf or extreme "
    "or strided or leading or no_tokens or one_quantity or filtered-1e-45)",
    "csd_loss": "triton and (dense_block or paper-wide or paper-filtered_draws or dmd-filtered "
    "or low_precision or bounds or invalid or strides or no_rows)",
    "sample_code": "triton and (one_code or shapes or invalid or seeds_of or llamagen-float32)",
    "logit_distillation_loss": "triton and not bfloat16 and (one_code or ragged or ties "
    "or invalid or minus_inf or shapes or no_rows or zero_where or more_than_once)",
    "flow_solve": "triton and (one_code or one_token or two_draws-heun-float32 "
    "or two_draws-euler-bfloat16 or two_steps-heun-float32 or posterior_mean or k-token "
    "or (are_found and 1-triton) or (equal_codes and 7-triton))",
    "image_normal": "triton and not (opcheck or compile or threads)",
    "nearest_code": "triton and not (opcheck or compile or -30)",
    "block_causal_attention": "triton and not (opcheck or compiles or all_heads or refused "
    "or bfloat16 or head_of)",
    "group_norm_silu": "triton and (definition or far_from or constant) and not bfloat16",
    "triton_kernels": "threshold or streamed or size or clustered or digits or draws or flow "
    "or filtered-40-8 or filtered-70-9",
}
# Minutes: the models' sizes, torch.library's checks, torch.compile.
LONG = {
    "conditional_score": "triton and (var-float32 or llamagen-bfloat16 or noise_level or opcheck "
    "or compiles or tiny)",
    "csd_loss": "triton and (paper-var or paper-llamagen or noise_level or opcheck or compiles)",
    "sample_code": "triton and (ragged-bfloat16 or strided or index_alone or ties or opcheck)",
    "flow_solve": "triton and (fine or ragged-heun or no_filter-heun-float32 or draws-heun-float16 "
    "or draws-euler-bfloat16 or one_token or only_kept or equal_codes or invalid or strided "
    "or shapes or opcheck or compiles)",
    "logit_distillation_loss": "triton and not bfloat16 and (var or llamagen or top_p or top_k "
    "or tail or strided or opcheck or compiles)",
    "nearest_code": "triton",
    "triton_kernels": "tiles",
}


def run_interpreted(select: str, folder: Path, *names: str) -> int:
    """Number of tests of files that pass in a process of the interpreter; none may do else."""
    command = ["-W", "ignore", "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["-c", str(TESTS.parent / "pyproject.toml")]
    command += [str(TESTS / "ops" / f"test_{name}.py") for name in names]
    interpreter = {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    output = run_python(*command, "-k", select, folder=folder, timeout=3600, **interpreter)
    passed = re.search(r"^(\d+) passed, \d+ deselected|^(\d+) passed in", output, re.M)
    assert passed, output
    return int(passed[1] or passed[2])


@pytest.mark.slow
def test_interpreted(tmp_path: Path) -> None:
    selects = [f"(test_{name}.py and triton and ({select}))" for name, select in QUICK.items()]
    assert run_interpreted(" or ".join(selects), tmp_path, *QUICK) >= 30


@pytest.mark.long
@pytest.mark.parametrize(("name", "select"), SLOW.items(), ids=SLOW.keys())
def test_interpreted_for_seconds(name: str, select: str, tmp_path: Path) -> None:
    assert run_interpreted(select, tmp_path, name) >= 8


@pytest.mark.long
@pytest.mark.parametrize(("name", "select"), LONG.items(), ids=LONG.keys())
def test_interpreted_at_length(name: str, select: str, tmp_path: Path) -> None:
    assert run_interpreted(select, tmp_path, name) >= 5


class Launch:
    """One launch of a kernel, as far as compilation depends on it."""

    def __init__(self, function: Any, arguments: tuple, options: dict[str, Any]) -> None:
        from triton.compiler import ASTSource

        values = dict(zip(function.arg_names, arguments, strict=False))
        values |= {name: options.pop(name) for name in function.arg_names if name in options}
        signature, constants, attributes = {}, {}, {}
        for index, parameter in enumerate(function.params):
            value = values[parameter.name]
            signature[parameter.name] = kind = type_of(value)
            general = parameter.is_constexpr or not parameter.do_not_specialize
            if (
                parameter.is_constexpr
                or value is None
                or (general and kind == "i32" and value == 1)
            ):
                signature[parameter.name] = "constexpr"
                constants[index,] = value
            elif kind[0] == "*" or (general and value % 16 == 0):
                attributes[index,] = [["tt.divisibility", 16]]
        self.source = ASTSource(function, signature, constants, attributes)
        self.options = options
        self.key = f"{function.__name__} {signature} {constants} {attributes} {options}"


def type_of(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        names = {
            torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16",
            torch.int32: "i32", torch.int64: "i64",
        }  # fmt: skip
        return "*" + names[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


def call_operators() -> None:
    """The backend's functions on every kind of input that has a kernel variant of its own."""
    from dd2_fast.ops.add_norm_modulate import triton as norms
    from dd2_fast.ops.block_causal_attention import triton as attention
    from dd2_fast.ops.conditional_score import triton as conditional_score
    from dd2_fast.ops.csd_loss import triton as csd_loss
    from dd2_fast.ops.flow_solve import triton as flow_solve
    from dd2_fast.ops.group_norm_silu import triton as group_norm_silu
    from dd2_fast.ops.image_normal import triton as image_normal
    from dd2_fast.ops.logit_distillation_loss import triton as logit_distillation_loss
    from dd2_fast.ops.nearest_code import triton as nearest_code
    from dd2_fast.ops.sample_code import triton as sample_code

    half, wide = torch.bfloat16, torch.float32
    for vocabulary, dim, dtype, guided, top_k, top_p in (
        (1, 1, wide, False, 0, 1.0),
        (4096, 32, wide, False, 0, 1.0),
        (16384, 8, half, True, 900, 1.0),
        (20_000, 64, torch.float16, True, 0, 0.9),
        (1001, 32, half, True, 9, 1.0),
        (1001, 200, wide, True, 0, 1.0),
        (4096, 32, half, True, 900, 0.95),
    ):
        x_t, t = torch.zeros(64, 1, dim), torch.zeros(64, 1)
        logits, codebook = torch.zeros(64, vocabulary, dtype=dtype), torch.zeros(vocabulary, dim)
        teacher = (logits, logits if guided else None, torch.zeros(64))
        conditional_score.conditional_x0(x_t, t, *teacher, codebook, top_k, top_p)
        conditional_score.conditional_x0_vjp(x_t, x_t, t, *teacher, codebook, top_k, top_p)
        for solver in ("heun", "euler"):
            flow_solve.flow_solve(x_t, *teacher, codebook, 20, solver, top_k, top_p)
        student = (torch.zeros(64), torch.zeros(64, 5), logits, *teacher)
        logit_distillation_loss.logit_distillation_loss(logits, *teacher, top_k, top_p)
        logit_distillation_loss.logit_distillation_loss_backward(*student)
        seed = torch.zeros((), dtype=torch.int64)
        for index in (None, torch.arange(64)):
            sample_code.sample_code(*teacher, seed, index, top_k, top_p, 0.7)
    for size, tokens, dtype in ((16, 30, half), (64, 680, half), (64, 680, wide), (128, 70, wide)):
        qkv, gain = torch.zeros(1, tokens, 3, 2, size, dtype=dtype), torch.zeros(2)
        rotary, ends = torch.zeros(tokens, size // 2, 2), (1, 5, 14, 30, 55, tokens)
        for blocks, gained, turned, strict in (
            (ends, gain, None, False),
            (ends, gain, None, True),
            ((), None, rotary, False),
        ):
            attention.block_causal_attention(qkv, blocks, gained, turned, strict, 1.0)
    # VAR's blocks, its flow head, LlamaGen's blocks and the small family's.
    for width, dtype, shapes, plus_one, layer in (
        (1024, half, (1, 1), True, True),
        (2304, half, (1, 1), True, True),
        (1024, wide, (1, 1), True, True),
        (1024, half, (680, 680), True, True),
        (1024, half, (None, 1), False, False),
        (64, wide, (None, 1), False, True),
    ):
        h = torch.zeros(2, 680, width, dtype=dtype)
        rows = [None if n is None else h[:, :n] for n in shapes]
        gain = rows[1] if plus_one else rows[1][:1]  # of each image or row, or of all
        for branch, gate in ((None, None), (h, rows[0])):
            given = (branch, gate, None, gain, gain if layer else None)
            _, y, mean, rstd = norms.add_norm_modulate(h, *given, plus_one, layer, 1e-6)
            wants = [True, gate is not None, True, False, True, True]
            norms.add_norm_modulate_backward(h, y, h, mean, rstd, *given, plus_one, layer, wants)
    for channels, groups, dtype in ((160, 32, half), (640, 32, wide), (30, 6, torch.float16)):
        maps, vector = torch.zeros(2, 700, channels, dtype=dtype), torch.zeros(channels)
        for pre_bias, residual, silu in ((None, None, True), (vector, None, False),
                                         (vector, maps, True)):  # fmt: skip
            group_norm_silu.group_norm_silu(
                maps, vector, vector, groups, 1e-6, silu, pre_bias, residual
            )
    nearest_code.nearest_code(x_t[:, 0], codebook)
    image_normal.image_normal(None, 1, torch.arange(64), (680, 32), 0)
    posterior = (x_t, t, *teacher, codebook, top_k, top_p)
    for weight, sid, objective, alpha, wants in (
        (None, 1.0, "sid", 1.0, True),
        (t, 0.0, "sid", 2.0, True),
        (None, 1.0, "dmd", 1.0, False),
    ):
        csd_loss.csd_loss(x_t[:, 0], x_t, weight, sid, objective, alpha, wants, *posterior)


def launches(monkeypatch: pytest.MonkeyPatch, major: int) -> list[Launch]:
    """What the host code launches for a GPU of a compute capability, each variant once."""
    from triton.runtime.jit import JITFunction

    from dd2_fast.ops.conditional_score import triton as conditional_score

    found: dict[str, Launch] = {}

    def record(function: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        launch = Launch(function, arguments, options)
        found[launch.key] = launch

    monkeypatch.setattr(JITFunction, "run", record)
    monkeypatch.setattr(conditional_score, "compute_major", lambda tensor: major)
    call_operators()
    return list(found.values())


def spilled_bytes(ptx: str, capability: int, folder: Path) -> int:
    from triton.backends.nvidia import compiler

    source = folder / "kernel.ptx"
    source.write_text(ptx)
    architecture = re.search(r"\.target (sm_\w+)", ptx)[1]
    command = [compiler.get_ptxas(capability).path, "-v", f"--gpu-name={architecture}"]
    run = subprocess.run(
        [*command, str(source), "-o", os.devnull], capture_output=True, text=True, check=True
    )
    return sum(map(int, re.findall(r"(\d+) bytes spill stores", run.stderr)))


@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_compiles_within_limits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capability: int
) -> None:
    """Each variant for one of the GPUs."""
    part = CAPABILITIES.index(capability)
    assert_compile(monkeypatch, tmp_path, capability, slice(part, None, len(CAPABILITIES)))


@pytest.mark.long
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_all_compile_within_limits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capability: int
) -> None:
    assert_compile(monkeypatch, tmp_path, capability, slice(None))


def assert_compile(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capability: int, part: slice
) -> None:
    import triton
    from triton.backends.compiler import GPUTarget

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    found = launches(monkeypatch, capability // 10)
    assert len({launch.source.name for launch in found}) == 18
    for launch in found[part]:
        target = GPUTarget("cuda", capability, 32)
        compiled = triton.compile(launch.source, target=target, options=launch.options)
        assert compiled.metadata.shared <= SHARED_LIMIT[capability], launch.key
        assert spilled_bytes(compiled.asm["ptx"], capability, tmp_path) <= SPILLED_LIMIT, launch.key


def test_registry_offers_it_after_the_compiled_kernels() -> None:
    assert registry.BACKENDS.index("triton") == registry.BACKENDS.index("cupy") + 1
