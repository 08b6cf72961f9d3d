"""One-step sampling against the teacher's own steps, decoding included: the bundled digits, and
with ``-m slow`` VAR-d16's shape with random weights.

pytest bench/bench_sampling.py --benchmark-only [-m "slow or not slow"]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dd2_fast.checkpoints import load_bundle
from dd2_fast.models import DD2Generator
from dd2_fast.models.var import VARTeacher, VARTokenizer
from dd2_fast.sampling import Sampler, resolve_path

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BOTH = ("teacher", "one_step")
Images = Callable[[], Tensor]


def digits() -> tuple[Any, Any]:
    bundle = load_bundle(resolve_path("digits"))
    return bundle.generator, bundle.teacher


def var_d16() -> tuple[Any, Any]:
    """Random weights; what the time depends on are the shapes."""
    torch.manual_seed(0)
    tokenizer = VARTokenizer()
    torch.nn.init.normal_(tokenizer.quantize.embedding.weight)
    teacher = VARTeacher(patch_nums=tokenizer.patch_nums)
    teacher.tokenizer = tokenizer
    generator = DD2Generator.from_teacher(teacher)
    generator.teacher = teacher
    for network in (tokenizer, teacher, generator):
        network.eval().requires_grad_(False)
    return generator, teacher


def psnr(images: Tensor, wanted: Tensor) -> float:
    return float(-10 * (images - wanted).double().square().mean().log10())


def make_variant(name: str, generator: Any, teacher: Any, count: int) -> Images:
    """A function that makes ``count`` images; every call the same."""
    labels = torch.arange(count) % generator.num_classes
    if name != "teacher":
        reduced = name == "one_step_bf16_compiled"
        dtype = torch.bfloat16 if reduced else None
        sampler = Sampler(generator, device=DEVICE, batch_size=count, dtype=dtype)
        if reduced:
            sampler.compile()
        return lambda: sampler(labels)
    guided = {"cfg": 1.5, "top_k": 900, "top_p": 0.95} if isinstance(teacher, VARTeacher) else {}
    for network in (teacher, generator.tokenizer):
        network.to(DEVICE)

    @torch.inference_mode()
    def by_teacher() -> Tensor:
        tokens = teacher.sample(labels.to(DEVICE), **guided)
        return generator.tokenizer.decode(generator.tokenizer.embed(tokens))

    return by_teacher


SLOW = pytest.mark.slow
CASES = [
    *((model, count, name) for model, count in (("digits", 1), ("digits", 80)) for name in BOTH),
    *(pytest.param("var_d16", 1, name, marks=SLOW) for name in (*BOTH, "one_step_bf16_compiled")),
]


@pytest.mark.parametrize(("model", "count", "variant"), CASES)
def bench_sampling(benchmark: Any, model: str, count: int, variant: str) -> None:
    generator, teacher = {"digits": digits, "var_d16": var_d16}[model]()
    wanted = make_variant("one_step", generator, teacher, count)() if "bf16" in variant else None
    function = make_variant(variant, generator, teacher, count)
    images = function()
    assert images.shape[:2] == (count, 3) and images.isfinite().all()
    error = {} if wanted is None else {"psnr": psnr(images, wanted)}

    def timed() -> None:
        function()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark.group = f"sampling {DEVICE} {model} {count}"
    benchmark.extra_info.update(variant=variant, images=count, **error)
    benchmark.pedantic(timed, warmup_rounds=2, rounds=15 if model == "digits" else 3)
