"""What `perdure check` finds of models and the settings that go with them, before any weights load."""

from __future__ import annotations

import subprocess
import sys

import pytest
from huggingface_hub import constants

import perdure
from perdure.errors import RecipeError
from perdure.models import named_weights, vit
from tests.tiny_vit import write

SMALL = ["stream.train_per_class=1", "stream.test_per_class=1", "stream.step=20"]


@pytest.mark.parametrize(
    "name, given, said",
    [
        ("l2p", "models.vit.weights=./nofolder", r"models\.vit\.weights: \./nofolder: no such file or folder"),
        ("rail", "models.clip.weights=./no.pt", r"models\.clip\.weights: \./no\.pt: no such file or folder"),
        ("coda_prompt", "method.blocks=[0,1,20]", r"method\.blocks: names block 20; the network has blocks 0 to 3"),
        ("dualprompt", "method.expert_blocks=[4]", r"method\.expert_blocks: names block 4; .* blocks 0 to 3"),
        ("ranpac", "method.first_session=adapter", r"method\.first_session: is adapter, and models\.clip is a CLIP"),
        ("finetune", "method.trains=head", r"method\.trains: is head, and a CLIP has none"),
    ],
)
def test_what_cannot_go_is_found_by_check(name, given, said):
    with pytest.raises(RecipeError, match=said):
        perdure.check(f"{name}/microworld", [*SMALL, given])
    assert perdure.check(f"{name}/microworld", SMALL).tasks


def test_weights_that_are_not_cached_are_missed_where_nothing_may_be_fetched(monkeypatch):
    given = [*SMALL, "models.vit.weights=vit_base_patch16_224.nobody_has_it"]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RecipeError, match=r"timm/vit_base_patch16_224\.nobody_has_it is not in the cache"):
        perdure.check("l2p/microworld", given)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert perdure.check("l2p/microworld", given).tasks


def test_blocks_are_counted_by_the_names_of_tensors(tmp_path):
    for weights in ("micro-vit", "micro-clip", str(write(tmp_path, depth=3))):
        assert named_weights.count_blocks(weights) == vit.load(vit.Config(weights=weights)).depth
    assert named_weights.count_blocks("nobody/has-it") is None


def test_settings_of_models_are_read_without_torch():
    code = (
        "import sys; from perdure import recipe; from perdure.recipe import given_models as given; "
        "loaded = recipe.load('coda_prompt/microworld'); given.require_weights(loaded); "
        "assert given.read(loaded)['vit'][1].count_blocks() == 4; assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
