"""Every shipped recipe builds its method around models of its families, tiny ones in the place of large ones."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from perdure import recipe
from perdure.loop import seed_everything
from perdure.models import clip
from perdure.settings import registry
from perdure.settings.config import Named
from perdure.types import Method
from tests import tiny_audio_visual, tiny_captioner, tiny_clip, tiny_instruction, tiny_vit
from tests.recipes.shipped import NAMES, load

SMALL_NETS = ("mlp", "resnet18", "gated_resnet")
EMBEDDED = ("microworld", "digits")


def written(name: str) -> bool:
    """Whether a recipe reads a generated world from files that its user has to write first."""
    return load(name).stream.name in ("audio_visual", "instruction")


OF_THE_MODELS_SIZE = {**tiny_audio_visual.SETTINGS, "reward_confidences": [10, 5, 3]}
"""Settings that fit models of the published size alone, and what stands for them here."""


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Callable[[Named], Any]:
    """A model of the family that a recipe names, small enough to build hundreds of."""

    @cache
    def folder() -> str:
        return str(tiny_clip.tiny_clip(tmp_path_factory.mktemp("clip"), image_size=32))

    def build(named: Named) -> Any:
        if named.name in SMALL_NETS:
            return named.build()
        if named.name == "torchvision_net":
            small = {"architecture": "shufflenet_v2_x0_5", "weights": "none"}
            return Named(place="models", name=named.name, settings={**named.settings, **small}).build()
        if named.name in ("clip", "clip_resnet"):
            return clip.load(clip.Config(weights=folder()))
        if named.name == "vit":
            return tiny_vit.fresh_vit(depth=6)
        if named.name == "clap":
            return tiny_audio_visual.clap()
        if named.name in ("llava", "vlm"):
            return tiny_instruction.tiny_llava()
        assert named.name == "captioner", f"no tiny model of the family {named.name}"
        llm = tiny_captioner.tiny_llm(tmp_path_factory.mktemp("llm"))
        small = {"dim": 24, "llm": str(llm), "layers": 1, "weights": None}
        known = {key: value for key, value in small.items() if key in registry.field_docs("models", "captioner")}
        return Named(place="models", name="captioner", settings={**named.settings, **known}).build()

    return build


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_its_method_is_built_around_its_roles(name, tiny):
    loaded = load(name)
    seed_everything(0)
    paired = any(named.name == "clap" for named in loaded.models.values())
    models = {
        role: tiny_audio_visual.clip() if paired and named.name == "clip" else tiny(named)
        for role, named in loaded.models.items()
    }
    rewards = sum(role.startswith("reward") for role in models)
    fitting = {k: v for k, v in OF_THE_MODELS_SIZE.items() if k in registry.field_docs("methods", loaded.method.name)}
    if "reward_confidences" in fitting:
        fitting["reward_confidences"] = fitting["reward_confidences"][:rewards]
    settings = {**loaded.method.settings, **fitting}
    method = Named(place="methods", name=loaded.method.name, settings=settings).build(**models)
    assert isinstance(method, Method)
    assert method.answers


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in NAMES if n.split("/")[1] in EMBEDDED and not written(n)])
def test_embedded_streams_are_built_and_ask_what_the_method_answers(name):
    loaded = load(name)
    stream = recipe.build_stream(loaded)
    recipe.check_fit(loaded, stream)
    assert len(stream) >= 1
