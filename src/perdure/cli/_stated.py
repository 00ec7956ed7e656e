"""A method that is used without a recipe: its settings and its models, as ``--set`` and ``--model`` state them.

Knows names and texts of the command line. Does not know what the method does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perdure.settings.config import Named

DEFAULTS = {"policy": "openai/clip-vit-base-patch16", "reward": "openai/clip-vit-large-patch14"}
"""Weights of a role that is not named: those of the paper."""


def settings(method: str, given: Sequence[str]) -> Any:
    """The method's Config from ``key=value``."""
    from perdure.errors import RecipeError
    from perdure.recipe.source import read_overrides
    from perdure.settings import config, registry

    layer, wrong = read_overrides([f"method.{text}" for text in given])
    if wrong:
        raise RecipeError("; ".join(w.what for w in wrong), where="--set", expected="key=value")
    # The method's own class, so that its fields are what `replace` knows.
    cls = registry.load("methods", method).Config
    return config.parse(cls, layer.values.get("method", {}), where=f"method {method}")


def weights(method: str, models: Sequence[str]) -> dict[str, str]:
    """Weights of each role from ``ROLE=WEIGHTS``; required roles that are not named have those of the paper."""
    from perdure.errors import RecipeError
    from perdure.settings import registry

    about = registry.describe("methods", method)
    given = {}
    for text in models:
        role, _, of_role = text.partition("=")
        if role not in about.roles or not of_role:
            raise RecipeError(
                f"{text!r}", where="--model", expected=f"ROLE=WEIGHTS with one of {', '.join(about.roles)}"
            )
        given[role] = of_role
    required = [role for role in about.roles if role not in about.optional_roles]
    return {role: DEFAULTS[role] for role in required} | given


def clip(weights: str) -> Named:
    """The CLIP of these weights; ``RN50`` and the like are its residual networks."""
    from perdure.settings.config import Named

    family = "clip_resnet" if weights.startswith("RN") else "clip"
    return Named(place="models", name=family, settings={"weights": weights})
