"""A generator and its decoder as one file that runs without this package."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from .. import __version__
from ..ambient import outside_autocast
from ..checkpoints.files import check_file, replacing
from ..condition import Rows
from ..metrics.evaluation_mode import evaluation_mode
from ..models import LogitStudent
from ..models.prepared import prepare
from .arguments import integer
from .outputs import pixels
from .sampler import Sampler

Write = Callable[[ExportedProgram, dict[str, str], Path, Path], None]

FORMATS = (".pt2", ".onnx", ".aoti")
_BATCH = 2  # of the example, where the file takes any
_LARGEST_ONNX = (1 << 31) - (1 << 24)  # bytes of weights: a protobuf holds 2 GiB, the graph too


def export(
    model: Any,
    path: str | os.PathLike[str],
    *,
    batch: int | None = None,
    steps: int = 1,
    teacher_steps: int = 0,
    uint8: bool = False,
) -> None:
    """Write a one-step generator and its decoder as one file that runs without this package.

    Its inputs are ``noise``, float32 ``[B, n, C]``, and ``labels``, int64 ``[B]``; its output is
    ``images``, float32 ``[B, c, H, W]`` in [0, 1]. They are the sampler's for the noise of its
    (seed, index), which the guide makes in NumPy. Labels are not checked, and an image whose values
    were not finite is NaN.

    Args:
        model: as of `Sampler`, or a sampler, whose steps are then the file's.
        path: the ending says what is written, and it replaces a file that is there.
            ``.onnx``: ONNX, for onnxruntime and others; weights of 2 GB and more, which one such
            file cannot hold, lie beside it in ``NAME.onnx.data``.
            ``.pt2``: for ``torch.export.load`` on any machine.
            ``.aoti``: compiled by AOTInductor for this kind of processor, for
            ``torch._inductor.aoti_load_package`` or C++ without Python; it takes a minute and a C++
            compiler.
        batch: B; None: the file takes any from 1.
        steps: 2 for the second step of DD1's students.
        teacher_steps: 0 or 1; others are refused, as the teacher's steps are no single pass.
        uint8: write a file whose images are uint8 ``[B, H, W, c]``.

    The file computes in the dtype and on the kind of device that the model has; ONNX names no
    device. With it go the version and what images are conditioned on (ONNX's metadata, the extra
    file ``dd2_fast.json``, AOTInductor's metadata).

    Raises ValueError or TypeError for arguments out of range, what `Sampler` and `torch.export`
    raise, OSError for a path that cannot be written, ModuleNotFoundError where ONNX needs packages
    that are not installed (extra ``export``), FileNotFoundError without a C++ compiler.
    """
    path = Path(path)
    write = writer(path)
    if batch is not None and integer(batch, "batch") < 1:
        raise ValueError(f"batch: expected at least 1, or None for any, got {batch}")
    if isinstance(model, Sampler):
        sampler, teacher_steps = model, max(model.teacher_steps, teacher_steps)
        if model.rounded is not None:
            raise ValueError(f'model: expected a sampler of another dtype than "{model.rounded}"')
    check_one_pass(teacher_steps)
    if not isinstance(model, Sampler):
        sampler = Sampler(model, steps=steps)
    _check_networks(sampler)
    check_file(path)
    settings = {name: str(value) for name, value in sampler.condition.settings.items()}
    program = exported(sampler, batch, uint8)
    with replacing(path) as temporary, _quietly():
        write(program, {"dd2_fast": __version__, **settings}, temporary, path)


def exported(sampler: Sampler, batch: int | None, uint8: bool) -> ExportedProgram:
    """The pass of a sampler's networks as a graph of torch's own operators and their weights."""
    codebook, condition = sampler.tokenizer.codebook, sampler.condition
    device, count = codebook.device, _BATCH if batch is None else batch
    labels = condition.to(condition.draw("balanced", 0, torch.arange(count, device="cpu")), device)
    noise = torch.zeros(count, sampler.num_tokens, codebook.shape[1], device=device)
    shapes = None
    if batch is None:
        rows = torch.export.Dim("batch", min=1)
        shapes = {0: rows}, pytree.tree_map(lambda _: {0: rows}, labels)
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        outside_autocast(device),
        evaluation_mode(sampler._all_modules),
    ):
        network = _Pass(sampler, uint8)
        return _used(torch.export.export(network, (noise, labels), dynamic_shapes=shapes))


class _Pass(nn.Module):
    """Images of noise ``[B, n, C]`` and conditions."""

    def __init__(self, sampler: Sampler, uint8: bool) -> None:
        super().__init__()
        self.generator, self.tokenizer = prepare(sampler.generator), prepare(sampler.tokenizer)
        self.options = {"steps": sampler.steps} if sampler.steps > 1 else {}
        self.uint8 = uint8

    def forward(self, noise: Tensor, labels: Rows) -> Tensor:
        noise = noise.to(self.tokenizer.codebook.dtype)
        images = self.tokenizer.decode(self.generator(noise, labels, **self.options))
        return pixels(images) if self.uint8 else images.float()


def _used(program: ExportedProgram) -> ExportedProgram:
    """A program without the tensors that its graph does not read: the encoder's, and those that
    prepared networks have others in the place of."""
    graph, signature = program.graph, program.graph_signature
    unread = {node.name for node in graph.find_nodes(op="placeholder") if not node.users}
    gone = {spec.arg.name for spec in signature.input_specs if spec.target} & unread
    for node in graph.find_nodes(op="placeholder"):
        if node.name in gone:
            graph.erase_node(node)
    signature.input_specs = [s for s in signature.input_specs if s.arg.name not in gone]
    targets = {spec.target for spec in signature.input_specs}
    tensors, constants = (
        {name: tensor for name, tensor in named.items() if name in targets}
        for named in (program.state_dict, program.constants)
    )
    return ExportedProgram(
        root=program.graph_module,
        graph=graph,
        graph_signature=signature,
        state_dict=tensors,
        range_constraints=program.range_constraints,
        module_call_graph=program.module_call_graph,
        example_inputs=program.example_inputs,
        constants=constants,
        verifiers=program.verifiers,
    )


def check_one_pass(teacher_steps: int) -> None:
    """Raise ValueError, with the reason, for steps that no file holds."""
    if integer(teacher_steps, "teacher_steps") > 1:
        raise ValueError(
            f"teacher_steps: expected 0 or 1 for a file, got {teacher_steps}: the teacher's steps "
            "draw random tokens one after the other and keep what they have read between them, "
            "where a file is one pass from noise to images; refine with dd2_fast.Sampler(model, "
            f"teacher_steps={teacher_steps})"
        )


def _check_networks(sampler: Sampler) -> None:
    """Raise ValueError, with the reason, for a sampler whose images come from more than the one
    pass of torch's own operators that a file holds."""
    if sampler.jacobi:
        raise ValueError(
            f"jacobi: expected 0 for a file, got {sampler.jacobi}: a file is one pass from noise "
            "to images, without the teacher"
        )
    if isinstance(sampler.generator, LogitStudent):
        raise ValueError(
            "model: expected a generator of torch's own operators for a file, got a LogitStudent, "
            "whose codes dd2_fast.ops.flow_solve makes"
        )


def writer(path: Path) -> Write:
    """What writes a file of this name; ValueError, or the error of what is missing for it."""
    writers: tuple[Write, ...] = (_write_pt2, _write_onnx, _write_aoti)
    if path.suffix not in FORMATS:
        raise ValueError(f"path: expected a name that ends in {', '.join(FORMATS)}, got '{path}'")
    if path.suffix == ".onnx":
        for package in ("onnx", "onnxscript"):
            if importlib.util.find_spec(package) is None:
                raise ModuleNotFoundError(
                    f"{package} is not installed, which writes ONNX: pip install 'dd2-fast[export]'"
                )
    if path.suffix == ".aoti":
        from torch._inductor import cpp_builder, exc

        try:
            cpp_builder.get_cpp_compiler()
        except exc.InvalidCxxCompiler as error:
            raise FileNotFoundError(
                "path: expected a C++ compiler for .aoti, found none; CXX names one"
            ) from error
    return writers[FORMATS.index(path.suffix)]


def _write_pt2(
    program: ExportedProgram, about: dict[str, str], temporary: Path, path: Path
) -> None:
    with open(temporary, "wb") as file:
        torch.export.save(program, file, extra_files={"dd2_fast.json": json.dumps(about)})


def _write_onnx(
    program: ExportedProgram, about: dict[str, str], temporary: Path, path: Path
) -> None:
    inputs: Any = program.example_inputs
    labels = inputs[0][1]
    names = ["labels"]
    if not isinstance(labels, Tensor):
        keys = labels if isinstance(labels, dict) else range(len(labels))
        names = [f"condition_{key}" for key in keys]
    shapes = None
    if program.range_constraints:
        shapes = {0: "batch"}, pytree.tree_map(lambda _: {0: "batch"}, labels)
    written: Any = torch.onnx.export(
        program,
        dynamo=True,
        input_names=["noise", *names],
        output_names=["images"],
        dynamic_shapes=shapes,
        verbose=False,
    )
    written.model.metadata_props.update(about)
    if _bytes(program.state_dict.values()) + _bytes(program.constants.values()) <= _LARGEST_ONNX:
        written.save(temporary, external_data=False)
        return
    written.save(temporary, external_data=True)
    weights = f"{temporary.name}.data"
    with replacing(Path(os.path.realpath(path)).with_name(weights)) as beside:
        os.replace(temporary.with_name(weights), beside)


def _write_aoti(
    program: ExportedProgram, about: dict[str, str], temporary: Path, path: Path
) -> None:
    from torch._inductor import aoti_compile_and_package

    package = temporary.with_name("package.pt2")  # no other ending is written
    settings = {"aot_inductor.metadata": about}
    aoti_compile_and_package(program, package_path=str(package), inductor_configs=settings)
    os.replace(package, temporary)


def _bytes(tensors: Iterable[Any]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what torch's exporters say of packages that are not here, and of themselves."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
