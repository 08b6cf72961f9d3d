"""One-step sampling against the teacher's own steps: the bundled digits, and with ``-m slow``
VAR-d16's and LlamaGen-L's shape with random weights, one image on a CPU. One step is timed whole
and in its parts, in bfloat16, compiled, and replayed as CUDA graphs; the digits' networks, which
are one call of ``small_generator``, ``small_student`` or ``small_teacher``, by their modules too.

pytest bench/bench_sampling.py --benchmark-only [-m "slow or not slow"]
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dd2_fast.checkpoints import load_bundle
from dd2_fast.models import (
    DD2Generator,
    LlamaGenTeacher,
    LlamaGenTokenizer,
    LogitStudent,
    fp8,
    int8,
)
from dd2_fast.models.prepared import prepare
from dd2_fast.models.processor import emulated
from dd2_fast.models.sampling import categorical
from dd2_fast.models.var import VARTeacher, VARTokenizer
from dd2_fast.sampling import Sampler, resolve_path
from measure import DEVICES, FEWEST_TURNS, Call, Problem, relative_error

Images = Callable[[], Tensor]


def digits() -> tuple[Any, Any]:
    bundle = load_bundle(resolve_path("digits"))
    return bundle.generator, bundle.teacher


def digits_logits() -> tuple[Any, Any]:
    """The logit student that training starts from: the teacher's own weights."""
    teacher = load_bundle(resolve_path("digits")).teacher
    student = LogitStudent.from_teacher(teacher)
    student.tokenizer, student.teacher = load_bundle(resolve_path("digits")).tokenizer, teacher
    return student.eval().requires_grad_(False), teacher


def var_d16() -> tuple[Any, Any]:
    """Random weights; what the time depends on are the shapes."""
    torch.manual_seed(0)
    tokenizer = VARTokenizer()
    nn.init.normal_(tokenizer.quantize.embedding.weight)
    teacher = VARTeacher(patch_nums=tokenizer.patch_nums)
    teacher.tokenizer = tokenizer
    return ready(teacher)


def ready(teacher: Any) -> tuple[Any, Any]:
    """A generator over a teacher, and the teacher, both frozen."""
    generator = DD2Generator.from_teacher(teacher)
    for network in (teacher, generator):  # what starts at zero would hide the rest from the PSNR
        for layer in network.modules():
            if isinstance(layer, nn.Linear) and not layer.weight.any():
                nn.init.normal_(layer.weight, std=0.02)
    generator.teacher = teacher
    for network in (teacher.tokenizer, teacher, generator):
        network.eval().requires_grad_(False)
    return generator, teacher


def llamagen_l() -> tuple[Any, Any]:
    """Random weights, as of VAR-d16."""
    torch.manual_seed(0)
    tokenizer = LlamaGenTokenizer()
    nn.init.normal_(tokenizer.quantize.embedding.weight)
    teacher = LlamaGenTeacher(width=1024, layers=24, heads=16, hidden=2816, adapter_width=1024)
    teacher.tokenizer = tokenizer
    return ready(teacher)


def psnr(images: Tensor, wanted: Tensor) -> float:
    return float(-10 * (images - wanted).double().square().mean().log10())


def make_variant(name: str, generator: Any, teacher: Any, count: int) -> Images:
    """A function that makes ``count`` images, or a part of that; every call the same.

    ``name``: teacher, or one_step with _generator, _decoder, _pass (of the teacher, over all
    tokens) or _guided_pass after it; then _bf16, _int8, _fp8, _compiled, _graphs; _modules at the
    end for what is one call otherwise.
    """
    labels = torch.arange(count) % generator.num_classes
    if "modules" in name:
        generator, teacher = called_by_modules(generator, teacher)
    if name.startswith("teacher"):
        return by_teacher(
            generator.tokenizer, teacher, labels.to(generator.tokenizer.codebook.device)
        )
    dtype = next((kind for kind in ("int8", "fp8") if kind in name), None)
    passes: dict[str, Any] = {"jacobi": 1} if "pass" in name else {}
    if "guided" in name:
        passes["cfg"] = 2.0
    graphs = "graphs" in name
    sampler = Sampler(generator, batch_size=count, cuda_graphs=graphs, dtype=dtype, **passes)
    if "compiled" in name:
        sampler.compile()
    if "decoder" in name:
        latents = sampler(labels, output="latent").to(sampler.tokenizer.codebook.dtype)
        decode: Any = prepare(sampler.tokenizer, int8=dtype == "int8").decode
        if "compiled" in name:
            decode = torch.compile(decode, dynamic=False)
        return torch.inference_mode()(lambda: decode(latents).float())
    return lambda: sampler(labels, output="latent" if "generator" in name else "pt")


def called_by_modules(generator: Any, teacher: Any) -> tuple[Any, Any]:
    """Copies whose modules are called, because a hook waits there."""
    generator, teacher = copy.deepcopy((generator, teacher))
    for network in (generator, generator.tokenizer.decoder, teacher.backbone):
        network.register_forward_hook(lambda *arguments: None)
    return generator, teacher


def settings(teacher: Any) -> dict[str, Any]:
    """Guidance and filters of a teacher's draws."""
    if isinstance(teacher, VARTeacher):
        return {"cfg": 1.5, "top_k": 900, "top_p": 0.95}
    return {"cfg": 2.0, "top_k": 900} if isinstance(teacher, LlamaGenTeacher) else {}


def by_teacher(tokenizer: Any, teacher: Any, labels: Tensor) -> Images:
    guided = settings(teacher)

    @torch.inference_mode()
    def images() -> Tensor:
        return tokenizer.decode(tokenizer.embed(teacher.sample(labels, **guided)))

    return images


