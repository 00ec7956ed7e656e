"""One small run with two seeds, made once, and copied by tests that change it."""

import shutil

import pytest

from perdure import api, recipe

RECIPE = {
    "stream": {"name": "class_incremental", "data": "digits", "step": 5, "train_per_class": 10, "test_per_class": 5},
    "models": {"net": {"name": "mlp", "inputs": 192, "hidden": 8}},
    "method": {"name": "sgd", "epochs": 1},
    "run": {"device": "cpu", "threads": 1, "seeds": [0, 1], "name": "small"},
}


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    api.execute(recipe.load(RECIPE, [f"run.out={folder}"]), quiet=True)
    return folder / "small"


@pytest.fixture
def runs(made, tmp_path):
    """The folder of both seeds, to do with as a test likes."""
    return shutil.copytree(made, tmp_path / "small")
