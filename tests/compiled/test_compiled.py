"""Every GPU kernel runs as compiled: the operators' own tests, against float64, with each backend's
launches executed from PTX on the CPU (:mod:`compiled.plugin`), in processes of their own."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
from compiled.executor import expression_of, ptx
from native.build import operators
from native.compilers import require_nvcc, require_nvrtc
from native.test_plans import kernels
from processes import run_python

from dd2_fast.ops.launch import header_of

TESTS = Path(__file__).resolve().parents[1]
OPS = TESTS.parent / "dd2_fast" / "ops"
# What needs a GPU of its own, torch.compile, or so many rows that it takes minutes.
_NEVER = "compile or graph or opcheck or fill_every or refused"
_MANY = "5000 or follow or quantile or fine or greedy or misleads"
# Regimes that between them take every kernel with every type of logits, and every branch of it;
# which type goes with which regime and backend is for tests/pairwise.py to say.
# Not "ties": every test of a file of properties would match.
QUICK = {
    "block_causal_attention": "equals or head_of or later or strides or one_token",
    "conditional_score": "(matches_float64 and not var) or heavy_ties or invalid or minus_inf "
    "or strided or no_tokens or explains",
    "csd_loss": "((paper or unweighted) and not var and not llamagen) or low_precision or invalid "
    "or strides or bounds or explains",
    "flow_solve": "one_code or ragged or no_filter or many_draws or top_k_draws or invalid "
    "or strided or unaligned or explains",
    "group_norm_silu": "definition or far_from or constant or nan_and or strides",
    "image_normal": "definition",
    "logit_distillation_loss": "definition or heavy_ties or invalid or minus_inf or strided "
    "or explains",
    "nearest_code": "one or many_tokens or wide or first_of or unaligned",
    "sample_code": "equals_the_float64 or heavy_ties or invalid or minus_inf or strided "
    "or explains",
    "small_generator": "ragged or bundled or draws",
}
# Inputs on which digits are lost.
ACCURACY = {
    "conditional_score": f"{QUICK['conditional_score']} or clustered or takes_direct "
    "or far_from_zero or long_sums or any_size or tiny_noise_in or far_tokens_of or would_be "
    "or unaligned or 64_gib",
    "large_values": "test_",
}
# Of the kernels that another backend or architecture has taken that way already.
FEWER = {
    "block_causal_attention": "odd_size or ragged_tiles or wide_heads",
    "conditional_score": "ragged or few_tokens_dense or many_draws or wide_codes or heavy_ties "
    "or invalid",
    "csd_loss": "paper and not var and not llamagen",
    "flow_solve": "ragged or many_draws or top_k_draws or wide_codes",
    "group_norm_silu": "groups_of_5 or several_parts or nan_and or far_from or strides",
    "image_normal": "definition",
    "logit_distillation_loss": "ragged or no_filter or one_code or invalid",
    "nearest_code": "many_tokens or wide",
    "sample_code": "ragged or no_filter or one_code",
    "small_generator": "ragged",
}
# PTX for sm_80 and sm_90 is one (test_ptx_of_two_architectures_is_one), what is launched is not:
# less fits in shared memory.
LEAST = {
    "block_causal_attention": "odd_size",
    "conditional_score": "ragged or few_tokens_dense",
    "csd_loss": "paper and ragged",
    "flow_solve": "ragged",
    "group_norm_silu": "groups_of_5 or ragged_channels",
    "image_normal": "definition",
    "logit_distillation_loss": "ragged",
    "nearest_code": "wide",
    "sample_code": "ragged",
    "small_generator": "ragged or several_panels",  # which takes a workspace there
}
# Filters, ties, what is ruled out and what is invalid, in kernels that small inputs do not take.
ROWS = {
    "conditional_score": "ragged or top_p_only or heavy_ties or invalid or minus_inf or strided",
    "csd_loss": "(paper and not var and not llamagen) or filtered_draws or invalid",
}
STREAMED = ROWS | {
    "flow_solve": "ragged or top_p_draws or invalid",
    "logit_distillation_loss": "ragged or top_p_only or heavy_ties or invalid or minus_inf",
    "sample_code": "(equals_the_float64 and ragged) or heavy_ties or invalid or minus_inf",
}
# What many rows or draws make of a plan: blocks of many tokens, several draws in a block.
ON_ONE_PROCESSOR = {
    "flow_solve": "two_draws or (minus_one and draws)",
    "nearest_code": "ragged or many_tokens or wide or first_of",
}
# Triton's filters of rows, and a kernel after them, in CI; and sums over so many dimensions that
# warps exchange them, where a lane that rounds otherwise than its neighbour is a race.
TRITON = {
    "flow_solve": "wide_codes and bfloat16",
    "conditional_score": "ragged and bfloat16",
    "logit_distillation_loss": "ragged and bfloat16",
    "sample_code": "invalid or (heavy_ties and filters3)",
}
# By Triton; in CI every kind in a tile, a few of whole and ragged tiles, a head of each model.
ATTENTION = {"block_causal_attention": "equals_the or head_of or later or strides or one_token"}
FEW_OF_ATTENTION = {
    "block_causal_attention": "var_tiny or ragged_tiles-unit_strict or whole_tiles-unit or head_of"
}
NORMS = {"add_norm_modulate": "definition or widths or differ or returned or asked or strides"}
FEW_NORMS = {"add_norm_modulate": "(var_d16 and bfloat16) or 1000 or strides"}
# Of an operator that neither names, all tests.
ALL = dict.fromkeys(operators(), "test_")
TENSOR_CORES = {"gpu": "(scores_by_tensor and bfloat16 and not var) or losses_by_tensor"}
OF_TRITON = {name: which for name, which in FEWER.items() if name != "small_generator"}
OF_TRITON |= ATTENTION | NORMS
RUNS = {
    "cuda:90": ALL | QUICK | ACCURACY | TENSOR_CORES,
    "cupy:80": ALL | LEAST | TENSOR_CORES,
    "cupy:90": {
        "conditional_score": "ragged",
        "gpu": "scores_by_tensor and bfloat16 and (kept or narrow)",
    },
    "triton:80": OF_TRITON,
    "triton:90": OF_TRITON | {name: QUICK[name] for name in ("conditional_score", "csd_loss")},
}


def execute(executed: str, selection: dict[str, str], folder: Path, *options: str) -> set[str]:
    """Runs the selected tests of each operator's files; the kernels that they launched."""
    backend = executed.split(":")[0]
    chosen = " or ".join(f"(test_{name} and ({which}))" for name, which in selection.items())
    command = ["-m", "pytest", "-v", "-p", "no:cacheprovider", "-p", "compiled.plugin"]
    command += ["--executed", executed, *options, "-c", str(TESTS.parent / "pyproject.toml")]
    for name in selection:
        command += map(str, sorted((TESTS / "ops").glob(f"test_{name}*.py")))
    command += ["-k", f"{backend} and ({chosen}) and not ({_NEVER})"]
    output = run_python(*command, folder=folder, timeout=3600, OMP_NUM_THREADS="1")
    assert re.search(r"^=+ \d+ passed, \d+ deselected", output, re.M), output
    ran = re.findall(r"test_(\w+)\.py::(.*) PASSED", output)
    for name, which in selection.items():  # each of its words chose something
        for word in re.findall(r"(?<!not )\b(?!or\b|and\b|not\b)\w+", which):
            assert any(file.startswith(name) and word in test for file, test in ran), (name, word)
    (kernels,) = re.findall(r"^executed: (.*)", output, re.M)
    return set(kernels.split())


