"""Recipes: YAML and overrides become a checked, frozen `Recipe`, and a Recipe becomes objects.

The only place where names become classes. Knows the sections of a recipe and what must fit between
them. Does not know YAML's text and positions (`source`), nor how a run goes (`perdure.loop`). Imports no
torch before `build`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

from perdure import demands, metrics, retention
from perdure.errors import RecipeError
from perdure.recipe import given_models
from perdure.recipe.heading import data_explained
from perdure.recipe.limits import require_room, require_steps
from perdure.recipe.section_names import unknown_sections
from perdure.recipe.sections import Expect, Recipe, Run
from perdure.recipe.source import NAMED_SECTIONS, Layer, Mark, Unreadable, Wrong, located, merge, read, read_overrides
from perdure.recipe.text import dump
from perdure.recipe.whole import Setting, differences, expecting, flat, resolved, to_mapping, to_yaml
from perdure.run_folder import run_files
from perdure.settings import config, registry
from perdure.settings.config import Named
from perdure.settings.faults import Fault, Keys, display
from perdure.settings.suggestions import nearest
from perdure.types import Evaluation, Merge

SHIPPED, shipped = registry.RECIPES, registry.recipes
__all__ = [
    "Expect",
    "Recipe",
    "Run",
    "Setting",
    "build",
    "differences",
    "flat",
    "load",
    "resolved",
    "to_mapping",
    "to_yaml",
]
MOST_BASES = 20
"""Recipes that are based on one another."""
MAPPING = "<mapping>"
"""What messages call settings that come as a mapping; its lines are those of the YAML that it stands for."""


class Built(NamedTuple):
    """What a recipe's names stand for."""

    method: Any
    stream: Any
    models: dict[str, Any]


