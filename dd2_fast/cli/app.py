"""`dd2-fast app`: a page to draw on, one step beside the teacher and a walk between two noises."""

from __future__ import annotations

import argparse
import functools
import os
from collections.abc import Callable
from typing import Any

from .page import Page
from .settings import add_model_options, integer, one_step_model

_PORTS = (0, 65535)
_RANGE = 4.0  # of guidance above none


def add_parser(commands: Any) -> None:
    """Add the subcommand to the parser."""
    parser = commands.add_parser(
        "app",
        help="a page to draw on",
        description="Serve a page on this machine: a class, a seed, teacher steps and guidance; "
        "one step beside the teacher, with both times; a slider that walks between two noises. "
        "Needs gradio: pip install 'dd2-fast[app]'.",
    )
    add_model_options(parser, "--model", steps=False)
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to serve at (default this machine alone)"
    )
    parser.add_argument(
        "--port", type=integer(*_PORTS), default=7860, help="its port (default 7860; 0: a free one)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serve the page until it is interrupted."""
    gradio = _gradio()
    model = one_step_model(arguments.model, arguments.tokenizer, arguments.config)
    try:
        page = Page(model)
    except TypeError as error:  # a model of the wrong kind
        raise ValueError(str(error)) from error
    blocks = build(gradio, page, str(arguments.model))
    launched = blocks.launch(
        server_name=arguments.host,
        server_port=arguments.port or None,
        theme=_theme(gradio),
        prevent_thread_lock=True,
        quiet=True,
    )
    print(f"serving {arguments.model} at {launched[1]} (Ctrl-C ends it)", flush=True)
    blocks.block_thread()
    return 0


def build(gradio: Any, page: Page, name: str) -> Any:
    """The page, as gradio's blocks."""

    def shown(function: Callable[..., Any]) -> Callable[..., Any]:
        """Say what a user's mistake was; a field that is empty is still being filled."""

        @functools.wraps(function)
        def run(*values: Any) -> Any:
            if None in values:
                return gradio.skip()
            try:
                return function(*values)
            except (TypeError, ValueError) as error:
                raise gradio.Error(str(error)) from error

        return run

    teaches = page.teacher is not None
    with gradio.Blocks(title=f"dd2_fast: {name}", analytics_enabled=False) as blocks:
        gradio.Markdown(f"# {name}\nImages in one step, beside the teacher's step by step.")
        with gradio.Row():
            last = page.num_classes - 1
            label = gradio.Number(
                0,
                label=f"Class, 0 to {last}",
                precision=0,
                minimum=0,
                maximum=last,
                elem_id="label",
            )
            seed = gradio.Number(0, label="Seed", precision=0, elem_id="seed")
            steps = gradio.Slider(
                0,
                page.steps + 1,
                0,
                step=1,
                label="Teacher steps",
                info="k > 1 draws the last k - 1 anew",
                visible=teaches,
                elem_id="steps",
            )
            cfg = gradio.Slider(
                page.unguided,
                max(page.cfg, page.unguided + _RANGE),
                page.cfg,
                step=0.1,
                label="Guidance of the teacher",
                visible=teaches,
                elem_id="cfg",
            )
        with gradio.Row():
            drawn = _picture(gradio, "One step", "one-step")
            taught = _picture(gradio, "Teacher", "teacher", visible=teaches)
        slow = teaches and not page.small
        draw = gradio.Button("Draw by the teacher") if slow else None
        gradio.Markdown("## Between two noises")
        with gradio.Row():
            with gradio.Column():
                other = gradio.Number(1, label="Seed of the other", precision=0, elem_id="other")
                way = gradio.Slider(0, 1, 0, step=0.01, label="Way there", elem_id="way")
            walked = _picture(gradio, "On the way", "walk")

        quick: dict[str, Any] = {"show_progress": "hidden", "trigger_mode": "always_last"}
        one, walk = shown(page.one_step), shown(page.walk)
        by_teacher = shown(page.by_teacher)
        for event in (blocks.load, label.change, seed.change, steps.change, cfg.change):
            event(one, [label, seed, steps, cfg], drawn, **quick)
        for event in (blocks.load, label.change, seed.change, other.change, way.input):
            event(walk, [label, seed, other, way], walked, **quick)
        for event in (blocks.load, label.change, seed.change, cfg.change) if teaches else ():
            if page.small:
                event(by_teacher, [label, seed, cfg], taught, **quick)
            else:  # what was drawn for others goes until it is asked for
                event(lambda: (None, ""), None, taught, **quick)
        if draw is not None:
            draw.click(by_teacher, [label, seed, cfg], taught)
    return blocks


def _picture(gradio: Any, title: str, name: str, visible: bool = True) -> list[Any]:
    """An image and the line about it."""
    with gradio.Column(visible=visible):
        image = gradio.Image(
            label=title,
            format="png",
            interactive=False,
            elem_id=name,
            buttons=["download", "fullscreen"],
        )
        return [image, gradio.Markdown(elem_id=f"{name}-time")]


def _theme(gradio: Any) -> Any:
    """With the machine's own fonts: nothing is loaded from elsewhere."""
    return gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])


def _gradio() -> Any:
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "gradio is not installed, which serves the page: pip install 'dd2-fast[app]'"
        ) from error
    return gradio
