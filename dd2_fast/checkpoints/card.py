"""The model card: README.md of a hub's folder, filled from a run's settings."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..reading import printable

_LICENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]*")
_DATA = ("train", "held_out", "classes")  # of a run's record of its images
_VERSIONS = ("commit", "dd2_fast", "torch")
_LONGEST = 300

_PAPER = "Distilled Decoding 2 ([arXiv 2510.21003](https://arxiv.org/abs/2510.21003))"
_ABOUT = {
    "generator": f"A one-step image generator, by {_PAPER}.",
    "logit_student": "A one-step image generator that predicts its teacher's logits from noise.",
    "student": "A one-step student of Distilled Decoding 1.",
    "teacher": "An autoregressive teacher of images.",
    "tokenizer": "A tokenizer: images to codes and back.",
    "guidance": f"The guidance network of {_PAPER}.",
    "classifier": "A classifier of images, which evaluations ask.",
}


def card(
    header: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    run: Mapping[str, Any],
    licence: str | None,
    picture: str | None,
) -> str:
    """Markdown with the metadata that the Hub reads; what `run` lacks is left out.

    Args:
        header, tensors: of the file of weights. run: a recipe's `run.json`. licence: an identifier.
        picture: the name of a file beside the card.

    Raises:
        ValueError: a licence that is no identifier.
    """
    if licence is not None and not (isinstance(licence, str) and _LICENCE.fullmatch(licence)):
        raise ValueError(
            f"licence: expected an identifier such as 'apache-2.0', got {_text(licence)}"
        )
    kind = str(header["kind"])
    sort = kind.rpartition("_")[2]
    lines = ["---", "library_name: dd2_fast", "tags:", "- image-generation", f"- {kind}"]
    if licence is not None:
        lines.append(f"license: {licence}")
    lines += ["---", "", f"# {kind}", "", _ABOUT.get(kind) or _ABOUT.get(sort, f"A {sort}.")]
    if picture is not None:
        lines += ["", f"![Samples]({picture})"]
    lines += ["", "```python", *_usage(sort), "```", "", "## Model", ""]
    count = sum(value.numel() for value in tensors.values() if value.is_floating_point())
    dtypes = sorted({str(v.dtype).removeprefix("torch.") for v in tensors.values()})
    rows = {"kind": kind, "numbers": f"{count:,} ({', '.join(dtypes)})", **header["config"]}
    if "tokenizer" in header:
        rows["tokenizer"] = header["tokenizer"]["kind"]
    lines += _table(rows)
    for title, found in (("Data", _data(run)), ("Training", _training(run))):
        if found:
            lines += ["", f"## {title}", "", *_table(found)]
    lines += _metrics(run)
    if licence is not None:
        lines += ["", "## Licence", "", licence]
    return "\n".join(lines) + "\n"


def _usage(sort: str) -> list[str]:
    if sort in ("generator", "student"):
        return [
            "import dd2_fast",
            "",
            'sampler = dd2_fast.Sampler.from_pretrained("this folder, or its name on the Hub")',
            "images = sampler(labels=[0, 1, 2], seed=0)",
        ]
    return [
        "from dd2_fast import checkpoints",
        "",
        'model = checkpoints.from_pretrained("this folder, or its name on the Hub")',
    ]


def _data(run: Mapping[str, Any]) -> dict[str, Any]:
    """Of a run over images what it counted, and how they were read; not where they lay."""
    counted, settings = _object(run.get("data")), _object(_object(run.get("settings")).get("data"))
    return {**{name: counted[name] for name in _DATA if name in counted}, **settings}


def _training(run: Mapping[str, Any]) -> dict[str, Any]:
    settings, versions = _object(run.get("settings")), _object(run.get("provenance"))
    rows = {"recipe": run.get("recipe"), "seed": settings.get("seed")}
    distill = _object(settings.get("distill"))
    rows |= {f"distill.{name}": value for name, value in distill.items()}
    rows |= {name: versions.get(name) for name in _VERSIONS}
    return {name: value for name, value in rows.items() if value is not None}


def _metrics(run: Mapping[str, Any]) -> list[str]:
    """A row for each way to make images, a column for each figure."""
    found = _object(run.get("metrics")) or _object(_object(run.get("evaluation")).get("rows"))
    rows = {name: _object(values) for name, values in found.items()}
    columns = sorted({column for values in rows.values() for column in values})
    if not columns:
        return []
    lines = ["", "## Metrics", "", _row(["", *columns]), "|" + "---|" * (len(columns) + 1)]
    for name, values in rows.items():
        cells = [_figure(values[column]) if column in values else "" for column in columns]
        lines.append(_row([name, *cells]))
    return lines


def _figure(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) else value


def _table(rows: Mapping[str, Any]) -> list[str]:
    return ["| | |", "|---|---|", *(_row([name, value]) for name, value in rows.items())]


def _row(cells: list[Any]) -> str:
    return "| " + " | ".join(map(_text, cells)) + " |"


def _text(value: Any) -> str:
    """A value in a cell: one line, without anything that Markdown or HTML would read."""
    text = value if isinstance(value, str) else json.dumps(value, default=repr)
    text = printable(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}...")
    return re.sub(r"([\\`|<>\[\]!&#*])", r"\\\1", text)


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
