"""Code in the READMEs that tests run: the block under a line ``<!-- test: NAME -->``."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[1]


def snippet(readme: str, name: str) -> str:
    """The code of the block marked ``name`` in a README, a path in the repository."""
    _, found, after = (ROOT / readme).read_text("utf-8").partition(f"<!-- test: {name} -->\n")
    assert found, f"{readme}: no block is marked {name}"
    opening, _, rest = after.partition("\n")
    code, closing, _ = rest.partition("\n```\n")
    assert opening in ("```python", "```bash") and closing, f"{readme}: no code under {name}"
    return code + "\n"
