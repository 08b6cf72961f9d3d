"""torch's ambient state against a plain run: dtype, autocast, inference mode, device, determinism.

Data (images, tokens, codes, measures) are those of the plain run, and ordinary tensors. Networks'
own outputs follow autocast, which is there for them, and the caller's inference mode.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from models.test_dd2_families import STUDENTS, TEACHERS, tiny_generator
from parity import llamagen_models
from torch import Tensor

from dd2_fast import losses, metrics
from dd2_fast.checkpoints import load_bundle
from dd2_fast.models import DD1VARStudent, DD2Generator, DD2Guidance, FlowHead, TableTeacher
from dd2_fast.sampling import Sampler, resolve_path
from dd2_fast.sampling.outputs import ENCODINGS, OUTPUTS

LABELS = torch.tensor([3, 7])


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


ARRAYS = [output for output in OUTPUTS if output not in ENCODINGS]
STATES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "float16": lambda: default_dtype(torch.float16),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast_float16": lambda: torch.autocast("cpu", torch.float16),
    "inference": torch.inference_mode,
    "no_grad": torch.no_grad,
    "meta_device": lambda: torch.device("meta"),
    "cpu_device": lambda: torch.device("cpu"),
    "deterministic": deterministic,
    "one_thread": lambda: threads(1),
    "two_threads": lambda: threads(2),
}
# States that do not touch each other are entered together.
TOGETHER = {
    "float64": ("float64", "no_grad", "one_thread"),
    "bfloat16": ("bfloat16", "deterministic", "two_threads"),
    "float16": ("float16", "cpu_device"),
    **{name: (name,) for name in ("autocast", "autocast_float16", "inference", "meta_device")},
}


@contextmanager
def entered(state: str) -> Iterator[None]:
    with ExitStack() as stack:
        for name in TOGETHER.get(state, (state,)):
            stack.enter_context(STATES[name]())
        yield


def rand(*shape: int) -> Tensor:
    rng = torch.Generator().manual_seed(1)
    return torch.randn(*shape, generator=rng)


def square(a: Tensor, b: Tensor) -> Tensor:
    return (a.double() - b.double()).square().mean((1, 2, 3))


def teacher_cases(model: Any) -> dict[str, Callable[[], Any]]:
    """Of any teacher: what it draws and what is measured by it, then what its network gives."""
    labels = LABELS.clamp(max=model.num_classes - 1)
    tokens = model.sample(labels, cfg=1.5, top_k=20)
    noise = rand(2, model.num_tokens, model.codebook.shape[1])
    score = losses.TeacherScore(model, cfg=1.5, top_k=20)
    return {
        "sample": lambda: model.sample(labels, cfg=1.5, top_k=20, top_p=0.9),
        "pairs": lambda: losses.flow_pairs(noise, labels, score),
        "nll": lambda: metrics.negative_log_likelihood(model, tokens, labels),
        "network logits": lambda: model.logits(tokens, labels),
        "network codebook": lambda: model.codebook,
    }


def tokenizer_cases(model: Any, shape: torch.Size) -> dict[str, Callable[[], Any]]:
    x = rand(*shape)
    images = model.decode(x).detach()
    tokens = model.encode(images)
    return {
        "encode": lambda: model.encode(images),
        "encode float64": lambda: model.encode(images.double()),
        "embed": lambda: model.embed(tokens),
        "network decode": lambda: model.decode(x),
        "network decode float64": lambda: model.decode(x.double()),
    }


def generator_cases(model: Any) -> dict[str, Callable[[], Any]]:
    noise, sampler = rand(2, model.num_tokens, model.dimension), Sampler(model)
    cases = {o: lambda o=o: sampler([3, 7], seed=4, output=o) for o in ARRAYS}
    cases["in batches"] = lambda: Sampler(model, batch_size=1)(np.array([3, 7]), indices=[5, 2])
    if model.teacher is not None:
        refined = Sampler(model, teacher_steps=3, cfg=1.5, top_k=20)
        for output in ARRAYS:
            cases[f"refined {output}"] = lambda o=output: refined([3, 7], output=o)
    if not isinstance(model, DD1VARStudent):  # where rounding may choose a far code
        cases["network"] = lambda: model(noise, LABELS)
    return cases


def dd2(teacher: Any, model: Any) -> dict[str, Callable[[], Any]]:
    """A family's teacher, tokenizer, generator and guidance."""
    model.teacher = teacher
    guidance = DD2Guidance.from_teacher(teacher, head_width=16, head_depth=1)
    torch.nn.init.normal_(guidance.head.output.weight, std=0.1)
    x = rand(2, model.num_tokens, model.dimension)
    t = torch.full(x.shape[:2], 0.5)
    return {
        **teacher_cases(teacher),
        **tokenizer_cases(model.tokenizer, x.shape),
        **generator_cases(model),
        "network guidance": lambda: guidance(x, t, x, LABELS),
    }


