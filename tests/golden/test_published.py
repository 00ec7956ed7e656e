"""Recipes name no published number that is not in the list of them, which is not part of the project.

    pytest tests/golden/test_published.py --golden DIR

The list is ``published.json`` in DIR, or ``specs/published.json`` beside it: JSON objects with ``mean`` and
``dataset``. A number must be one of its data set, for streams of one data set.
"""

from __future__ import annotations

import json
import re

import pytest

from tests.recipes.shipped import NAMES, load

SHORT = {"tinyimagenet": ("tinyimagenet", "tinyimg")}


@pytest.fixture(scope="module")
def published(request) -> list[tuple[str, float]]:
    root = request.config.getoption("--golden")
    for file in (root / "published.json", root.parent / "specs" / "published.json"):
        if file.is_file():
            rows = json.loads(file.read_text("utf-8"))
            return [(plain(row["dataset"]), round(float(row["mean"]), 2)) for row in rows]
    pytest.skip(f"no published.json in or beside {root} (give --golden DIR)")


def test_every_number_that_a_recipe_expects_is_listed(published):
    named = [(name, expected.value) for name in NAMES for expected in load(name).expect]
    assert len(named) > 100
    assert [pair for pair in named if not listed(*pair, published)] == []


def listed(name: str, value: float, rows: list[tuple[str, float]]) -> bool:
    data = load(name).stream.settings.get("data")
    data = data.get("name") if isinstance(data, dict) else data
    wanted = SHORT.get(plain(data), (plain(data),)) if isinstance(data, str) else ("",)
    return any(round(value, 2) == mean and any(word in dataset for word in wanted) for dataset, mean in rows)


def plain(name: str) -> str:
    """In small letters and digits alone."""
    return re.sub("[^a-z0-9]", "", name.lower())