@torch.inference_mode()
def error_of_steps(teacher: Any, exact: Any, count: int) -> float:
    """Relative error of the logits from which a guided teacher draws, step by step with a cache,
    against those of all the tokens in one pass of the float32 teacher."""
    guided, kept = settings(teacher), []
    labels = torch.arange(count, device=teacher.codebook.device) % teacher.num_classes
    scale = teacher.guidance_scale(guided.pop("cfg"))
    draw = categorical(scale, guided["top_k"], guided.get("top_p", 1.0), seed=0)

    def choose(here: slice, *logits: Tensor) -> Tensor:
        kept.append(torch.cat(logits))
        return draw(here, *logits)

    tokens = teacher.generate(labels, choose, guided=True)
    wanted = exact.logits(torch.cat([tokens, tokens]), exact.condition.with_null(labels))
    return relative_error(torch.cat(kept, 1).float(), wanted)


def check_images(images: Tensor, count: int) -> None:
    assert len(images) == count and images.isfinite().all()


PARTS = ("one_step_generator", "one_step_decoder")
BF16 = [f"{name}_bf16{how}" for name in ("one_step", *PARTS) for how in ("", "_compiled")]
# What a GPU is for: sizes and variants that take a CPU minutes.
ON_GPU = ("teacher", "one_step_bf16", "one_step_bf16_graphs", "one_step_bf16_compiled_graphs")
FP8 = ("one_step_fp8_graphs", "one_step_fp8_compiled_graphs") if fp8.missing() is None else ()
LARGE = ("var_d16_64", "llamagen_l_1", "llamagen_l_64")
SMALL_CASES = [
    (size, v)
    for size in ("digits_1", "digits_80")
    for v in ("teacher", "one_step", *PARTS, "teacher_modules", "one_step_modules")
]
SMALL_CASES += [
    (size, f"one_step{passes}{how}")
    for size in ("digits_logits_1", "digits_logits_80")
    for passes in ("", "_pass", "_guided_pass")
    for how in ("", "_modules")
]
INT8 = [f"{name}_int8" for name in ("one_step", *PARTS)] if int8.missing() is None else []
SLOW_CASES = [("var_d16_1", v) for v in ("teacher", "one_step", *PARTS, *BF16, *INT8)]
if "cuda" not in DEVICES:
    kinds = ("", "_bf16") if not emulated(torch.bfloat16) else ("",)
    parts = ("teacher", "one_step", *PARTS)
    SLOW_CASES += [("llamagen_l_1", part + kind) for kind in kinds for part in parts]
if "cuda" in DEVICES:
    SLOW_CASES += [("var_d16_1", v) for v in (*ON_GPU[2:], *FP8)]
    SLOW_CASES += [(size, v) for size in LARGE for v in (*ON_GPU, *FP8)]
# A GPU's time may end before all are measured, so what it is for comes first.
CASES = [*(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW_CASES), *SMALL_CASES]


def problem(size: str, device: str) -> Problem:
    model, _, images = size.rpartition("_")
    count = int(images)
    made = {"digits": digits, "digits_logits": digits_logits}
    generator, teacher = {**made, "var_d16": var_d16, "llamagen_l": llamagen_l}[model]()
    networks = {"": (generator, teacher)}
    if model not in made:
        networks["bf16"] = copy.deepcopy((generator, teacher))
        for part in (*networks["bf16"], networks["bf16"][0].tokenizer):
            part.to(device, torch.bfloat16)
        networks["bf16"][0].teacher = None
    for part in (generator, generator.tokenizer, teacher):
        part.to(device)

    def make(variant: str) -> list[Call]:
        own = networks["bf16" if "bf16" in variant or "fp8" in variant else ""]
        return [make_variant(variant, *own, count)]

    def check(variant: str, call: Call) -> dict[str, Any]:
        low = "bf16" in variant
        if variant.startswith("teacher") and model not in made:
            with FlopCounterMode(display=False) as counter:
                check_images(call(), count)
            error = error_of_steps(networks["bf16" if low else ""][1], teacher, count)
            assert error < (0.05 if low else 1e-4), f"{variant} is off by {error:.1e}: not timed"
            info = {"flops": counter.get_total_flops(), "relative_error": error}
            return {**info, "rate_of": "bfloat16"} if low else info
        result = call()
        check_images(result, count)
        plain = make(re.sub("_(bf16|graphs|int8|fp8).*", "", variant))[0]
        if model in made and "decoder" not in variant:
            by_modules = make(f"{variant.removesuffix('_modules')}_modules")[0]()
            assert (result - by_modules).abs().max() < 1e-5, f"{variant}: not timed"
        with FlopCounterMode(display=False) as counter:
            wanted = plain()
        info = {"flops": counter.get_total_flops()}
        if low:
            info["rate_of"] = "bfloat16"
        rounded = low or "int8" in variant or "fp8" in variant
        if rounded and "generator" in variant:
            info["relative_error"] = float((result - wanted).norm() / wanted.norm())
        elif rounded:
            info["psnr"] = psnr(result, wanted)
            assert info["psnr"] > 35, f"{variant}: {info['psnr']:.1f} dB: not timed"
        return info

    return Problem(
        group=f"sampling {device} {model} {count}",
        device=device,
        make=make,
        check=check,
        seconds=1.0,
        # A teacher of 256 steps takes a CPU half a minute.
        fewest_turns=3 if (model, device) == ("llamagen_l", "cpu") else FEWEST_TURNS,
        info={"images": count},
    )


@pytest.mark.parametrize("device", DEVICES[-1:])
@pytest.mark.parametrize(("size", "variant"), CASES)
def bench_sampling(race: Any, size: str, device: str, variant: str) -> None:
    race(lambda: problem(size, device))