def digits() -> dict[str, Callable[[], Any]]:
    bundle = load_bundle(resolve_path("digits"))
    images, labels = bundle.tokenizer.decode(rand(20, 16, 8)).detach(), torch.arange(20) % 2
    data = SimpleNamespace(test_images=images, test_labels=labels)
    joint, real, generated = torch.tensor([0.25, 0.75]), rand(9, 2), rand(9, 2) + 1

    def classifier() -> Tensor:
        return metrics.train_classifier(images, labels, epochs=1).classify.weight.detach()

    return {
        **dd2(bundle.teacher, bundle.generator),
        "bundled": lambda: Sampler("digits")([3, 7]),
        "classifier": classifier,
        "path length": lambda: metrics.perceptual_path_length(bundle.generator, LABELS, square),
        "report": lambda: metrics.evaluate(bundle, data, num_samples=20)["one_step"]["fd_pixel"],
        "frechet": lambda: metrics.frechet_distance(real, generated),
        "total variation": lambda: metrics.total_variation(labels[:, None], joint),
        "precision": lambda: metrics.precision_recall(real, generated),
    }


def table() -> dict[str, Callable[[], Any]]:
    joint = rand(5, 5, 5).abs()
    return teacher_cases(
        TableTeacher(num_tokens=3, vocabulary=5, dimension=2, joint=joint, codebook=rand(5, 2))
    )


FAMILIES: dict[str, Callable[[], dict[str, Callable[[], Any]]]] = {
    "causal": digits,
    "var": lambda: dd2(TEACHERS["var"](), tiny_generator("var")),
    "llamagen": lambda: dd2(TEACHERS["llamagen"](), tiny_generator("llamagen")),
    "tokens_only": lambda: teacher_cases(llamagen_models.make_teacher()),
    "dd1_var": lambda: generator_cases(STUDENTS["var"]()),
    "dd1_llamagen": lambda: generator_cases(STUDENTS["llamagen"]()),
    "table": table,
}


@cache
def cases(family: str) -> dict[str, tuple[Callable[[], Any], Any]]:
    """Each thing with its result in torch's usual state."""
    return {name: (run, run()) for name, run in FAMILIES[family]().items()}


def values(result: Any) -> np.ndarray:
    if isinstance(result, Tensor):
        return result.detach().double().numpy()
    if isinstance(result, list):
        return np.stack([np.asarray(image) for image in result]).astype(np.float64)
    return np.asarray(result, dtype=np.float64)


def fault(found: Any, wanted: Any, state: str, is_data: bool) -> str:
    """What is wrong with a result, or nothing."""
    if isinstance(found, Tensor) and is_data:
        if found.dtype != wanted.dtype or found.device != wanted.device:
            return f"{found.dtype} on {found.device}"
        if found.is_inference():
            return "a tensor of inference mode"
        found.mul_(1)
        if found.is_floating_point():
            (torch.ones((), requires_grad=True) * found).sum().backward()
    a, b = values(found), values(wanted)
    error = np.linalg.norm(a - b) / np.linalg.norm(b)
    follows = state.startswith("autocast") and not is_data
    # uint8 moves by one where rounding crosses a half. 8 bits of each product in bfloat16.
    allowed = 2e-2 if follows else 2e-3 if isinstance(found, list | np.ndarray) else 1e-4
    return "" if error < allowed else f"off by {error:.2g}"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("state", TOGETHER)
@pytest.mark.slow
def test_results_are_those_of_the_plain_run(state: str, family: str) -> None:
    faults = {}
    for name, (run, wanted) in cases(family).items():
        try:
            with entered(state):
                found = run()
            faults[name] = fault(found, wanted, state, not name.startswith("network"))
        except Exception as error:
            faults[name] = f"{type(error).__name__}: {error}"
    assert not {name: what for name, what in faults.items() if what}