def require(executed: str) -> None:
    """Skips where what compiles the kernels is missing."""
    if executed.startswith("triton"):
        if importlib.util.find_spec("triton") is None:
            pytest.skip("Triton is not installed")
    else:
        require_nvrtc()


def marks(executed: str) -> list[pytest.MarkDecorator]:
    """All of Triton's kernels take minutes."""
    return [pytest.mark.long if executed.startswith("triton") else pytest.mark.slow]


@pytest.mark.parametrize("executed", [pytest.param(name, marks=marks(name)) for name in RUNS])
def test_operators_equal_float64(executed: str, tmp_path: Path) -> None:
    require(executed)
    launched = execute(executed, RUNS[executed], tmp_path)
    if executed.startswith("triton"):
        assert len(launched) == 18
        return
    wanted = {header_of(kernel) for names in kernels().values() for kernel in names}
    if executed == "cupy:90":
        wanted = {header_of(kernel) for kernel in kernels()["conditional_score"]}
    assert {expression_of(symbol)[0] for symbol in launched} == wanted


@pytest.mark.slow
def test_rows_that_do_not_fit_in_shared_memory(tmp_path: Path) -> None:
    require("cuda:90")
    for symbol in execute("cuda:90", STREAMED, tmp_path, "--streamed"):
        header, kernel = expression_of(symbol)
        assert header not in STREAMED or kernel.endswith(", false>"), "kStaged is the last"


