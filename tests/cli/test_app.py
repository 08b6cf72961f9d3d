"""`dd2-fast app`: what the page draws, without a page, under gradio, and in a browser."""

from __future__ import annotations

import io
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models.test_condition import PairCondition
from models.test_prepared import var_generator
from optional import require
from processes import environment
from snippets import snippet

import dd2_fast
from dd2_fast.checkpoints import load_bundle
from dd2_fast.cli import main
from dd2_fast.cli.app import build
from dd2_fast.cli.page import Page
from dd2_fast.sampling import resolve_path

TIME = r", [\d.]+ ms for one image"


@pytest.fixture(scope="module")
def digits() -> Page:
    return Page(load_bundle(resolve_path("digits")))


def cells(picture: Any, side: int = 4, size: int = 8, scale: int = 12) -> np.ndarray:
    """The images of a picture, uint8 ``[n, size, size, 3]``, each pixel once."""
    array = np.asarray(picture)
    step = size * scale + 3
    assert array.shape == (side * step - 3, side * step - 3, 3)
    found = [array[r * step :, c * step :] for r in range(side) for c in range(side)]
    images = [each[: size * scale, : size * scale] for each in found]
    small = np.stack([each[::scale, ::scale] for each in images])
    for image, each in zip(images, small, strict=True):
        assert np.array_equal(image, each.repeat(scale, 0).repeat(scale, 1))
    return small


def test_one_step_and_the_teachers_steps_after_it(digits: Page) -> None:
    picture, told = digits.one_step(3, 5)
    assert re.fullmatch("1 step" + TIME, told)
    assert np.array_equal(cells(picture), dd2_fast.sample("digits", [3] * 16, seed=5, output="np"))
    picture, told = digits.one_step(3, 5, 4, 1.5)
    assert re.fullmatch("1 step and 3 of the teacher's" + TIME, told)
    sampler = dd2_fast.Sampler("digits", teacher_steps=4, cfg=1.5)
    assert np.array_equal(cells(picture), sampler([3] * 16, seed=5, output="np"))


def test_the_teacher(digits: Page) -> None:
    bundle = load_bundle(resolve_path("digits"))
    labels = torch.full((16,), 8)
    for cfg in (1.0, 2.0):
        tokens = bundle.teacher.sample(labels, seed=6, cfg=cfg)
        images = bundle.tokenizer.decode(bundle.tokenizer.embed(tokens))
        picture, told = digits.by_teacher(8, 6, cfg)
        wanted = (images.permute(0, 2, 3, 1) * 255).round().byte().numpy()
        assert np.array_equal(cells(picture), wanted) and re.fullmatch("16 steps" + TIME, told)


def test_a_walk_from_one_seed_to_another(digits: Page) -> None:
    """Its ends are the images of the seeds, and between them is the guide's noise, mixed."""
    for way, seed in ((0, 5), (1, 9)):
        wanted = dd2_fast.sample("digits", [4] * 16, seed=seed, output="np").astype(int)
        assert np.abs(cells(digits.walk(4, 5, 9, way)[0]) - wanted).max() <= 1
    variables: dict[str, Any] = {}
    exec(snippet("dd2_fast/sampling/README.md", "noise"), variables)
    noise = [
        np.stack([variables["noise"](seed, index, 16, 8) for index in range(16)]) for seed in (5, 9)
    ]
    mixed = torch.from_numpy(0.8 * noise[0] + 0.6 * noise[1])
    bundle = load_bundle(resolve_path("digits"))
    with torch.no_grad():
        x = bundle.generator(mixed, torch.full((16,), 4))
        images = bundle.tokenizer.decode(x).permute(0, 2, 3, 1).numpy() * 255
    picture, told = digits.walk(4, 5, 9, 2 / np.pi * np.arcsin(0.6))
    assert np.abs(cells(picture) - images).max() < 0.51
    assert told == "41% of the way"


def test_a_model_without_a_teacher_and_what_is_refused(digits: Page) -> None:
    page = Page(var_generator(layers=1))
    assert page.steps == 0 and page.teacher is None
    assert cells(page.one_step(9, 0)[0], size=8).std() > 0
    with pytest.raises(ValueError, match="teacher: expected a model with one"):
        page.by_teacher(0, 0)
    with pytest.raises(ValueError, match=r"labels: expected values in 0\.\.9, got 10"):
        digits.one_step(10, 0)
    with pytest.raises(ValueError, match="seed: expected an integer of 64 bits"):
        digits.walk(0, 0, 2**63, 0.5)
    generator = var_generator(layers=1)
    generator.condition = PairCondition()
    with pytest.raises(ValueError, match="conditioned on classes, got one on PairCondition"):
        Page(generator)


def test_without_gradio(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["app"]) == 2
    assert "gradio is not installed" in capsys.readouterr().err


