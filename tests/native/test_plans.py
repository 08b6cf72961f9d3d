"""How the GPU kernels are launched (csrc/plan): what fits in shared memory, how many blocks, where
tensor cores pay."""

from __future__ import annotations

import ctypes
from itertools import product
from typing import Any, NamedTuple

import pytest
from native.build import operators

from dd2_fast.ops import extension
from dd2_fast.ops.block_causal_attention.native import BlockCausalAttentionParams
from dd2_fast.ops.conditional_score.native import ConditionalScoreParams, CsdLossParams
from dd2_fast.ops.flow_solve.native import FlowSolveParams
from dd2_fast.ops.group_norm_silu.native import GroupNormSiluParams
from dd2_fast.ops.image_normal.native import ImageNormalParams
from dd2_fast.ops.logit_distillation_loss.native import LogitDistillationLossParams
from dd2_fast.ops.nearest_code.native import NearestCodeParams
from dd2_fast.ops.sample_code.native import SampleCodeParams
from dd2_fast.ops.small_generator.native import SmallGeneratorParams
from dd2_fast.ops.small_network import SmallTransformer
from dd2_fast.ops.structs import TeacherRows, params_of

ADDRESS = 4096  # of tensors that nothing reads
OWN = 16_384  # bytes of shared memory that are left to a kernel
H200_SHARED, A100_SHARED = 232_448, 166_912  # bytes a block can have

pytestmark = pytest.mark.skipif(extension.load()[0] is None, reason="no compiled extension")


class Launch(NamedTuple):
    """As in bindings.cpp."""

    kernel: str
    grid: tuple[int, int]
    threads: int
    shared: int


def plan(
    op: str, params: ctypes.Structure, processors: int = 132, shared: int = H200_SHARED
) -> tuple[int, list[Launch]]:
    """Bytes of workspace, and the launches."""
    function = getattr(extension.native(), f"plan_{op}")
    workspace, launches = function(ctypes.addressof(params), processors, shared)
    return workspace, [Launch(*launch) for launch in launches]


def the_launch(op: str, params: ctypes.Structure, **device: int) -> Launch:
    workspace, (launch,) = plan(op, params, **device)
    assert workspace == 0
    return launch


def teacher(
    rows: int = 5, vocabulary: int = 100, top_k: int = 0, top_p: float = 1.0, logit_type: int = 0
) -> TeacherRows:
    return TeacherRows(
        rows=rows, vocabulary=vocabulary, top_k=top_k, top_p=top_p, logit_type=logit_type
    )


def score(dim: int, draws: int = 2, **rows: Any) -> ConditionalScoreParams:
    return ConditionalScoreParams(teacher=teacher(**rows), dim=dim, draws=draws)


FILTERS = {
    "none": (0, 1.0, False), "every_code": (10**7, 1.0, False), "top_k": (900, 1.0, True),
    "top_p": (0, 0.5, True),
}  # fmt: skip


@pytest.mark.parametrize("shared", [H200_SHARED, A100_SHARED])
@pytest.mark.parametrize("filters", FILTERS.values(), ids=FILTERS)
def test_rows_are_staged_where_they_fit(filters: tuple, shared: int) -> None:
    """Those of the score only if filtered; all of the flow, which reads them at every step."""
    top_k, top_p, filtered = filters
    vectors = 4 * 4 * 32  # bytes: four vectors of a token
    logit_type = 3 if filtered else 0  # LogitType::kAny: one kernel for filtered rows of every type
    for fits in (True, False):
        vocabulary = (shared - OWN - vectors) // 4 + (not fits)
        rows = {"vocabulary": vocabulary, "top_k": top_k, "top_p": top_p}
        flag = str(filtered and fits).lower()
        bytes_ = vectors + (4 * vocabulary if filtered and fits else 0)
        assert the_launch("conditional_score", score(32, **rows), shared=shared) == Launch(
            f"conditional_score_fwd_kernel<LogitType({logit_type}), 32, false, {flag}>",
            (5, 1),
            256,
            bytes_,
        )
        params = FlowSolveParams(teacher=teacher(**rows), dim=32, draws=1, steps=2)
        bytes_ = vectors + (4 * vocabulary if fits else 0)
        assert the_launch("flow_solve", params, shared=shared) == Launch(
            f"flow_solve_fwd_kernel<32, {str(fits).lower()}>", (5, 1), 256, bytes_
        )