@pytest.mark.slow
def test_every_score_by_tensor_cores(tmp_path: Path) -> None:
    require("cuda:90")
    launched = execute("cuda:90", ROWS, tmp_path, "--tensor-cores", "--streamed")
    assert {expression_of(symbol)[0] for symbol in launched} >= {"dense_score", "row_filter"}


@pytest.mark.slow
def test_one_multiprocessor(tmp_path: Path) -> None:
    """The plans of inputs that keep a whole device busy, for small ones."""
    require("cuda:90")
    launched = execute("cuda:90", ON_ONE_PROCESSOR, tmp_path, "--processors", "1")
    nearest = [name for header, name in map(expression_of, launched) if header == "nearest_code"]
    assert nearest and all(name.endswith(", false>") for name in nearest), "kFew is the last"


@pytest.mark.slow
def test_triton_in_a_few_regimes(tmp_path: Path) -> None:
    """All of them take minutes (above, of -m long)."""
    require("triton:90")
    names = ("conditional_score_fwd", "filter_rows_fwd", "flow_solve_fwd", "keep_codes_fwd")
    names += ("sample_code_fwd", "split_codebook")
    names += ("logit_distillation_loss_fwd", "logit_distillation_gradient")
    assert execute("triton:90", TRITON, tmp_path) == {f"{name}_kernel" for name in names}


@pytest.mark.slow
@pytest.mark.parametrize("arch", [pytest.param(80, marks=pytest.mark.long), 90])
def test_attention_in_a_few_regimes(arch: int, tmp_path: Path) -> None:
    require(f"triton:{arch}")
    launched = execute(f"triton:{arch}", FEW_OF_ATTENTION, tmp_path)
    assert launched == {"block_causal_attention_fwd_kernel"}


@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, pytest.param(90, marks=pytest.mark.long)])
def test_norms_in_a_few_regimes(arch: int, tmp_path: Path) -> None:
    require(f"triton:{arch}")
    launched = execute(f"triton:{arch}", FEW_NORMS, tmp_path)
    assert launched == {f"add_norm_modulate_{name}_kernel" for name in ("fwd", "bwd", "sum")}


@pytest.mark.long
def test_as_nvcc_compiles(tmp_path: Path) -> None:
    """The rest runs what NVRTC makes of the same headers, kernel by kernel."""
    nvcc = require_nvcc()
    assert len(execute("cuda:90", FEWER, tmp_path, "--with-nvcc", nvcc)) > 8


@pytest.mark.long
def test_ptx_of_two_architectures_is_one() -> None:
    """So that a kernel of csrc runs as compiled for either where it does for one."""
    require_nvrtc()

    def text(header: str, kernel: str, arch: str) -> str:
        image = ptx(header, kernel, arch)[0].decode()
        return re.sub(r"\.target \w+", "", image)

    for kernel in set().union(*kernels().values()):
        header = header_of(kernel)
        assert text(header, kernel, "compute_80") == text(header, kernel, "compute_90a"), kernel


@pytest.mark.long
@pytest.mark.parametrize("executed", ["cuda:80", "cuda:90", "cupy:90", "triton:80", "triton:90"])
@pytest.mark.parametrize("operator", QUICK | NORMS)
def test_all_tests_of_operators(executed: str, operator: str, tmp_path: Path) -> None:
    require(executed)
    backend = executed.split(":")[0]
    if not (OPS / operator / f"{backend}.py").exists():
        pytest.skip(f"{operator} has no {backend} backend")
    assert execute(executed, {operator: f"test_ and not ({_MANY})"}, tmp_path)
