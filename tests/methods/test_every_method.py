"""Every method of the registry keeps the rules of the house."""

from __future__ import annotations

from typing import Any

import pytest

from perdure import testing
from perdure.settings import registry
from tests.every_method import METHODS, ON_A_VIT

WHOLE = {"trains": "all", "loss": "local", "lr": 1e-5}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("finetune", WHOLE),
    ("lwf", WHOLE),
    ("joint", {"trains": "all", "lr": 1e-5}),
    ("rapf", {"shrinkage": True, "threshold": 0.0}),
    ("rapf", {"n_replay": 0, "n_pair": 3}),
    ("mg_clip", {"epochs": "auto", "max_epochs": 2, "visual_epochs": 1, "reset": "all", "freeze_A": True}),
    ("mg_clip", {"real_replay": True, "memory_size": 4, "balance_epochs": 1, "reset": "B"}),
    ("mg_clip", {"visual": False, "lora_mode": "vision", "gap_examples": 0, "accumulate": 2}),
    ("ranpac", {"first_session": "adapter", "epochs": 1, "bottleneck": 2, "session_batch_size": 3}),
    ("ranpac", {"first_session": "ssf", "epochs": 1, "projection_dim": 0, "score": "cosine"}),
    ("ranpac", {"first_session": "vpt_deep", "epochs": 1, "prompts": 2, "ridge_tie": "largest"}),
    ("rail", {"form": "dual"}),
    ("l2p", {"batchwise": True, "feature": "both", "augment": "none", "task_slots": True, "copy_keys": True}),
    ("bofa", {"augment": "none", "prototype_roles": "search"}),
    ("magmax", {"merge": "average", "weight": 1.0, "starts_from": "pretrained"}),
    ("wise_ft", {"base": "previous", "trains": "image"}),
    ("rlcf_encoder", {"momentum": 0.9, "update_every": 2}),  # carries state: two checks skip themselves
    ("lora_sequential", {"merge": False}),
    ("adapt", {"mode": "transductive"}),
]
"""Settings that change what is learned or kept."""
ON_A_VIT_VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("finetune", {**WHOLE, "head": "cosine"}),
    ("lwf", {"trains": "head", "loss": "local", "epochs": 2}),
    ("joint", {"trains": "all", "lr": 1e-5}),
]
PLAIN: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in METHODS]


def test_every_registered_method_is_in_the_table_with_a_stream_of_each_of_its_kinds():
    asked = {name: {task.kind for make in tiny.streams.values() for task in make()} for name, tiny in METHODS.items()}
    assert asked == {name: set(registry.describe("methods", name).answers) for name in registry.names("methods")}


def test_methods_that_take_a_clip_or_a_vit_are_tested_with_both():
    both = {name for name in METHODS if set(registry.describe("methods", name).one_role_of) == {"clip", "vit"}}
    assert both == set(ON_A_VIT)


def name_of(settings: dict[str, Any]) -> str:
    return ",".join(f"{key}={value}" for key, value in settings.items()) or "plain"


CASES = [
    *(pytest.param(METHODS[n], settings, id=f"{n}-{name_of(settings)}") for n, settings in [*PLAIN, *VARIANTS]),
    *(
        pytest.param(ON_A_VIT[n], settings, id=f"{n} on a vit-{name_of(settings)}")
        for n, settings in [*((n, {}) for n in ON_A_VIT), *ON_A_VIT_VARIANTS]
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("tiny", "settings"), CASES)
def test_it_behaves_as_a_method(tiny, settings):
    made = testing.check_method(tiny.factory(**settings), tiny.stream, allow=tiny.allow)
    assert {*made, *tiny.allow} == set(testing.CHECKS)