def test_the_functions_behind_the_page(digits: Page) -> None:
    """Those that gradio calls, and its error for a user's."""
    require("gradio", by_ci=False)
    import gradio

    blocks = build(gradio, digits, "digits")
    functions = {each.fn.__name__: each.fn for each in blocks.fns.values()}
    assert set(functions) == {"one_step", "by_teacher", "walk"}
    assert np.array_equal(functions["one_step"](3, 5, 0, 1.0)[0], digits.one_step(3, 5)[0])
    assert np.array_equal(functions["by_teacher"](3, 5, 2.0)[0], digits.by_teacher(3, 5, 2.0)[0])
    assert np.array_equal(functions["walk"](3, 5, 1, 0.5)[0], digits.walk(3, 5, 1, 0.5)[0])
    with pytest.raises(gradio.Error, match=r"labels: expected values in 0\.\.9, got 10"):
        functions["one_step"](10, 0, 0, 1.0)
    assert functions["one_step"](None, 0, 0, 1.0) == gradio.skip()
    alone = build(gradio, Page(var_generator(layers=1)), "var").fns.values()
    assert {each.fn.__name__ for each in alone} == {"one_step", "walk"}


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Of a page that the command serves until it is interrupted, which is no error."""
    command = [sys.executable, "-m", "dd2_fast", "app", "--port", "0"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            (found,) = re.findall(
                r"^serving digits at (http://127\.0\.0\.1:\d+/)", process.stdout.readline()
            )
            yield found
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0


@pytest.mark.long
def test_in_chromium(address: str, digits: Page, tmp_path: Path) -> None:
    """The slider and a new seed change the pictures, nothing is loaded from elsewhere, and the
    screenshot shows the images that the functions make."""
    require("gradio", by_ci=False)
    require("selenium", by_ci=False)
    from PIL import Image
    from selenium import webdriver
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    options = webdriver.ChromeOptions()
    for argument in (
        "headless=new",
        "no-sandbox",
        "disable-dev-shm-usage",
        "window-size=1200,1500",
    ):
        options.add_argument(f"--{argument}")
    service = webdriver.ChromeService("/usr/bin/chromedriver")
    browser = webdriver.Chrome(options=options, service=service)

    def told(name: str, wanted: str) -> str:
        """What the line about an image says, as soon as it says that."""
        for _ in range(600):
            lines = browser.find_elements(By.ID, f"{name}-time")
            if lines and re.fullmatch(wanted, lines[0].text):
                return lines[0].text
            time.sleep(0.1)
        raise AssertionError(f"{name}: expected {wanted}, got {[line.text for line in lines]}")

    def seen(name: str) -> np.ndarray:
        time.sleep(1)  # the picture comes with the line about it, and is then drawn
        element = browser.find_element(By.CSS_SELECTOR, f"#{name} img")
        source = element.get_attribute("src")
        read = "const [url, done] = arguments; fetch(url).then(r => r.arrayBuffer())"
        read += ".then(b => done(Array.from(new Uint8Array(b))))"
        data = bytes(browser.execute_async_script(read, source))
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))

    try:
        browser.get(address)
        told("one-step", "1 step" + TIME)
        told("teacher", "16 steps" + TIME)
        told("walk", "0% of the way")
        assert np.array_equal(seen("one-step"), digits.one_step(0, 0)[0])
        assert np.array_equal(seen("teacher"), digits.by_teacher(0, 0)[0])
        slider = browser.find_element(By.CSS_SELECTOR, "#way input[type=range]")
        slider.send_keys(Keys.END)
        told("walk", "100% of the way")
        assert np.array_equal(seen("walk"), digits.walk(0, 0, 1, 1)[0])
        label = browser.find_element(By.CSS_SELECTOR, "#label input")
        label.send_keys(Keys.BACKSPACE, "7", Keys.TAB)
        steps = browser.find_element(By.CSS_SELECTOR, "#steps input[type=number]")
        steps.send_keys(Keys.BACKSPACE, "5", Keys.TAB)
        told("one-step", "1 step and 4 of the teacher's" + TIME)
        assert np.array_equal(seen("one-step"), digits.one_step(7, 0, 5)[0])
        assert not browser.find_elements(By.CLASS_NAME, "toast-body")
        assert browser.save_screenshot(str(tmp_path / "app.png"))
        shot = np.asarray(Image.open(tmp_path / "app.png").convert("L")).astype(int)
        assert shot.shape[0] > 1000 and (shot < 20).mean() > 0.05 and (shot > 235).mean() > 0.3
        elsewhere = browser.execute_script(
            "return performance.getEntriesByType('resource').map(entry => entry.name)"
        )
        assert elsewhere and all(url.startswith((address, "data:")) for url in elsewhere)
    finally:
        browser.quit()
