"""The README's first code and its links."""

from __future__ import annotations

import re
import subprocess

import pytest
from snippets import ROOT, snippet


def test_the_first_code_runs() -> None:
    variables: dict = {}
    exec(snippet("README.md", "use"), variables)
    assert variables["images"].shape == (100, 8, 8, 3)


def readmes() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return listed.stdout.split() or ["README.md"]


@pytest.mark.parametrize("readme", readmes())
def test_links_lead_somewhere(readme: str) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / readme).read_text("utf-8"))
    inside = [link for link in links if "://" not in link]
    missing = [link for link in inside if not ((ROOT / readme).parent / link).exists()]
    assert not missing
