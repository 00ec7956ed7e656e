"""The models that a recipe gives a method: all roles that it needs, none that it does not take, and each with what the
role asks.

Knows roles and names of models. Does not know settings of models or where a fault stands in a file. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from perdure.errors import RecipeError
from perdure.recipe.sections import Recipe
from perdure.settings import config, registry, roles
from perdure.settings.faults import Fault


def faults(method: Any, models: Mapping[str, Any]) -> list[Fault]:
    """Models that the method needs and are not given, or that it does not take."""
    name = method.get("name") if isinstance(method, Mapping) else method
    if not isinstance(name, str) or not registry.known("methods", name):
        return []
    about = registry.describe("methods", name)
    takes = f"it takes: {', '.join(about.roles)}" if about.roles else "it takes none"
    extra = [
        Fault(path=("models", role), what=f"method `{name}` takes no model `{role}`", hint=takes, at="key")
        for role in models
        if role not in about.roles
    ]
    for role, value in models.items():
        model = value.get("name") if isinstance(value, Mapping) else value
        if role in about.roles and isinstance(model, str) and registry.known("models", model):
            extra += _unfit(name, role, model, at="name" if isinstance(value, Mapping) else None)
    missing = [r for r in about.roles if r not in models and r not in about.optional_roles]
    hint = "see: perdure list models"
    given = [role for role in about.one_role_of if role in models]
    if about.one_role_of and len(given) != 1:
        takes = f"exactly one model of {' and '.join(f'`{role}`' for role in about.one_role_of)}"
        what = f"method `{name}` takes {takes}, found {' and '.join(given) or 'none'}"
        drop = f"{' or '.join(f'models.{role}=null' for role in given)} leaves one out"
        extra.append(Fault(path=("models",), what=what, hint=drop if given else hint, at="key"))
    return extra + [
        Fault(path=("models",), what=f"method `{name}` needs a model `{r}`", hint=hint, at="key") for r in missing
    ]


def require_verbs(recipe: Recipe, role: str, model: Any) -> None:
    """RecipeError where a loaded model has not what the method's role asks of it."""
    name = recipe.method.name
    if lacking := roles.lacking_now(registry.load("methods", name), role, model):
        raise RecipeError(
            f"a {type(model).__name__} has no {_several(lacking)}",
            where=f"models.{role}",
            expected=f"what method {name} asks of its `{role}`",
            todo="docs/add-a-model.md lists it by role.",
        )


def require_weights(recipe: Recipe) -> None:
    """RecipeError where weights are not on this machine and cannot be fetched: what a model's `Config` says in
    `weights_absent`."""
    for role, (_, settings) in read(recipe).items():
        if why := getattr(settings, "weights_absent", str)():
            raise RecipeError(
                why if why.startswith(settings.weights) else f"{settings.weights}: {why}",
                where=f"models.{role}.weights",
                expected="a folder, a file, an embedded model, or a hub id that can be had",
            )


def require_fitting_settings(method: Any, models: Mapping[str, tuple[str, Any]]) -> None:
    """RecipeError where the method's settings do not go with its models (`read`): what its `Config` says in
    `misfits`."""
    wrong = method.misfits(models) if hasattr(method, "misfits") else ()
    if found := [f"method.{name}: {message}" for name, message in wrong]:
        raise RecipeError("\n".join(found))


def read(recipe: Recipe) -> dict[str, tuple[str, Any]]:
    """Name and settings of each model by its role."""
    return {
        role: (
            named.name,
            config.parse(registry.settings("models", named.name), named.settings, where=f"models.{role}"),
        )
        for role, named in recipe.models.items()
    }


def _unfit(method: str, role: str, model: str, *, at: str | None) -> list[Fault]:
    """A model that has not what the role asks of it, as far as sources tell."""
    lacking = roles.lacking(method, role, model)
    if not lacking:
        return []
    asks = f"which method `{method}` asks of its `{role}`"
    what = f"the model `{registry.label(model)}` has no {_several(lacking)}, {asks}"
    takes = ", ".join(roles.fitting(method, role))
    hint = f"it takes: {takes}; or one of your own: docs/add-a-model.md"
    return [Fault(path=("models", role, *([at] if at else [])), what=what, hint=hint)]


def _several(names: Sequence[str]) -> str:
    """The first of several names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(f"`{name}`" for name in names[:3]) + more