@pytest.mark.parametrize("state", ["inference", "meta_device", "no_grad", "deterministic"])
@pytest.mark.parametrize("family", ["causal", "var", "llamagen"])
def test_what_is_built_in_a_state_can_be_trained(state: str, family: str) -> None:
    """Networks made from a teacher; a sampler's own; and a model first run in that state."""
    teacher = load_bundle(resolve_path("digits")).teacher if family == "causal" else None
    teacher = teacher or TEACHERS[family]()
    with STATES[state]():
        guidance = DD2Guidance.from_teacher(teacher, head_width=16, head_depth=1)
        generator = DD2Generator.from_guidance(guidance)
    generator.tokenizer = generator.tokenizer or load_bundle(resolve_path("digits")).tokenizer
    with STATES[state]():
        latents = Sampler(generator)([3, 7], output="latent")
        tokens = teacher.sample(LABELS, cfg=1.5)
    torch.nn.init.normal_(generator.head.output.weight, std=0.1)
    x = generator(rand(*latents.shape), LABELS)
    score = losses.TeacherScore(teacher)(tokens, LABELS)
    t = torch.full(x.shape[:2], 0.5)
    loss = losses.gts_loss(guidance(latents, t, x, LABELS), latents, t, score).mean()
    (loss + losses.dd1_loss(x, latents).mean()).backward()
    for network in (guidance, generator):
        gradients = [parameter.grad for parameter in network.parameters()]
        assert all(g is None or g.isfinite().all() for g in gradients)
        assert any(g is not None and g.abs().max() > 0 for g in gradients)


def test_a_sampler_made_under_inference_mode_can_be_converted_and_trained() -> None:
    with torch.inference_mode():
        sampler = Sampler("digits", dtype=torch.float64)
        sampler([3])
    sampler.float().requires_grad_(True)
    x = sampler.generator(rand(1, 16, 8), torch.tensor([3]))
    sampler.tokenizer.decode(x).sum().backward()
    assert sampler.generator.head.output.weight.grad.isfinite().all()
    assert sampler.tokenizer.decode(x).mul_(2).requires_grad


@pytest.mark.parametrize("family", ["var", "dd1_var", "dd1_llamagen", "llamagen"])
@pytest.mark.slow
def test_copies_are_the_same_sampler(family: str) -> None:
    """Deep and by pickle, after a call and compiled, whose code is made anew."""
    model = STUDENTS[family[4:]]() if family.startswith("dd1") else tiny_generator(family)
    sampler = Sampler(model, batch_size=2)
    wanted = sampler([3, 7], seed=1)
    sampler.compile(backend="eager")
    sampler([3, 7])
    for again in (copy.deepcopy(sampler), pickle.loads(pickle.dumps(sampler))):
        torch.testing.assert_close(again([3, 7], seed=1), wanted, atol=1e-5, rtol=0)
        assert again.generator is not model and again.tokenizer is again.generator.tokenizer
    noise = rand(2, model.num_tokens, model.dimension)
    doubled = {name: 2 * value for name, value in model.named_parameters()}
    called = torch.func.functional_call(model, doubled, (noise, LABELS))
    assert not torch.equal(called, model(noise, LABELS))


def test_threads_share_a_sampler_in_training_mode() -> None:
    """Each call finds evaluation mode whatever the others do, and the last restores training."""
    model = tiny_generator("llamagen")
    seen: set[bool] = set()
    model.head.register_forward_pre_hook(lambda head, _: seen.add(head.training))
    sampler = Sampler(model.train(), batch_size=1)
    wanted = [sampler([3] * (1 + k % 3), seed=k) for k in range(6)]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda k: sampler([3] * (1 + k % 3), seed=k), list(range(6)) * 4))
    for k, images in enumerate(found):
        torch.testing.assert_close(images, wanted[k % 6], atol=1e-5, rtol=0)
    assert seen == {False} and all(module.training for module in model.modules())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_flow_heads_angles_are_not_rounded(dtype: torch.dtype) -> None:
    """In bfloat16 the largest, 100, would be off by 0.2; the embedding keeps its own precision."""
    head = FlowHead(dimension=4, features=8, width=16, blocks=1)
    seen = []
    head.time.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    t = torch.tensor([0.357, 0.914])
    for network in (head, head.to(dtype)):
        own = network.input.weight.dtype
        network(torch.zeros(2, 4, dtype=own), t, torch.zeros(2, 8, dtype=own))
    assert seen[1].dtype == dtype
    assert (seen[1].double() - seen[0].double()).abs().max() < 2**-8
