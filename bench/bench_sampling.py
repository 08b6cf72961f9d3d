"""One-step sampling against the teacher's own steps: the bundled digits, and with ``-m slow``
VAR-d16's shape with random weights. One step is timed whole and in its parts, and in bfloat16.

pytest bench/bench_sampling.py --benchmark-only [-m "slow or not slow"]
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dd2_fast.checkpoints import load_bundle
from dd2_fast.models import DD2Generator
from dd2_fast.models.var import VARTeacher, VARTokenizer
from dd2_fast.sampling import Sampler, resolve_path

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Images = Callable[[], Tensor]


def digits() -> tuple[Any, Any]:
    bundle = load_bundle(resolve_path("digits"))
    return bundle.generator, bundle.teacher


def var_d16() -> tuple[Any, Any]:
    """Random weights; what the time depends on are the shapes."""
    torch.manual_seed(0)
    tokenizer = VARTokenizer()
    nn.init.normal_(tokenizer.quantize.embedding.weight)
    teacher = VARTeacher(patch_nums=tokenizer.patch_nums)
    teacher.tokenizer = tokenizer
    generator = DD2Generator.from_teacher(teacher)
    for network in (teacher, generator):  # what starts at zero would hide the rest from the PSNR
        for layer in network.modules():
            if isinstance(layer, nn.Linear) and not layer.weight.any():
                nn.init.normal_(layer.weight, std=0.02)
    generator.teacher = teacher
    for network in (tokenizer, teacher, generator):
        network.eval().requires_grad_(False)
    return generator, teacher


def psnr(images: Tensor, wanted: Tensor) -> float:
    return float(-10 * (images - wanted).double().square().mean().log10())


def make_variant(name: str, generator: Any, teacher: Any, count: int) -> Images:
    """A function that makes ``count`` images, or a part of that; every call the same.

    ``name``: teacher, or one_step with _generator or _decoder, _bf16 and _compiled after it.
    """
    labels = torch.arange(count) % generator.num_classes
    if name == "teacher":
        return by_teacher(generator.tokenizer.to(DEVICE), teacher.to(DEVICE), labels.to(DEVICE))
    dtype = torch.bfloat16 if "bf16" in name else None
    sampler = Sampler(generator, device=DEVICE, batch_size=count, dtype=dtype)
    if "compiled" in name:
        sampler.compile()
    if "decoder" in name:
        latents = sampler(labels, output="latent").to(sampler.tokenizer.codebook.dtype)
        decode: Any = sampler.tokenizer.decode
        if "compiled" in name:
            decode = torch.compile(decode, dynamic=False)
        return torch.inference_mode()(lambda: decode(latents).float())
    return lambda: sampler(labels, output="latent" if "generator" in name else "pt")


def by_teacher(tokenizer: Any, teacher: Any, labels: Tensor) -> Images:
    guided = {"cfg": 1.5, "top_k": 900, "top_p": 0.95} if isinstance(teacher, VARTeacher) else {}

    @torch.inference_mode()
    def images() -> Tensor:
        return tokenizer.decode(tokenizer.embed(teacher.sample(labels, **guided)))

    return images


def peak_memory(function: Images) -> int:
    """Most bytes that one call holds, weights included: of the GPU, else of the process."""
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
        function()
        return torch.cuda.max_memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")
    function()
    status = Path("/proc/self/status").read_text()
    return next(1024 * int(line.split()[1]) for line in status.splitlines() if "VmHWM" in line)


PARTS = ("one_step_generator", "one_step_decoder")
BF16 = [f"{name}_bf16{how}" for name in ("one_step", *PARTS) for how in ("", "_compiled")]
SLOW = pytest.mark.slow
CASES = [
    *(("digits", count, name) for count in (1, 80) for name in ("teacher", "one_step", *PARTS)),
    *(pytest.param("var_d16", 1, v, marks=SLOW) for v in ("teacher", "one_step", *PARTS, *BF16)),
]


@pytest.mark.parametrize(("model", "count", "variant"), CASES)
def bench_sampling(benchmark: Any, model: str, count: int, variant: str) -> None:
    generator, teacher = {"digits": digits, "var_d16": var_d16}[model]()
    wanted = None
    if "bf16" in variant:  # before the networks are converted
        wanted = make_variant(re.sub("_bf16.*", "", variant), generator, teacher, count)()
    function = make_variant(variant, generator, teacher, count)
    result = function()
    assert len(result) == count and result.isfinite().all()
    error = {}
    if wanted is not None and "generator" in variant:
        error["relative_error"] = float((result - wanted).norm() / wanted.norm())
    elif wanted is not None:
        error["psnr"] = psnr(result, wanted)
        assert error["psnr"] > 35

    def timed() -> None:
        function()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark.group = f"sampling {DEVICE} {model} {count}"
    benchmark.extra_info.update(
        variant=variant, images=count, peak_bytes=peak_memory(function), **error
    )
    benchmark.pedantic(timed, warmup_rounds=2, rounds=15 if model == "digits" else 3)