def load(asked: str | Path | Mapping[str, Any] | Recipe, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe's file, or one of perdure's by name (``mg_clip/cifar100``), changed by overrides.

    Args:
        asked: a name, a file, a run's folder, what a file would hold as a mapping, or a recipe that was loaded.
        overrides: ``section.key=value``, values in YAML 1.2.

    Raises:
        RecipeError: all faults at once, each with file, line, column and caret.
    """
    if isinstance(asked, Recipe):
        if not overrides:
            return asked
        changed = load(to_mapping(asked), overrides)
        now = {name: origin for name, origin in changed.origins.items() if not origin.startswith(MAPPING)}
        return replace(changed, origins={**asked.origins, **now}, heading=asked.heading)
    text = dump(config.plain(asked)) if isinstance(asked, Mapping) else None
    file, label = locate(cast(str | Path, asked)) if text is None else (Path(MAPPING), MAPPING)
    layer, wrong = _with_base(file, label, (), text)
    given, more = read_overrides(overrides)
    if "base" in given.values:
        more.append(Wrong(mark=given.keys[("base",)], what="`base` is read from a file only", hint="run that recipe"))
    speaks = "expect" in layer.values and given.values and "expect" not in given.values
    stated = _checked(layer, default_name="run")[0] if speaks else None
    layer, wrong = _over(layer, given), wrong + more
    recipe, faults = _checked(layer, default_name="run" if text is not None else _run_name(file, label))
    wrong += [located(fault, layer) for fault in faults]
    if wrong or recipe is None:
        raise Unreadable(wrong, layer.files)
    return recipe if stated is None else expecting(recipe, stated)


def locate(path_or_name: str | Path) -> tuple[Path, str]:
    """The file of a recipe, and what messages call it.

    Raises:
        RecipeError: no such recipe; the nearest name is suggested.
    """
    text = str(path_or_name)
    path = Path(text)
    if path.is_dir() and (run_files.one_run(path) / "recipe.yaml").is_file():
        path = run_files.one_run(path) / "recipe.yaml"
    names = shipped()
    name = text.removesuffix(".yaml")
    if path.is_file():
        return path, str(path)
    if path.exists() and not path.is_dir():
        raise RecipeError("this is a pipe or a device", where=text, expected="a recipe's file")
    if name in names:
        return SHIPPED / f"{name}.yaml", f"{name}.yaml"
    same = [n for n in names if n.split("/")[0] == text.rstrip("/") or n.split("/")[1] == text]
    if near := nearest(text, names):
        same = same or [near]
    hint = "Did you mean " + " or ".join(f"`{n}`" for n in same[:4]) + "?" if same else ""
    method, _, world = name.partition("/")
    if method in registry.names("methods") and (of_world := _like(method, world)):
        hint = f"No recipe of {method} is for {world}. Type: perdure run {of_world} method.name={method}"
    raise RecipeError(f"there is no recipe or file `{text}`", todo=hint or "See: perdure list recipes")


def _like(method: str, world: str) -> str:
    """A recipe of a method that takes the same models and learns alike, on these data; empty if there is none."""
    about = registry.describe("methods", method)
    for name in shipped():
        other, _, data = name.partition("/")
        if data == world and other in registry.names("methods"):
            beside = registry.describe("methods", other)
            if (beside.roles, bool(beside.not_updatable)) == (about.roles, bool(about.not_updatable)):
                return name
    return ""


def build_stream(recipe: Recipe) -> Any:
    """The stream alone; DataError if its data is not there, RecipeError if this machine cannot hold it."""
    require_room(recipe)
    with data_explained(recipe.heading):
        stream = recipe.stream.build()
        return retention.added(stream, recipe.evaluate.retention, split=recipe.evaluate.split)


def build(recipe: Recipe, seed: int) -> Built:
    """The stream, the models by role and the method. Fails before any weights load where kinds do not fit."""
    stream = build_stream(recipe)
    check_fit(recipe, stream)
    method, models = build_method(recipe, seed)
    return Built(method, stream, models)


def build_method(recipe: Recipe, seed: int) -> tuple[Any, dict[str, Any]]:
    """The method and its models by role; no data is needed."""
    from perdure.loop import seed_everything

    seed_everything(seed)
    models = {role: named.build() for role, named in recipe.models.items()}
    for role, model in models.items():
        given_models.require_verbs(recipe, role, model)
    seed_everything(seed)  # the method's own start does not depend on what models drew
    method = recipe.method.build(**models)
    if recipe.merge.how != "none":
        from perdure.merging import Merged

        method = Merged(method, recipe.merge)
    return method, models


def check_fit(recipe: Recipe, stream: Any) -> None:
    """RecipeError if the method cannot go through the stream, or it has more classes than a model's head."""
    about = registry.describe("methods", recipe.method.name)
    demands.check(
        stream,
        method=recipe.method.name,
        answers=about.answers,
        needs_task_name=about.needs_task_name,
        new_labels_only=about.new_labels_only,
        split=recipe.evaluate.split,
    )
    if stream.retention:
        retention.require(about, recipe.models.keys(), where="evaluate.retention")
    require_steps(recipe, stream)
    if recipe.merge.how != "none" and about.not_merged:
        what = f"method {recipe.method.name} cannot be merged: {about.not_merged}"
        raise RecipeError(what, where="merge.how", expected="none")
    classes = max((task.offset + len(task.candidates) for task in stream if task.kind == "classify"), default=0)
    method: Any = config.parse(registry.settings("methods", recipe.method.name), recipe.method.settings, where="method")
    models = given_models.read(recipe)
    given_models.require_fitting_settings(method, models)
    for role, (_, settings) in models.items():
        if getattr(method, "trains", "") == "all" and getattr(settings, "dtype", "") == "float16":
            raise RecipeError(
                "is float16, in which the epsilon of Adam (1e-8) is 0, and method.trains is all",
                where=f"models.{role}.dtype",
                expected="float32 or bfloat16",
                todo=f"Set models.{role}.dtype=float32; run.precision=bf16 or fp16 saves time on a GPU.",
            )
        outputs = getattr(settings, "classes", None)  # by this name a model says how many outputs its head has
        if isinstance(outputs, int) and outputs < classes and not head_grows(recipe, role):
            raise RecipeError(
                f"a head of {outputs} outputs",
                where=f"models.{role}.classes",
                expected=f"{classes} or more: the stream {recipe.stream.name} has {classes} classes",
                todo=f"Set models.{role}.classes={classes}.",
            )


def head_grows(recipe: Recipe, role: str) -> bool:
    """Whether a model gets outputs for classes that came after the run was made: if the model can, the method does so,
    and no weights of before are merged with it. A run's own classes have their outputs from its beginning."""
    named = recipe.models[role]
    able = getattr(registry.settings("models", named.name), "head_grows", False)
    does = role in registry.describe("methods", recipe.method.name).head_grows
    return bool(able and does and recipe.stream.name == "chained" and recipe.merge.how == "none")


def _with_base(file: Path, label: str, inside: tuple[Path, ...], text: str | None = None) -> tuple[Layer, list[Wrong]]:
    """A file, or the text of one, over the recipe that its `base` names."""
    layer, wrong = read(file, label=label, text=text)
    base = layer.values.pop("base", None)
    if base is None:
        return layer, wrong
    mark = layer.marks[("base",)]
    if not isinstance(base, str):
        return layer, [*wrong, Wrong(mark=mark, what=f"expected a recipe, found {display(base)}")]
    beside = file.parent / base
    try:
        below_file, below_label = locate(beside if beside.is_file() else base)
    except RecipeError as error:
        return layer, [*wrong, Wrong(mark=mark, what=error.what, hint=error.todo)]
    if below_file.resolve() in (*inside, file.resolve()):
        return layer, [*wrong, Wrong(mark=mark, what=f"`{base}` is based on this recipe itself")]
    if len(inside) >= MOST_BASES:
        return layer, [*wrong, Wrong(mark=mark, what=f"more than {MOST_BASES} recipes are based on one another")]
    below, more = _with_base(below_file, below_label, (*inside, file.resolve()))
    below.values.pop("expect", None)  # published numbers hold for the settings beside which they are stated
    return _over(below, layer), more + wrong


def _over(below: Layer, above: Layer) -> Layer:
    """As `merge`; one seed stated above takes the place of several below."""
    run, lower = above.values.get("run"), below.values.get("run")
    if isinstance(run, dict) and isinstance(lower, dict) and "seed" in run and "seeds" not in run:
        lower.pop("seeds", None)
    return merge(below, above, named=NAMED_SECTIONS)


def _run_name(file: Path, label: str) -> str:
    name = label.removesuffix(".yaml") if file.is_relative_to(SHIPPED) else file.stem
    return re.sub(r"[^\w.+=-]+", "-", name).lstrip("-")[:60] or "run"


def _checked(layer: Layer, *, default_name: str) -> tuple[Recipe | None, list[Fault]]:
    """The recipe (None if there are faults) and all faults of its settings."""
    # A section with nothing in it is one that was left out.
    values = {key: value for key, value in layer.values.items() if value is not None}
    faults = unknown_sections(values)
    for section, place in (("stream", "streams"), ("method", "methods")):
        if section not in values:
            near = f"see: perdure list {place}"
            faults.append(Fault(path=(), what=f"the section `{section}` is missing", hint=near))
        else:
            faults += config.check_named(place, values[section], (section,))
    models = values.get("models", {})
    if isinstance(models, Mapping):
        models = {role: value for role, value in models.items() if value is not None}
        for role, value in models.items():
            faults += config.check_named("models", value, ("models", role))
        faults += given_models.faults(values.get("method"), models)
    else:
        faults.append(Fault(path=("models",), what=f"expected models by role, found {display(models)}"))
    run_values = values.get("run", {})
    if isinstance(run_values, Mapping):
        run_values = {"name": default_name, **run_values}
    evaluate, some = config.check(Evaluation, values.get("evaluate", {}), ("evaluate",))
    run, more = config.check(Run, run_values, ("run",))
    merge, unmerged = config.check(Merge, values.get("merge", {}), ("merge",))
    some += _unknown_metrics(evaluate)
    expect, rest = _expected(values.get("expect", []))
    faults += [*some, *more, *unmerged, *rest]
    if faults or evaluate is None or run is None or merge is None:
        return None, faults
    return Recipe(
        stream=_named("streams", values["stream"]),
        method=_named("methods", values["method"]),
        models={role: _named("models", value) for role, value in models.items()},
        evaluate=evaluate,
        merge=merge,
        run=run,
        expect=expect,
        origins=_origins(layer),
        heading=layer.heading,
    ), []


def _named(place: str, value: Any) -> Named:
    return Named.of(place, value)


def _origins(layer: Layer) -> dict[str, str]:
    marks: dict[Keys, Mark] = {**layer.marks, **layer.keys}
    return {".".join(str(p) for p in path): str(mark) for path, mark in marks.items()}


def _unknown_metrics(evaluation: Evaluation | None) -> list[Fault]:
    faults = []
    for i, name in enumerate(evaluation.metrics if evaluation else ()):
        try:
            metrics.metric(name)
        except RecipeError as fault:
            faults.append(Fault(path=("evaluate", "metrics", i), what=fault.what, hint=fault.todo or fault.expected))
    return faults


def _expected(values: Any) -> tuple[tuple[Expect, ...], list[Fault]]:
    if not isinstance(values, list):
        return (), [Fault(path=("expect",), what=f"expected a list, found {display(values)}")]
    checked = [config.check(Expect, value, ("expect", i)) for i, value in enumerate(values)]
    return tuple(e for e, _ in checked if e is not None), [f for _, faults in checked for f in faults]
