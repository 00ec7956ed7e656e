"""Docstrings, comments and pages cite papers and equations: what a reader can look up."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLACES = {
    "src": ("*.py", "*.yaml"),
    "docs": ("*.md",),
    "tests": ("*.py",),
    "benchmarks": ("*.py", "*.md"),
    "tools": ("*.py",),
    ".": ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"),
}
NOWHERE = re.compile(r"\bsections? \d|\bspecs?,? (sections? )?\d|\b(of|in|see|by) the specs?\b", re.IGNORECASE)
"""Numbered sections of a text that is not in the repository."""


@pytest.mark.parametrize("place", PLACES)
def test_no_specification_outside_the_repository_is_cited(place):
    files = {
        file
        for pattern in PLACES[place]
        for file in ((ROOT / place).glob(pattern) if place == "." else (ROOT / place).rglob(pattern))
    }
    found = [
        f"{file.relative_to(ROOT)}: {match.group()}"
        for file in sorted(files - {Path(__file__).resolve()})
        for match in NOWHERE.finditer(file.read_text(encoding="utf-8"))
    ]
    assert files
    assert not found
