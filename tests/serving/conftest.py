"""Two versions of a run, whose models are in memory."""

import pytest

from perdure.prediction import Loaded
from perdure.run_folder import versions
from perdure.serving import following
from tests.in_use import in_use


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two versions of a classifier: the second has seen more."""
    root = tmp_path_factory.mktemp("models")
    return {
        1: in_use(root / "1", "finetune", version=1),
        2: in_use(root / "2", "finetune", version=2, lr=0.05),
    }


@pytest.fixture
def run(tmp_path, models, monkeypatch):
    """A run's folder with two versions, whose models are those in memory."""
    folder = tmp_path / "run"
    second = folder / "versions" / "000002" / "checkpoint"
    second.mkdir(parents=True)
    (folder / "checkpoint").mkdir()
    for place in (folder, second.parent):
        (place / "recipe.yaml").write_text("x: 1\n")
        (place / "checkpoint" / "latest.safetensors").write_bytes(b"")

    def load(address, *, device):
        found = versions.resolve(address)
        return Loaded(models[found.number].opened, found.number)

    monkeypatch.setattr(following, "load", load)
    return folder
