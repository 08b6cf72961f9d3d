"""Images in one pass of the generator, with as many steps of the teacher as wanted after it."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..ambient import outside_autocast
from ..condition import Rows, condition_of
from ..losses.target import check_teacher
from ..metrics.evaluation_mode import evaluation_mode, submodules
from ..models.prepared import prepare
from ..models.processor import warn_if_slow
from ..ops import nearest_code
from ..ops.checks import check_number
from ..ops.teacher_checks import check_filters
from ..progress import progress_bar
from ..ranges import annotate
from .arguments import (
    check_device,
    check_dtype,
    check_indices,
    check_machine,
    check_rounded,
    image_seeds,
    integer,
)
from .at_once import AtOnce, CodesAtOnce, at_once
from .buckets import BucketedCall, Function, bucket_sizes
from .edit import EditingSampler
from .faults import Faults
from .jacobi import FLOW_STEPS, NEEDS, jacobi
from .noise import image_noise
from .outputs import PIXELS, check_output, in_form, to_uint8
from .pretrained import PretrainedSampler
from .refine import refine
from .sources import load_networks

_BATCH = 256
_REFINES = ("guidance_scale", "generate", "steps")  # what a teacher needs for its steps
_OFF = {"cfg": None, "top_k": 0, "top_p": 1.0}


class Sampler(PretrainedSampler, EditingSampler, nn.Module):
    """A loaded model that turns labels into images, one pass of the network each.

    A module like any other: `.to`, `.half` and the like move and convert the networks, whose own
    modules these are. `.compile` compiles what a batch runs. Networks compute in the dtype of their
    weights, whatever the caller's autocast, and results are ordinary tensors under the caller's
    inference mode, too.

    Args:
        model: a bundled name such as "digits", a path, a loaded generator or a bundle.
        steps: passes of the generator: 2 for the second step of DD1's students, else 1.
        teacher_steps: 0 or 1 is the generator alone; k > 1 keeps its tokens, snapped to the
            codebook, and draws the last k - 1 anew from the teacher (paper Alg. 4).
        jacobi: k passes of the teacher over all tokens at once, after the generator's: each maps
            the noise that the tokens came from to codes under the teacher's logits of the tokens
            before. Every pass brings images closer to the teacher's own; as many as it has steps
            are exactly DD1's map. Not with teacher_steps.
        batch_size: images a pass; None takes 256. The images do not depend on it.
        cfg, top_k, top_p: guidance and filters of the teacher's steps or passes; off by default,
            and refused where there are none.
        device: where to move the networks; None leaves them where they are.
        dtype: what to convert the networks to; None leaves them as they are. torch.bfloat16 is
            the fast setting, on a CPU with its instructions too, and needs no `compile` there; a
            RuntimeWarning says that a CPU has none. "int8": large products and convolutions of
            released families' float32 networks by eight-bit integers, on CPUs with AVX-512 VNNI:
            images differ by roundings to 8 bits; the teacher's steps, and what is saved, do not.
            "fp8": to torch.bfloat16, with large products of a released family's generator in
            float8 on GPUs of compute capability 8.9 or more; rounding takes kernels of its own, so
            `compile` or `cuda_graphs` go with it. The teacher and the decoder are in bfloat16.
        cuda_graphs: replay the networks as CUDA graphs, one for every power of two of images,
            captured at its first use; call with `batch_size` images first for the least memory.
            What cannot be captured runs without, after a RuntimeWarning that says why. Threads may
            share a sampler: the graphs of a GPU run one after the other, on whichever streams.

    Raises ValueError or TypeError for arguments out of range, FileNotFoundError for a path that
    does not exist, RuntimeError for a device that is not there, ValueError when teacher steps are
    wanted of a model without a teacher, and TypeError for a teacher that lacks what they need.
    """

    def __init__(
        self,
        model: Any,
        *,
        steps: int = 1,
        teacher_steps: int = 0,
        jacobi: int = 0,
        batch_size: int | None = None,
        cfg: float | None = None,
        top_k: int = 0,
        top_p: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
        cuda_graphs: bool = False,
    ) -> None:
        super().__init__()
        batch_size = _BATCH if batch_size is None else integer(batch_size, "batch_size")
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
        check_device(device)
        check_dtype(dtype)
        networks = load_networks(model, device)
        self.generator = networks.generator
        self.tokenizer = networks.tokenizer
        self.teacher = networks.teacher
        self.run = networks.run
        self._all_modules = submodules(self.generator, self.tokenizer, self.teacher)
        self.batch_size = batch_size
        self.num_tokens = int(self.generator.num_tokens)
        self.condition = condition_of(self.generator)
        self.steps = self._check_steps(steps)
        self.teacher_steps = self._check_teacher_steps(teacher_steps)
        self.jacobi = self._check_jacobi(jacobi, dtype)
        self._teacher_options = self._check_teacher_options(cfg, top_k, top_p)
        self._cuda_graphs = cuda_graphs
        self._compiling: dict[str, Any] | None = None
        # What runs, and the prepared networks that it is of.
        self._calls: tuple[tuple[Function, Function], tuple[Any, Any]] | None = None
        self._at_once: AtOnce | CodesAtOnce | None = None
        self.rounded = dtype if isinstance(dtype, str) else None
        if isinstance(dtype, torch.dtype):
            self.to(dtype)
        if self.rounded is not None:
            check_machine(self.rounded, self.tokenizer.codebook.device)
            if self.rounded == "fp8":
                self.to(torch.bfloat16)
            self._networks()  # refused now, not at the first image

    @property
    def num_classes(self) -> int:
        """Classes, where it is those that images are conditioned on."""
        return int(self.generator.num_classes)

    def __getstate__(self) -> dict[str, Any]:
        """All but compiled and captured functions, which a copy makes anew."""
        return {**self.__dict__, "_calls": None, "_at_once": None}

    def compile(self, *args: Any, **settings: Any) -> None:
        """Compile the generator and the decoder in place by `torch.compile` at fixed shapes.

        Each power of two of images compiles at its first use, which takes about a minute on a CPU.
        There it gains next to nothing: VAR-d16 in bfloat16 took as long, the digits 5% less.

        Args:
            settings: of `torch.compile`; mode="max-autotune-no-cudagraphs" searches longer.
        """
        if args:
            raise TypeError("compile: expected keyword arguments of torch.compile alone")
        if self.rounded == "int8":
            raise ValueError('compile: expected a sampler of another dtype than "int8"')
        self._compiling = {"dynamic": False, **settings}
        self._calls = None

    def warm_up(self, batch_sizes: int | Sequence[int] | None = None) -> None:
        """Draw a batch of each size and drop it, so that later calls find all packed, compiled and
        captured and the memory they take allocated.

        Args:
            batch_sizes: images of a batch, in 1..batch_size; None: every size that compiles or is
                captured on its own (the powers of two and batch_size), or batch_size alone where
                none is.

        Raises TypeError or ValueError for a size out of range, and what a call raises.
        """
        if batch_sizes is None:
            sizes = [self.batch_size] if self._plain() else bucket_sizes(self.batch_size)
        else:
            several = batch_sizes if isinstance(batch_sizes, Sequence) else [batch_sizes]
            sizes = [integer(size, "batch_sizes") for size in several]
        for size in sizes:
            if not 1 <= size <= self.batch_size:
                raise ValueError(
                    f"batch_sizes: expected 1 to {self.batch_size}, the sampler's batch_size, got "
                    f"{size}"
                )
        for size in sorted(sizes, reverse=True):  # the largest graph's memory serves the others
            self(self.condition.draw("balanced", 0, torch.arange(size, device="cpu")))

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._calls = None
        with torch.inference_mode(False):
            return super()._apply(*args, **kwargs)

    def _networks(self) -> tuple[Function, Function]:
        """The generator and the decoder, eager, compiled or captured; made anew after a change."""
        generator, tokenizer = prepared = (
            prepare(self.generator, int8=self.rounded == "int8", fp8=self.rounded == "fp8"),
            prepare(self.tokenizer, int8=self.rounded == "int8"),
        )
        if self.rounded is not None:
            check_rounded(self.rounded, self.generator, *prepared)
        if self._calls is not None and self._calls[1] == prepared:
            return self._calls[0]
        for network in (self.generator, self.tokenizer):
            warn_if_slow(network)
        graphs, device = self._cuda_graphs, self.tokenizer.codebook.device
        if graphs and device.type != "cuda":
            raise ValueError(f"cuda_graphs: expected networks on CUDA, got {device}")
        generate: Function = generator
        if self.steps > 1:
            generate = functools.partial(generator, steps=self.steps)
        decode: Function = tokenizer.decode
        if self._compiling is not None:
            # Not the noise: Inductor's products of 64-bit integers gave other numbers (torch 2.13).
            generate, decode = (torch.compile(f, **self._compiling) for f in (generate, decode))
            if not graphs:
                generate = BucketedCall(generate, self.batch_size)
        draw: Function = functools.partial(self._draw, generate)
        if graphs:  # the noise too
            draw = BucketedCall(draw, self.batch_size, graphs=True)
        if graphs or self._compiling is not None:
            decode = BucketedCall(decode, self.batch_size, graphs=graphs)
        self._calls = (draw, decode), prepared
        return draw, decode

    def _draw(
        self, generate: Function, seed: int | Tensor, indices: Tensor, labels: Rows
    ) -> Tensor:
        """Embeddings [B, n, C] from the noise of a seed (one number, or int64 [B])."""
        if self._plain():
            drawn = self._networks_at_once().draw(seed, indices, labels)
            if drawn is not None:
                return drawn
        codebook = self.tokenizer.codebook
        noise = image_noise(seed, indices, (self.num_tokens, codebook.shape[1]))
        return generate(noise.to(codebook.dtype), labels)

    def forward(
        self,
        labels: int | Sequence[int] | Tensor | np.ndarray,
        *,
        seed: int | Sequence[int] | Tensor | np.ndarray = 0,
        start_index: int = 0,
        indices: Sequence[int] | Tensor | None = None,
        output: str = "pt",
        progress: bool = False,
    ) -> Any:
        """Return one image a label; it is a function of (seed, image index, label) alone.

        Args:
            labels: a class, a list of classes, a tensor or NumPy array of integers [B], in
                0..num_classes-1; of a model that is conditioned on something else, that.
            seed: of the whole job, a signed integer of 64 bits; or a list, array or tensor of them,
                one a label: each image is then that of a call of its own, with its label, its seed
                and start_index or its own of the indices.
            start_index: image index of the first label; the others follow on. With it, or with
                `indices` (one int64 index a label), parts of a job are drawn anywhere.
            output: "pt" float32 [B, c, H, W] in [0, 1], c 3, or 1 of a grey tokenizer; "np" uint8
                [B, H, W, c]; "pil" a list; "png", "jpeg" and "webp" a list of bytes, a file each,
                without loss but for JPEG (quality 95, colours at full size);
                "latent" the generator's embeddings [B, n, C]; "tokens" int64 codes [B, n].
            progress: show a bar.

        Raises TypeError or ValueError for a wrong argument, RuntimeError for WebP where Pillow has
        none, and NotFiniteError, a FloatingPointError, for an image that the generator, the
        teacher's steps or the decoder made a NaN or infinity in; on a GPU that look waits for the
        images, once a call.
        """
        check_output(output)
        y = self.check_labels(labels)
        condition = self.condition
        count = condition.count(y)
        seeds = image_seeds(seed, count)
        apart = isinstance(seeds, Tensor)
        index = check_indices(indices, integer(start_index, "start_index"), count, apart=apart)
        if not count:
            seeds = 0
            index = torch.zeros(1, dtype=torch.int64, device="cpu")
            y = condition.draw("balanced", 0, index)
        one = count <= self.batch_size and not progress
        result = self._small(y, index, seeds, output) if one else None
        if result is None:
            result = self._drawn(y, index, seeds, output, progress and count > 0)
        if not count:
            result = result[:0].clone()
        return in_form(result, output)

    def _small(
        self, labels: Rows, indices: Tensor, seed: int | Tensor, output: str
    ) -> Tensor | None:
        """What `_batch` returns, by one call of a kernel; None where that does not cover it, and
        where the result is not finite, so that `_batch` finds out why.

        It has no part of torch's modes, each of which costs some percent of a digit.
        """
        if self.teacher_steps > 1 or not self._plain():
            return None
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False):
                return self._small(labels, indices, seed, output)
        drawn = self._networks_at_once().finished(seed, indices, labels, output)
        if drawn is None or not math.isfinite(drawn.sum()):
            return None
        return to_uint8(drawn) if output in PIXELS else drawn

    def _plain(self) -> bool:
        """Whether the networks run as they are, neither compiled nor captured."""
        return self._compiling is None and not self._cuda_graphs

    def _networks_at_once(self) -> AtOnce | CodesAtOnce:
        if self._at_once is None:
            passes: dict[str, Any] = dict(passes=self.jacobi, **self._teacher_options)
            self._at_once = at_once(self.generator, self.tokenizer, self.teacher, **passes)
        return self._at_once

    def _drawn(
        self, labels: Rows, indices: Tensor, seed: int | Tensor, output: str, progress: bool
    ) -> Tensor:
        """The results of all batches."""
        condition, size = self.condition, self.batch_size
        device = self.tokenizer.codebook.device
        labels, indices = condition.to(labels, device), indices.to(device)
        parted = condition.split(labels, size), indices.split(size)
        if isinstance(seed, Tensor):
            seeds: Sequence[int | Tensor] = seed.to(device).split(size)
        else:
            seeds = [seed] * len(parted[1])
        batches = zip(*parted, seeds, strict=True)
        parts, faults = [], Faults(condition)
        # A bar that is not shown costs as much as a twentieth of a digit.
        shown = progress_bar(len(indices), show=True) if progress else nullcontext()
        with evaluation_mode(self._all_modules), outside_autocast(device), shown as bar:
            for label, part, own in batches:
                drawn = self._small(label, part, own, output)
                if drawn is None:
                    drawn = self._batch(label, part, own, output, faults)
                parts.append(drawn)
                if bar is not None:
                    bar.update(len(part))
        faults.check()
        # A copy, of one part too: those of inference mode could not be changed or trained on.
        with torch.inference_mode(False):
            return torch.cat(parts)

    def _generated(
        self, draw: Function, seed: int | Tensor, indices: Tensor, labels: Rows
    ) -> Tensor:
        """Embeddings [B, n, C] by `draw`, eager, compiled or captured."""
        with annotate("dd2_fast.generate"):
            if self._cuda_graphs and not isinstance(seed, Tensor):
                seed = torch.full_like(indices, seed)  # a graph reads it from memory
            return draw(seed, indices, labels)

    @torch.inference_mode()
    def _batch(
        self, labels: Rows, indices: Tensor, seed: int | Tensor, output: str, faults: Faults
    ) -> Tensor:
        """Return images (uint8 [B, H, W, c] for PIXELS), embeddings or tokens."""
        codebook = self.tokenizer.codebook
        draw, decode = self._networks()
        x = self._generated(draw, seed, indices, labels)
        look = functools.partial(faults.look, indices=indices, labels=labels, seed=seed)
        look("generator", x)
        if self.teacher is not None and (self.teacher_steps > 1 or self.jacobi):
            given: dict[str, Any] = dict(seed=seed, **self._teacher_options)
            by_teacher = prepare(self.teacher), nearest_code(x, codebook), labels, indices
            with annotate("dd2_fast.refine"):
                if self.jacobi:
                    flow_steps = getattr(self.generator, "flow_steps", FLOW_STEPS)
                    tokens = jacobi(*by_teacher, passes=self.jacobi, flow_steps=flow_steps, **given)
                else:
                    tokens = refine(*by_teacher, steps=self.teacher_steps - 1, **given)
                look("teacher", tokens)
                if output == "tokens":
                    return tokens
                x = self.tokenizer.embed(tokens.clamp(min=0))
        if output == "tokens":
            return nearest_code(x, codebook)
        if output == "latent":
            return x.float()
        with annotate("dd2_fast.decode"):
            images = decode(x)
            look("decoder", images)
            return to_uint8(images) if output in PIXELS else images.float()

    def check_labels(self, labels: int | Sequence[int] | Tensor | np.ndarray) -> Any:
        """Return labels as int64 [B], or raise TypeError or ValueError."""
        return self.condition.read(labels)

    def _check_steps(self, steps: int) -> int:
        steps = integer(steps, "steps")
        several = "steps" in inspect.signature(self.generator.forward).parameters
        if not 1 <= steps <= (2 if several else 1):
            raise ValueError(
                f"steps: expected 1{' or 2' if several else ''} for a "
                f"{type(self.generator).__name__}, got {steps}"
            )
        return steps

    def _check_teacher_steps(self, teacher_steps: int) -> int:
        steps = integer(teacher_steps, "teacher_steps")
        most = self.num_tokens
        if steps > 1 and self.teacher is not None:
            check_teacher(self.teacher, _REFINES)
            most = len(self.teacher.steps)
        if not 0 <= steps <= most + 1:
            raise ValueError(
                f"teacher_steps: expected 0 to {most + 1} (the generator and {most} of the "
                f"teacher's), got {steps}"
            )
        if steps > 1 and self.teacher is None:
            raise ValueError(
                f"teacher_steps: {steps} needs a model with a teacher, and this one has none; "
                "load a bundle folder, or set teacher_steps=0"
            )
        return steps

    def _check_jacobi(self, passes: int, dtype: Any) -> int:
        passes = integer(passes, "jacobi")
        most = self.num_tokens
        if passes and self.teacher is not None:
            check_teacher(self.teacher, NEEDS)
            most = len(self.teacher.steps)
        if not 0 <= passes <= most:
            raise ValueError(
                f"jacobi: expected 0 to {most}, the teacher's steps, after which nothing changes, "
                f"got {passes}"
            )
        if not passes:
            return 0
        if self.teacher is None:
            raise ValueError(
                f"jacobi: {passes} needs a model with a teacher, and this one has none; load a "
                "bundle folder, set the model's teacher, or set jacobi=0"
            )
        if self.teacher_steps > 1:
            raise ValueError(
                f"jacobi: expected with teacher_steps of 0 or 1, got {passes} with "
                f"teacher_steps={self.teacher_steps}: both would replace the same tokens"
            )
        if isinstance(dtype, str):
            raise ValueError(
                f'jacobi: expected 0 with dtype "{dtype}", got {passes}: the passes are not in '
                "eight bits, beside which the generator's own saves next to nothing"
            )
        return passes

    def _check_teacher_options(self, cfg: float | None, top_k: int, top_p: float) -> dict[str, Any]:
        """Return the options of the teacher's steps."""
        if cfg is not None:
            check_number("cfg", cfg)
        top_k = integer(top_k, "top_k")
        check_filters(top_k, top_p)
        options = {"cfg": cfg, "top_k": top_k, "top_p": top_p}
        given = [name for name, off in _OFF.items() if options[name] != off]
        if given and self.teacher_steps < 2 and not self.jacobi:
            raise ValueError(
                f"{', '.join(given)}: expected with teacher_steps of at least 2 or jacobi alone, "
                f"whose settings they are, got teacher_steps={self.teacher_steps}, jacobi=0"
            )
        return options


def sample(
    model: Any,
    labels: int | Sequence[int] | Tensor | np.ndarray,
    *,
    seed: int | Sequence[int] | Tensor | np.ndarray = 0,
    teacher_steps: int = 0,
    batch_size: int | None = None,
    output: str = "pt",
    progress: bool = False,
) -> Any:
    """Return one image a label, as `Sampler(model, ...)(labels, ...)` does; see there.

    A name or a path is loaded at every call: keep a `Sampler` to draw many times.
    """
    sampler = Sampler(model, teacher_steps=teacher_steps, batch_size=batch_size)
    return sampler(labels, seed=seed, output=output, progress=progress)