@pytest.mark.parametrize("fits", [True, False])
@pytest.mark.parametrize("logit_type", [0, 1, 2])
def test_rows_to_draw_from_are_staged_where_they_fit(logit_type: int, fits: bool) -> None:
    vocabulary = (H200_SHARED - OWN) // 4 + (not fits)
    rows = teacher(vocabulary=vocabulary, logit_type=logit_type)
    assert the_launch("sample_code", SampleCodeParams(teacher=rows)) == Launch(
        f"sample_code_fwd_kernel<LogitType({3 if fits else logit_type}), 256, {str(fits).lower()}>",
        (5, 1), 256, 4 * vocabulary if fits else 0,
    )  # fmt: skip


@pytest.mark.parametrize(("vocabulary", "threads"), [(1, 64), (4096, 64), (4097, 256)])
def test_short_rows_to_draw_from_take_fewer_threads(vocabulary: int, threads: int) -> None:
    launch = the_launch("sample_code", SampleCodeParams(teacher=teacher(vocabulary=vocabulary)))
    assert launch.threads == threads
    assert launch.kernel == f"sample_code_fwd_kernel<LogitType(3), {threads}, true>"


@pytest.mark.parametrize(
    ("vocabulary", "threads", "staged"),
    [(1, 64, True), (4096, 64, True), (4097, 256, True), (10**6, 256, False)],
)
def test_launches_of_a_students_loss(vocabulary: int, threads: int, staged: bool) -> None:
    """One kernel for logits of all types; its gradient takes no shared memory."""
    for logit_type in range(3):
        rows = teacher(vocabulary=vocabulary, logit_type=logit_type)
        params = LogitDistillationLossParams(teacher=rows, loss=ADDRESS, student_type=logit_type)
        assert the_launch("logit_distillation_loss", params) == Launch(
            f"logit_distillation_loss_fwd_kernel<{threads}, {str(staged).lower()}>", (5, 1),
            threads, 16 * -(-vocabulary // 4) if staged else 0,
        )  # fmt: skip
        params = LogitDistillationLossParams(teacher=rows, gradient=ADDRESS)
        assert the_launch("logit_distillation_loss", params) == Launch(
            "logit_distillation_gradient_kernel", (5, 1), 256, 0
        )


# dim, and the width and number of the blocks that a row takes
@pytest.mark.parametrize(
    ("dim", "width", "blocks"), [(1, 8, 1), (8, 8, 1), (9, 32, 1), (32, 32, 1), (70, 32, 3)]
)
@pytest.mark.parametrize("jacobian", [False, True])
def test_blocks_of_dimensions(dim: int, width: int, blocks: int, jacobian: bool) -> None:
    params = score(dim)
    params.direction = ADDRESS if jacobian else 0
    kernel = f"conditional_score_fwd_kernel<LogitType(0), {width}, {str(jacobian).lower()}, false>"
    shared = 4 * 4 * blocks * width
    assert the_launch("conditional_score", params) == Launch(kernel, (5, blocks), 256, shared)
    params.csd = CsdLossParams(loss=ADDRESS)  # needs all of them in one
    assert the_launch("conditional_score", params) == Launch(kernel, (5, 1), 256, shared)


@pytest.mark.parametrize(
    ("rows", "draws", "blocks"),
    [(1, 1, 1), (1, 1000, 264), (131, 3, 3), (131, 1000, 3), (265, 9, 1)],
)
def test_blocks_that_share_a_rows_draws(rows: int, draws: int, blocks: int) -> None:
    """As many as leave no multiprocessor idle."""
    params = FlowSolveParams(teacher=teacher(rows), dim=8, draws=draws, steps=2)
    assert the_launch("flow_solve", params).grid == (rows, blocks)


@pytest.mark.parametrize(
    ("rows", "grid"), [(1, 1), (128, 16), (8448, 1056), (8449, 67), (10**7, 78_125)]
)
@pytest.mark.parametrize("dim", [8, 9, 33])
def test_few_tokens_take_smaller_blocks(rows: int, grid: int, dim: int) -> None:
    """Where those of 128 tokens would fill half of 132 multiprocessors at most."""
    width, wide, few = 8 if dim == 8 else 32, dim > 32, rows <= 8448
    kernel = f"nearest_code_fwd_kernel<{width}, {wide}, {few}>".lower()
    params = NearestCodeParams(rows=rows, vocabulary=9, dim=dim)
    assert the_launch("nearest_code", params) == Launch(kernel, (grid, 1), 256, 0)


@pytest.mark.parametrize(
    ("images", "count", "blocks"),
    [(1, 1, 1), (7, 1024, 7), (7, 1025, 8), (100_000, 21_760, 2_125_000)],
)
def test_a_thread_draws_four_numbers(images: int, count: int, blocks: int) -> None:
    params = ImageNormalParams(images=images, count=count)
    assert the_launch("image_normal", params) == Launch(
        "image_normal_fwd_kernel", (blocks, 1), 256, 0
    )


def small(grid: int, dim: int, width: int, head_width: int, images: int) -> SmallGeneratorParams:
    network = SmallTransformer(
        weights=ADDRESS, classes=11, tokens=grid**2, dim=dim, width=width, layers=3, heads=4
    )
    return SmallGeneratorParams(
        network, decoder=ADDRESS, images=images, head_width=head_width, head_blocks=2,
        decoder_width=48,
    )  # fmt: skip


def test_small_images_stay_in_shared_memory_where_they_fit() -> None:
    """Else a workspace has those that run side by side."""
    # Noise; h, y and another; the widest layer; four partial sums of three times 96; zeros.
    row, codes, sums = 96 + 8, 16 * (16 + 8), 4 * 16 * (3 * 96 + 16)
    digits = 4 * (codes + 3 * 16 * row + 16 * 4 * row + sums + row)
    kernel = "small_generator_fwd_kernel"
    for shared in (H200_SHARED, A100_SHARED):
        assert the_launch("small_generator", small(4, 8, 64, 96, 5), shared=shared) == Launch(
            f"{kernel}<true>", (5, 1), 384, digits
        )
    row = 256 + 8
    largest = 4 * (64 * (16 + 8) + 3 * 64 * row + 64 * 4 * row + 64 * (4 * 256 + 16) + row)
    for images, blocks in ((5, 5), (999, 132)):
        params = small(8, 16, 256, 256, images)
        launch = Launch(f"{kernel}<false>", (blocks, 1), 384, 0)
        assert plan("small_generator", params) == (blocks * largest, [launch])


def test_nothing_is_launched_for_nothing() -> None:
    nothing = {
        "conditional_score": [score(3, rows=0), score(3, draws=0)],
        "flow_solve": [
            FlowSolveParams(teacher=teacher(0), dim=3, draws=1),
            FlowSolveParams(teacher=teacher(1), dim=3, draws=0),
        ],
        "image_normal": [ImageNormalParams(images=i, count=n) for i, n in ((0, 9), (9, 0))],
        "block_causal_attention": [attention(0), attention(1, 0)],
        "group_norm_silu": [norm(0, 9, 16), norm(9, 0, 16)],
        "logit_distillation_loss": [
            LogitDistillationLossParams(teacher=teacher(0), loss=loss) for loss in (0, ADDRESS)
        ],
        "nearest_code": [NearestCodeParams(rows=0, vocabulary=9, dim=3)],
        "sample_code": [SampleCodeParams(teacher=teacher(0))],
        "small_generator": [small(4, 8, 64, 96, 0), SmallGeneratorParams(images=3)],
    }  # fmt: skip
    for op, all_params in nothing.items():
        for params in all_params:
            assert plan(op, params) == (0, [])


def workspace_size(params: ConditionalScoreParams) -> int:
    """Bytes: the scale and the centre of the codes; a tile of 64 codes: two halves a value, half a
    squared length; then two floats a filtered row."""
    rows, dim = params.teacher, params.dim
    padded = 16 if dim <= 16 else 32 if dim <= 32 else 64
    tiles = -(-rows.vocabulary // 64) * 256 * (padded + 1)
    return 128 + 256 + tiles + (8 * rows.rows if rows.filtered() else 0)


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
def test_choice_of_tensor_cores(name: str) -> None:
    rows, vocabulary, dim, draws, top_k, jacobian, tensor_cores = CHOICES[name]
    params = score(dim, draws, rows=rows, vocabulary=vocabulary, top_k=top_k)
    params.direction = ADDRESS if jacobian else 0
    workspace, _ = plan("conditional_score", params)
    assert workspace == (workspace_size(params) if tensor_cores else 0)


@pytest.mark.parametrize(
    ("dim", "width", "jacobian", "top_k"),
    [(8, 16, False, 0), (17, 32, True, 900), (32, 32, False, 900), (64, 64, False, 0)],
)
def test_launches_by_tensor_cores(dim: int, width: int, jacobian: bool, top_k: int) -> None:
    """What a workspace asks for."""
    params = score(dim, draws=3, rows=700, vocabulary=4000, top_k=top_k, logit_type=1)
    params.direction, params.workspace = ADDRESS if jacobian else 0, ADDRESS
    narrow, flag = 8 if dim == 8 else 32, str(jacobian).lower()
    # Two tiles; of every one of 64 tokens one vector of sums, or two, eight floats apart.
    shared = 2 * 256 * (width + 1) + (2 if jacobian else 1) * 4 * 64 * (width + 8)
    filters = [Launch("row_filter_kernel<64, true>", (700, 1), 64, 16_000)]
    _, launches = plan("conditional_score", params)
    assert launches == [
        Launch(f"split_codebook_kernel<{width}>", (63, 1), 256, 0),
        *(filters if top_k else []),
        Launch(
            f"dense_score_fwd_kernel<LogitType(1), {width}, {flag}, {str(top_k > 0).lower()}>",
            (33, 1), 128, shared,
        ),
        Launch(
            f"direct_score_fwd_kernel<{narrow}, {flag}>",
            (264, 1), 256, 4 * 4 * -(-dim // narrow) * narrow,
        ),
    ]  # fmt: skip


def norm(images: int, pixels: int, channels: int, **fields: int) -> GroupNormSiluParams:
    """Arguments of a norm in 32 groups, or in one."""
    groups = 32 if channels % 32 == 0 else 1
    return GroupNormSiluParams(
        images=images, pixels=pixels, channels=channels, groups=groups, **{"silu": 1} | fields
    )


@pytest.mark.parametrize(
    ("images", "side", "channels", "blocks"),
    [
        (1, 256, 160, 264),  # fills the device twice
        (64, 256, 160, 17),  # eight times
        (1, 16, 640, 6),  # sixteen pixels a thread
        (1, 1, 640, 1),
    ],
)
def test_launches_of_a_norm(images: int, side: int, channels: int, blocks: int) -> None:
    params = norm(images, side**2, channels, type=1, residual=ADDRESS, sum=ADDRESS)
    rows, grid = 256 // (channels // 8), images * blocks
    workspace, launched = plan("group_norm_silu", params)
    assert workspace == 8 * 32 * grid
    assert launched == [
        Launch(
            "norm_moments_kernel<LogitType(1), true, true>", (grid, 1), 256, 8 * rows * channels
        ),
        Launch("group_norm_silu_fwd_kernel<LogitType(1), true, true>", (grid, 1), 256, 8 * 32),
    ]
    params.x = ADDRESS + 2
    assert all(launch.kernel.endswith(", false>") for launch in plan("group_norm_silu", params)[1])


def attention(
    images: int, tokens: int = 680, size: int = 64, type: int = 1
) -> BlockCausalAttentionParams:
    return BlockCausalAttentionParams(images=images, tokens=tokens, heads=16, size=size, type=type)


@pytest.mark.parametrize(
    ("images", "size", "type", "blocks", "rows"),
    [
        (1, 64, 1, 16 * 11, 64),
        (2, 64, 1, 2 * 16 * 11, 64),
        (3, 64, 2, 3 * 16 * 6, 128),  # fill the device twice
        (64, 24, 1, 64 * 16 * 6, 128),
        (1, 64, 0, 16 * 11, 64),
        (1, 65, 1, 16 * 22, 32),
        (9, 128, 0, 9 * 16 * 11, 64),
    ],
)
def test_blocks_of_attention(images: int, size: int, type: int, blocks: int, rows: int) -> None:
    """Queries; tiles of 64 keys and values, two on their way where a value is of one part."""
    padded, parts, stages = (
        (64 if size <= 64 else 128),
        (3 if type == 0 else 1),
        (1 if type == 0 else 2),
    )
    shared = 2 * padded * parts * (rows + stages * 2 * 64) + 4 * (64 + rows)
    for device in (H200_SHARED, A100_SHARED):
        launch = the_launch(
            "block_causal_attention", attention(images, 680, size, type), shared=device
        )
        kernel = f"block_causal_attention_fwd_kernel<LogitType({type}), {padded}>"
        assert launch == Launch(kernel, (blocks, 1), 128, shared)
        assert OWN + shared <= device


def kernels() -> dict[str, set[str]]:
    """Every kernel that a plan can name, by operator."""
    found: dict[str, set[str]] = {}

    def add(op: str, params: ctypes.Structure, processors: int = 132) -> None:
        found.setdefault(op, set()).update(k.kernel for k in plan(op, params, processors)[1])

    for logit_type, vocabulary, top_k in product(range(3), (9, 9000, 10**6), (0, 5)):
        rows = teacher(vocabulary=vocabulary, top_k=top_k, logit_type=logit_type)
        add("sample_code", SampleCodeParams(teacher=rows))
        for loss in (0, ADDRESS):
            add("logit_distillation_loss", LogitDistillationLossParams(teacher=rows, loss=loss))
        for dim in (8, 16, 32, 64):
            add("flow_solve", FlowSolveParams(teacher=rows, dim=dim, draws=1, steps=1))
            for direction, workspace in product((0, ADDRESS), (0, ADDRESS)):
                if workspace and direction and dim > 32:
                    continue
                params = ConditionalScoreParams(teacher=rows, dim=dim, draws=1)
                params.direction, params.workspace = direction, workspace
                add("conditional_score", params)
    for channels, type, residual, silu in product((9, 16), range(3), (0, ADDRESS), (0, 1)):
        add("group_norm_silu", norm(9, 9, channels, type=type, residual=residual, silu=silu))
    for size, type in product((64, 128), range(3)):
        add("block_causal_attention", attention(1, size=size, type=type))
    for dim, processors in product((8, 32, 33), (1, 132)):
        add("nearest_code", NearestCodeParams(rows=9, vocabulary=9, dim=dim), processors)
    for grid, width in ((4, 64), (8, 256)):
        add("small_generator", small(grid, 8, width, width, 1))
    for op in set(operators()) - set(found):
        add(op, nines(params_of(op)))
    return found


def nines(struct: type[ctypes.Structure]) -> ctypes.Structure:
    """Every size is 9, for operators whose kernel does not depend on it."""
    params = struct()
    for name, kind, *_ in struct._fields_:
        if kind is ctypes.c_longlong:
            setattr(params, name, 9)
        elif issubclass(kind, ctypes.Structure):
            setattr(params, name, nines(kind))
    return params
