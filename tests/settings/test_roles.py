"""Whether a model has what a method's role asks of it: known from sources, and once more of a loaded model."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from perdure import recipe
from perdure.cli import main
from perdure.errors import RecipeError
from perdure.settings import registry, roles

BACKBONE = '''"""Means of colors on a grid."""
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from perdure.models.clip import ClipTransform


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings."""

    grid: int = 2
    """Cells a side."""


def load(config: Config) -> {returns}:
    return Net(config.grid)


class Net(nn.Module):
    def __init__(self, grid):
        super().__init__()
        self.pool, self.dim = nn.AdaptiveAvgPool2d(grid), 3 * grid**2
        self.register_buffer("here", torch.zeros(1))
        {transform}

    @property
    def device(self):
        return self.here.device

    @property
    def dtype(self):
        return torch.float32

    def image_features(self, pixels):
        return self.pool(pixels).flatten(1)

    def visual_parameters(self):
        return {{}}

    def provenance(self):
        return {{"weights": "none"}}
'''
SMALL = ["stream.train_per_class=1", "stream.test_per_class=1", "stream.step=20", "run.seeds=[]", "run.seed=0"]


def ended(arguments):
    with pytest.raises(SystemExit) as leaving:
        main(arguments)
    return leaving.value.code


def written(folder, *, returns="Net", transform="self.transform = ClipTransform(size=8)"):
    file = folder / "grid.py"
    file.write_text(BACKBONE.format(returns=returns, transform=transform), encoding="utf-8")
    return file


NETS = "gated_resnet, mlp, resnet18, torchvision_net"


@pytest.mark.parametrize(
    "method, role, given, lacks, takes",
    [
        ("rail", "clip", "{name: vit, weights: micro-vit}", "`context_length`, `cut`", "clip, clip_resnet"),
        ("l2p", "vit", "{name: clip, weights: micro-clip}", "`depth`, `is_plain`", "vit"),
        ("der", "net", "{name: vit, weights: micro-vit}", "`forward`", NETS),
    ],
)
def test_a_model_of_another_kind_is_refused_before_anything_is_loaded(method, role, given, lacks, takes):
    name = next(name for name in registry.recipes() if name.startswith(f"{method}/"))
    with pytest.raises(RecipeError) as caught:
        recipe.load(name, [f"models.{role}={given}"])
    said = str(caught.value)
    assert f"has no {lacks}" in said
    assert f"which method `{method}` asks of its `{role}`" in said
    assert f"it takes: {takes}; or one of your own: docs/add-a-model.md" in said


def test_every_shipped_recipe_gives_models_that_fit():
    found = {}
    for name in registry.recipes():
        loaded = recipe.load(name)
        for role, named in loaded.models.items():
            found[name, role] = roles.lacking(loaded.method.name, role, named.name)
    assert len(found) > 100
    assert not {key: names for key, names in found.items() if names}


def test_prototypes_and_ranpac_take_any_tower_in_the_role_vit():
    for method in ("prototype", "ranpac"):
        assert roles.fitting(method, "vit") == ["clip", "clip_resnet", "vit"]
    for given in ("vit", "backbone"):
        one = f"models.{given}={{name: vit, weights: micro-vit}}"
        loaded = recipe.load("ranpac/microworld", ["models.clip=null", one])
        assert list(loaded.models) == [given]


def test_a_model_of_ones_own_fits_by_what_it_has(tmp_path):
    file = written(tmp_path)
    assert roles.lacking("ranpac", "vit", str(file)) == []
    assert roles.lacking("l2p", "vit", str(file))[:2] == ["depth", "is_plain"]
    own = ["models.clip=null", f"models.vit={file}", "method.projection_dim=20", f"run.out={tmp_path}"]
    assert ended(["run", "ranpac/microworld", *SMALL, *own]) == 0


def test_what_a_model_of_ones_own_lacks_is_said_before_the_first_task(tmp_path, capsys):
    own = ["models.clip=null", f"models.vit={written(tmp_path, transform='')}", f"run.out={tmp_path}"]
    assert ended(["check", "ranpac/microworld", "--no-data", *SMALL, *own]) == 2
    assert "the model `grid` has no `transform`" in capsys.readouterr().err
    written(tmp_path, transform="", returns="nn.Module")  # so that the source does not tell
    assert ended(["check", "ranpac/microworld", "--no-data", *SMALL, *own]) == 0
    assert ended(["run", "ranpac/microworld", *SMALL, *own]) == 2
    said = capsys.readouterr().err
    assert "models.vit: a Net has no `transform`. Expected what method ranpac asks of its `vit`" in said
    assert "docs/add-a-model.md" in said


def test_two_models_where_one_is_taken_name_the_way_out():
    with pytest.raises(RecipeError, match=r"(?s)found clip and vit.* models\.clip=null or .*=null leaves one out"):
        recipe.load("prototype/microworld", ["models.vit={name: vit, weights: micro-vit}"])


def test_a_loaded_model_of_the_class_or_with_its_names_fits():
    @dataclass
    class Asked:
        dim: int

        def encode(self): ...

    class Method:
        def __init__(self, config, *, tower: Asked, net: nn.Module | None = None, plain=None): ...

    Method.__init__.__annotations__ |= {"tower": Asked, "net": nn.Module | None}
    assert roles.lacking_now(Method, "tower", Asked(dim=1)) == []
    assert roles.lacking_now(Method, "tower", torch.nn.Linear(1, 1)) == ["dim", "encode"]
    assert roles.lacking_now(Method, "net", torch.nn.Linear(1, 1)) == []
    assert roles.lacking_now(Method, "plain", 3) == []
