"""The launchers of csrc/cuda, over a CUDA runtime that records: the ``cupy`` backend's plans choose
the same kernel, grid and shared memory for the same arguments and device; tensor cores are chosen
where they pay."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path

import pytest
from native.fake_cupy import H200_SHARED, STREAM, FakeCupy, Launch, install
from native.structs import Shim
from torch import device

from dd2_fast.ops import launch
from dd2_fast.ops.conditional_score import plan as conditional_score
from dd2_fast.ops.flow_solve import plan as flow_solve
from dd2_fast.ops.image_normal import plan as image_normal
from dd2_fast.ops.nearest_code import plan as nearest_code
from dd2_fast.ops.sample_code import plan as sample_code
from dd2_fast.ops.structs import (
    ConditionalScoreParams,
    CsdLossParams,
    FlowSolveParams,
    ImageNormalParams,
    NearestCodeParams,
    SampleCodeParams,
    TeacherRows,
)

ADDRESS = 4096  # of tensors that nothing reads
A100_SHARED = 166_912
# bytes a block can have, bytes of every kernel, multiprocessors
DEVICES = [
    (H200_SHARED, 1456, 132), (A100_SHARED, 1456, 108), (50_000, 600, 2), (H200_SHARED, 0, 132)
]  # fmt: skip
# vocabularies about the limits of those devices
VOCABULARIES = (1, 12_000, 16_384, 41_000, 57_748, 58_112, 58_113)
FILTERS = ((0, 1.0), (900, 1.0), (0, 0.5), (10**7, 1.0))


def teachers(counts: Sequence[int] = (0, 43_520)) -> list[TeacherRows]:
    return [
        TeacherRows(
            logits=ADDRESS, scale=ADDRESS, rows=rows, vocabulary=vocabulary, top_k=top_k,
            top_p=top_p, logit_type=logit_type,
        )
        for rows, vocabulary, (top_k, top_p), logit_type in product(
            counts, VOCABULARIES, FILTERS, range(3)
        )
    ]  # fmt: skip


def conditional_score_params() -> list[ConditionalScoreParams]:
    return [
        ConditionalScoreParams(
            teacher=teacher, direction=direction, dim=dim, draws=2, csd=CsdLossParams(loss=loss)
        )
        for teacher, direction, loss, dim in product(
            teachers(), (0, ADDRESS), (0, ADDRESS), (1, 8, 9, 32, 33, 70)
        )
    ] + [ConditionalScoreParams(teacher=teachers()[-1], dim=3, draws=0)]


def flow_solve_params() -> list[FlowSolveParams]:
    """A row's draws are shared by as many blocks as rows leave multiprocessors idle."""
    return [
        FlowSolveParams(teacher=teacher, dim=dim, draws=draws, steps=2, heun=True)
        for teacher, dim, draws in product(
            teachers((0, 1, 131, 43_520)), (1, 8, 9, 32, 33, 70), (0, 1, 3, 1000)
        )
    ]


def sample_code_params() -> list[SampleCodeParams]:
    return [SampleCodeParams(teacher=teacher, inverse_temperature=1.0) for teacher in teachers()]


def nearest_code_params() -> list[NearestCodeParams]:
    return [
        NearestCodeParams(rows=rows, vocabulary=9, dim=dim)
        for rows, dim in product((0, 1, 128, 8448, 8449, 10**7), (1, 8, 9, 32, 33))
    ]


def image_normal_params() -> list[ImageNormalParams]:
    return [
        ImageNormalParams(images=images, count=count)
        for images, count in product((0, 1, 7, 10**5), (0, 1, 4, 1023, 1024, 1025, 21_760))
    ]


OPERATORS = {
    "conditional_score": (conditional_score, conditional_score_params),
    "flow_solve": (flow_solve, flow_solve_params),
    "sample_code": (sample_code, sample_code_params),
    "image_normal": (image_normal, image_normal_params),
    "nearest_code": (nearest_code, nearest_code_params),
}


