"""Every shipped recipe: loads without a fault, says what it is, and reads back as the same."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from ruamel.yaml import YAML

from perdure import recipe
from perdure.cli.list import recipe_head
from tests.recipes.shipped import NAMES, load


def head(name: str) -> str:
    """The comment that opens a recipe."""
    lines = (recipe.SHIPPED / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if line.startswith("#"))


@pytest.mark.parametrize("name", NAMES)
def test_it_has_no_fault_and_reads_back_as_the_same(name, tmp_path):
    loaded = load(name)
    file = tmp_path / "again.yaml"
    file.write_text(recipe.to_yaml(loaded), encoding="utf-8")
    assert recipe.differences(loaded, recipe.load(file)) == []
    assert loaded.run.name == name.replace("/", "-")


@pytest.mark.parametrize("name", NAMES)
def test_its_head_says_what_it_is_the_command_the_hardware_the_time_and_the_needs(name):
    text = head(name)
    assert recipe_head(name)["summary"].endswith(".")
    assert f"perdure run {name}" in text
    for word in ("Hardware", "ime:", "Needs:"):
        assert word in text.replace("Hardware and time:", "Hardware: time:"), word


@pytest.mark.parametrize("name", NAMES)
def test_it_states_only_what_differs_from_the_defaults(name):
    stated = YAML(typ="safe").load(recipe.SHIPPED / f"{name}.yaml")
    if "base" in stated:
        return  # there it may go back to a default that its base had left
    method, loaded = stated["method"], load(name)
    defaults = defaults_of(loaded.method.name, name.split("/")[0])
    same = [key for key, value in method.items() if key != "name" and defaults[f"method.{key}"] == value]
    assert not same


@cache
def defaults_of(method: str, folder: str) -> dict[str, Any]:
    """Settings of a recipe of that folder with the method's own defaults; those of the method are the same in each."""
    name = next(n for n in NAMES if n.startswith(f"{folder}/"))
    return {k: v.value for k, v in recipe.resolved(recipe.load(name, [f"method={method}"])).items()}


@pytest.mark.parametrize("name", NAMES)
def test_its_published_numbers_have_a_source(name):
    for expected in load(name).expect:
        assert expected.source
        assert 0 < expected.value <= 100


def test_every_recipe_is_in_the_folder_of_its_method():
    wrong = [name for name in NAMES if load(name).method.name != name.split("/")[0]]
    assert not wrong
