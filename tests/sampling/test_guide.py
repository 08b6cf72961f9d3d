"""The guide's code: in place of the public models' sampling, run on the parity fixtures, and the
web service, with FastAPI where it is installed and by its functions alone."""

from __future__ import annotations

import asyncio
import re
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from optional import require
from parity import llamagen_models, var_models
from snippets import snippet

import dd2_fast
from dd2_fast.sampling.noise import image_noise


def load(path: str, *, tokenizer: str) -> Any:
    """The tiny model that stands for a released file."""
    if path.startswith("c2i"):
        assert tokenizer.startswith("vq_ds16")
        return llamagen_models.make_teacher()
    assert tokenizer.startswith("vae_ch160")
    return var_models.student() if path.startswith("dd1") else var_models.teacher()


@pytest.fixture
def variables(monkeypatch) -> dict[str, Any]:
    """What the section's code has defined at its end, drawing the likeliest tokens."""
    code = snippet("dd2_fast/sampling/README.md", "replace")
    code, filters = re.subn(r"top_k=900(, top_p=0.96)?, seed", "top_k=1, seed", code)
    assert filters == 2
    monkeypatch.setattr(dd2_fast.checkpoints, "load", load)
    var = var_models.arrays("var_tiny")["labels"]
    gpt = llamagen_models.arrays("llamagen_tiny")["labels"]
    variables: dict[str, Any] = {"label_B": var, "c_indices": gpt}
    exec(code, variables)
    return variables


def test_the_teachers_draw_what_the_public_code_draws(variables) -> None:
    wanted = var_models.arrays("var_tiny")["greedy_image_cfg1.5"]
    assert var_models.relative_rms(variables["images"], wanted) < 1e-4
    arrays = llamagen_models.arrays("llamagen_tiny")
    assert torch.equal(variables["index_sample"], arrays["greedy_tokens_cfg2.0"])
    decoded = variables["gpt"].tokenizer.reconstruct(arrays["codebook"][variables["index_sample"]])
    torch.testing.assert_close(variables["samples"], decoded.clamp(-1, 1), atol=1e-5, rtol=0)


def test_images_are_edited() -> None:
    variables: dict[str, Any] = {}
    exec(snippet("dd2_fast/sampling/README.md", "edit"), variables)
    mask, images = variables["mask"], variables["images"]
    for name in ("completed", "by_the_teacher"):
        made = variables[name]
        assert made.shape == images.shape and not torch.equal(made * mask, images * mask)
    given = (images * 255).round().byte().permute(0, 2, 3, 1)
    kept = torch.from_numpy(variables["of_another_class"])
    assert torch.equal(kept[:, :, 14:], given[:, :, 14:])
    assert not torch.equal(kept[:, :, :14], given[:, :, :14])


def test_the_student_draws_in_one_step(variables) -> None:
    labels = variables["label_B"]
    exact = dd2_fast.sample(var_models.student(), labels, seed=0)
    difference = variables["images_1"] - exact
    assert variables["images_1"].shape == exact.shape and difference.square().mean() < 10**-2.5
    assert variables["sampler"].generator.word_embed.weight.dtype == torch.bfloat16


def test_the_noise_is_the_samplers() -> None:
    """But for the last digit of logarithm and cosine; an odd count, and all 64 bits of both."""
    variables: dict[str, Any] = {}
    exec(snippet("dd2_fast/sampling/README.md", "noise"), variables)
    noise = variables["noise"]
    for seed, index in ((0, 0), (5, 3), (-1, 2**40 + 1), (2**63 - 1, 2**63 - 1), (-(2**63), 7)):
        for shape in ((1, 1), (3, 5), (30, 8)):
            found = torch.from_numpy(noise(seed, index, *shape))
            wanted = image_noise(seed, torch.tensor([index]), shape)[0]
            assert found.dtype == wanted.dtype
            torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-6)
    sampler = dd2_fast.Sampler("digits")
    start = torch.from_numpy(noise(9, 4, 16, 8))[None]
    image = sampler.tokenizer.decode(sampler.generator(start, torch.tensor([7])))
    torch.testing.assert_close(image, sampler(7, seed=9, indices=[4]), atol=1e-5, rtol=0)


SERVICE = "dd2_fast/sampling/README.md", "service"


def test_the_service_under_fastapi() -> None:
    require("fastapi", by_ci=False)  # the package does not need it
    require("httpx", by_ci=False)  # of its test client
    from fastapi.testclient import TestClient

    variables: dict[str, Any] = {}
    exec(snippet(*SERVICE), variables)
    (wanted,) = dd2_fast.sample("digits", 7, seed=3, output="png")
    with TestClient(variables["app"]) as client:
        answer = client.get("/image", params={"label": 7, "seed": 3})
        assert answer.content == wanted and answer.headers["content-type"] == "image/png"
        assert client.get("/image", params={"label": 10}).status_code == 422
        assert client.get("/image", params={"label": 7}).status_code == 200


class HTTPException(Exception):
    pass


class FastAPI:
    """As much of FastAPI as the guide uses."""

    def __init__(self, *, lifespan: Any) -> None:
        self.lifespan, self.state, self.routes = lifespan, SimpleNamespace(), {}

    def get(self, path: str) -> Any:
        return lambda function: self.routes.setdefault(path, function)


def test_the_services_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    double: Any = ModuleType("fastapi")
    double.FastAPI, double.HTTPException = FastAPI, HTTPException
    double.Response = lambda content, media_type: (content, media_type)
    monkeypatch.setitem(sys.modules, "fastapi", double)
    variables: dict[str, Any] = {}
    exec(snippet(*SERVICE), variables)
    app = variables["app"]

    async def scene() -> None:
        image = app.routes["/image"]
        async with app.lifespan(app):
            answers = await asyncio.gather(*(image(label, seed=3) for label in range(10)))
            with pytest.raises(HTTPException, match=r"expected values in 0\.\.9, got 10"):
                await image(10)
        wanted = dd2_fast.sample("digits", list(range(10)), seed=[3] * 10, output="png")
        assert answers == [(png, "image/png") for png in wanted]
        with pytest.raises(RuntimeError, match="one that is closed"):
            await image(1)

    asyncio.run(scene())