@pytest.mark.parametrize("op", OPERATORS)
@pytest.mark.parametrize("limits", DEVICES, ids=lambda limits: "{}-{}-{}".format(*limits))
def test_plans_equal_the_launchers(
    op: str, limits: tuple[int, int, int], request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    shim: Shim = request.getfixturevalue(f"{op}_shim")
    shared_limit, static_shared, processors = limits
    launches: list[Launch] = []
    install(monkeypatch, FakeCupy(launches.append, shared_limit, static_shared), tmp_path)
    module, make_params = OPERATORS[op]
    fills_processors = op in ("flow_solve", "nearest_code")
    plan = partial(module.plan, processors=processors) if fills_processors else module.plan
    seen = set()
    for params in make_params():
        recorded = shim.launched(
            params, stream=STREAM, shared_limit=shared_limit, static_shared=static_shared,
            processors=processors,
        )  # fmt: skip
        launches.clear()
        launch.launch(plan(params), params, device("cuda"))
        planned = [(i.kernel, i.params, i.grid, i.block, i.shared, i.stream) for i in launches]
        wanted = [] if recorded.kernel is None else [
            (recorded.kernel.decode(), ctypes.addressof(params), tuple(recorded.grid),
             tuple(recorded.block), recorded.shared, recorded.stream)
        ]  # fmt: skip
        assert planned == wanted
        seen |= {kernel for kernel, *_ in planned}
    assert seen == set(module.KERNELS)


# (rows, vocabulary, dim, draws, top_k, jacobian) and whether an H200 solves them by tensor cores
CHOICES = {
    "no_rows": (0, 4096, 32, 1, 0, False, False),
    "no_draws": (680, 4096, 32, 0, 0, False, False),
    "var": (43_520, 4096, 32, 1, 0, False, True),
    "var_filtered": (43_520, 4096, 32, 1, 900, False, True),
    "var_jacobian": (43_520, 4096, 32, 1, 900, True, True),
    "one_var_image": (680, 4096, 32, 1, 0, False, False),
    "llamagen": (16_384, 16_384, 8, 1, 0, False, True),
    "llamagen_filtered": (16_384, 16_384, 8, 1, 900, False, False),
    "llamagen_draws": (16_384, 16_384, 8, 8, 900, False, False),
    "widest": (43_520, 4096, 64, 1, 0, False, True),
    "widest_jacobian": (43_520, 4096, 64, 1, 0, True, False),
    "too_wide": (43_520, 4096, 65, 1, 0, False, False),
}


@pytest.mark.parametrize("name", CHOICES)
def test_choice_of_tensor_cores(conditional_score_shim: Shim, name: str) -> None:
    rows, vocabulary, dim, draws, top_k, jacobian, tensor_cores = CHOICES[name]
    teacher = TeacherRows(rows=rows, vocabulary=vocabulary, top_k=top_k, top_p=1.0)
    params = ConditionalScoreParams(
        teacher=teacher, dim=dim, draws=draws, direction=ADDRESS if jacobian else 0
    )
    workspace = conditional_score_shim.library.conditional_score_workspace
    workspace.restype = ctypes.c_longlong
    # A tile of 64 codes: two halves a value, half a squared length; then two floats a filtered row.
    padded = 16 if dim <= 16 else 32 if dim <= 32 else 64
    header = 128 + 256  # the scale and the centre of the codes
    size = header + vocabulary // 64 * 256 * (padded + 1) + (8 * rows if top_k else 0)
    assert workspace(ctypes.byref(params), 132) == (size if tensor_cores else 0)


def test_a_workspace_asks_for_tensor_cores(conditional_score_shim: Shim) -> None:
    teacher = TeacherRows(rows=43_520, vocabulary=4096, top_p=1.0)
    params = ConditionalScoreParams(teacher=teacher, dim=32, draws=1, workspace=ADDRESS)
    with pytest.raises(AssertionError, match="tensor cores"):
        conditional_score_shim.launched(
            params, stream=STREAM, shared_limit=H200_SHARED, static_shared=0
        )
