"""Images in one pass of the generator, with as many steps of the teacher as wanted after it."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import nvtx
import torch
from torch import Tensor
from tqdm import tqdm

from ..metrics.evaluation_mode import evaluation_mode, submodules
from ..ops import nearest_code
from .noise import image_noise
from .outputs import check_output, to_pil, to_uint8
from .refine import refine
from .sources import load_networks

_BATCH = 256


class Sampler:
    """A loaded model that turns labels into images, one pass of the network each.

    Args:
        model: a bundled name such as "digits", a path, a loaded generator or a bundle.
        teacher_steps: 0 or 1 is the generator alone; k > 1 keeps its tokens, snapped to the
            codebook, and draws the last k - 1 anew from the teacher (paper Alg. 4).
        batch_size: images a pass; None takes 256. The images do not depend on it.
        cfg, top_k, top_p: guidance and filters of the teacher's steps; off by default.
        device: where to move the networks; None leaves them where they are.

    Raises ValueError or TypeError for arguments out of range, FileNotFoundError for a path that
    does not exist, and ValueError when teacher steps are wanted of a model without a teacher.
    """

    def __init__(
        self,
        model: Any,
        *,
        teacher_steps: int = 0,
        batch_size: int | None = None,
        cfg: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        device: torch.device | str | None = None,
    ) -> None:
        batch_size = _BATCH if batch_size is None else _integer(batch_size, "batch_size")
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
        networks = load_networks(model, device)
        self.generator = networks.generator
        self.tokenizer = networks.tokenizer
        self.teacher = networks.teacher
        self._modules = submodules(self.generator, self.tokenizer, self.teacher)
        self.batch_size = batch_size
        self.num_tokens = int(self.generator.num_tokens)
        self.num_classes = int(self.generator.num_classes)
        self.teacher_steps = self._check_teacher_steps(teacher_steps)
        self._teacher_options: dict[str, Any] = {"cfg": cfg, "top_k": top_k, "top_p": top_p}

    def __call__(
        self,
        labels: int | Sequence[int] | Tensor,
        *,
        seed: int = 0,
        start_index: int = 0,
        indices: Sequence[int] | Tensor | None = None,
        output: str = "pt",
        progress: bool = False,
    ) -> Any:
        """Return one image a label; it is a function of (seed, image index, label) alone.

        Args:
            labels: a class, a list of classes or an int64 tensor [B], in 0..num_classes-1.
            seed: of the whole job.
            start_index: image index of the first label; the others follow on. With it, or with
                `indices` (one int64 index a label), parts of a job are drawn anywhere.
            output: "pt" float32 [B, 3, H, W] in [0, 1]; "np" uint8 [B, H, W, 3]; "pil" a list;
                "latent" the generator's embeddings [B, n, C]; "tokens" int64 codes [B, n].
            progress: show a bar.
        """
        check_output(output)
        y = self._check_labels(labels)
        index = _check_indices(indices, _integer(start_index, "start_index"), len(y))
        seed = _integer(seed, "seed")
        device = self.tokenizer.codebook.device
        count = len(y)
        if not count:
            y, index = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
        y, index = y.to(device), index.to(device)
        with (
            evaluation_mode(self._modules),
            tqdm(total=count, unit="image", disable=not progress) as bar,
        ):
            parts = []
            for label, part in zip(
                y.split(self.batch_size), index.split(self.batch_size), strict=True
            ):
                parts.append(self._batch(label, part, seed, output))
                bar.update(len(label))
        result = torch.cat(parts)[:count]
        if output == "np":
            return to_uint8(result)
        return to_pil(result) if output == "pil" else result

    @torch.inference_mode()
    def _batch(self, labels: Tensor, indices: Tensor, seed: int, output: str) -> Tensor:
        """Return images, embeddings or tokens of one batch."""
        codebook = self.tokenizer.codebook
        with nvtx.annotate("dd2_fast.generate"):
            noise = image_noise(seed, indices, (self.num_tokens, codebook.shape[1]))
            x = self.generator(noise.to(codebook.dtype), labels)
        if self.teacher_steps > 1:
            with nvtx.annotate("dd2_fast.refine"):
                tokens = refine(
                    self.teacher,
                    nearest_code(x, codebook),
                    labels,
                    indices,
                    count=self.teacher_steps - 1,
                    seed=seed,
                    **self._teacher_options,
                )
                x = self.tokenizer.embed(tokens)
        if output == "tokens":
            return nearest_code(x, codebook)
        if output == "latent":
            return x.float()
        with nvtx.annotate("dd2_fast.decode"):
            return self.tokenizer.decode(x).float()

    def _check_labels(self, labels: int | Sequence[int] | Tensor) -> Tensor:
        if isinstance(labels, Tensor):
            if labels.dtype != torch.int64 or labels.ndim > 1:
                raise TypeError(
                    "labels: expected an int64 tensor of shape [B], "
                    f"got {labels.dtype} of shape {list(labels.shape)}"
                )
            y = labels.reshape(-1)
        elif isinstance(labels, Sequence) and not isinstance(labels, str):
            y = torch.tensor([_integer(v, "labels") for v in labels], dtype=torch.int64)
        elif isinstance(labels, int) and not isinstance(labels, bool):
            y = torch.tensor([labels])
        else:
            raise TypeError(
                "labels: expected an int, a list of ints or an int64 tensor, "
                f"got {type(labels).__name__}"
            )
        if len(y) and not 0 <= int(y.min()) <= int(y.max()) < self.num_classes:
            raise ValueError(
                f"labels: expected values in 0..{self.num_classes - 1}, "
                f"got {int(y.min()) if int(y.min()) < 0 else int(y.max())}"
            )
        return y

    def _check_teacher_steps(self, teacher_steps: int) -> int:
        steps = _integer(teacher_steps, "teacher_steps")
        if not 0 <= steps <= self.num_tokens + 1:
            raise ValueError(
                f"teacher_steps: expected 0 to {self.num_tokens + 1} "
                f"(the generator and {self.num_tokens} tokens), got {steps}"
            )
        if steps > 1 and self.teacher is None:
            raise ValueError(
                f"teacher_steps: {steps} needs a model with a teacher, and this one has none; "
                "load a bundle folder, or set teacher_steps=0"
            )
        return steps


def sample(
    model: Any,
    labels: int | Sequence[int] | Tensor,
    *,
    seed: int = 0,
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


def _check_indices(indices: Sequence[int] | Tensor | None, start: int, count: int) -> Tensor:
    """Return the image indices int64 [count]."""
    if start < 0:
        raise ValueError(f"start_index: expected at least 0, got {start}")
    if indices is None:
        return torch.arange(start, start + count)
    if start:
        raise ValueError("indices: expected either indices or start_index, got both")
    if isinstance(indices, Tensor) and indices.dtype != torch.int64:
        raise TypeError(f"indices: expected an int64 tensor, got {indices.dtype}")
    index = (
        indices
        if isinstance(indices, Tensor)
        else torch.tensor([_integer(v, "indices") for v in indices], dtype=torch.int64)
    )
    if tuple(index.shape) != (count,):
        raise ValueError(f"indices: expected {count}, one a label, got {list(index.shape)}")
    if count and int(index.min()) < 0:
        raise ValueError(f"indices: expected at least 0, got {int(index.min())}")
    return index


def _integer(value: Any, name: str) -> int:
    """Return an integer argument as int; TypeError for bool, float and everything else."""
    if isinstance(value, bool):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(
            f"{name}: expected an integer, got {value!r} of type {type(value).__name__}"
        ) from None
