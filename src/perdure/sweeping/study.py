"""What a sweep is asked to do: recipes, values to try, seeds, and how a setting may be chosen.

Knows the settings of a `sweep.yaml` and of the command line, and lists and ranges of values. Does not know what runs
come of them (`cells`). Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from perdure.errors import RecipeError
from perdure.files.folders import LONGEST_NAME
from perdure.recipe.source import Mark, Unreadable, Wrong, located, read, read_overrides
from perdure.settings import config
from perdure.settings.config import Seed

Select = Literal["none", "validation", "first-task"]
NO_TEST = (
    "a number on test examples is what a study reports; a setting that was chosen by it makes that number too good. "
    "Choose by `validation` (validation examples of all tasks) or by `first-task` (those of the first task alone)"
)
LOG_FROM = 100
"""A range whose end is at least so many times its beginning is searched in its logarithm."""
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"


@dataclass(frozen=True, kw_only=True)
class Study:
    """Settings of a sweep: the keys of a `sweep.yaml`, and the options of `perdure sweep`."""

    recipes: Annotated[tuple[str, ...], Field(min_length=1)]
    """Names or files of recipes."""
    methods: tuple[str, ...] = ()
    """Each recipe with each of these methods: by the method's own recipe for the same data and models where perdure
    has one, else with the method's default settings. Empty: the recipes' own."""
    settings: dict[str, Any] = field(default_factory=dict)
    """`section.key: value`, for all runs."""
    grid: dict[str, Any] = field(default_factory=dict)
    """`section.key: [values]`: every combination is run. With `search` also ranges, `1e-5..1e-2`."""
    seeds: Annotated[tuple[Seed, ...], Field(max_length=1000)] = ()
    """A run for each; empty: the recipes' own."""
    name: str = ""
    """Folder of the sweep in `run.out`; empty: the first recipe's name and `-sweep`."""
    select: Select = "none"
    """Choose one setting for each recipe and method, by `validation` examples of all tasks, or by those of the
    `first-task` alone, after which these runs end; the chosen ones are run on `fresh` seeds and tested."""
    metric: str = ""
    """By which it is chosen; empty: the headline."""
    search: Annotated[int, Field(ge=0, le=100_000)] = 0
    """Instead of every combination: so many trials for each recipe and method, proposed by Optuna; those that fall
    behind others are ended between tasks."""
    fresh: Annotated[tuple[Seed, ...], Field(max_length=1000)] = ()
    """Seeds of the chosen settings' final runs; empty: as many as `seeds`, after the largest of them."""
    shards: Annotated[int, Field(ge=1, le=10_000)] = 1
    """Cut the test sets of each run (test-time adaptation) into so many parts, run as jobs and merged again."""

    def faults(self) -> Iterator[tuple[str, str]]:
        if self.name and (not re.fullmatch(r"[\w.+=][\w.+=-]*", self.name) or set(self.name) == {"."}):
            yield "name", "expected letters, digits and . _ + = - (it names a folder, and must not begin with -)"
        elif len(self.name.encode()) > LONGEST_NAME:
            yield "name", f"expected at most {LONGEST_NAME} bytes (it names a folder)"
        for key in ("recipes", "methods", "seeds", "fresh"):
            values = getattr(self, key)
            if (twice := next((value for value in values if values.count(value) > 1), None)) is not None:
                yield key, f"{twice} is given twice"
        if self.search and self.select == "none":
            yield "search", f"expected `select` beside it: {NO_TEST}"
        if self.search and not self.grid:
            yield "search", "expected lists or ranges of values in `grid`"
        if self.select == "none" and (self.fresh or self.metric):
            yield "fresh" if self.fresh else "metric", "has no use without `select`"
        if shared := set(self.fresh) & set(self.seeds):
            yield "fresh", f"seed {min(shared)} is one of `seeds`, by which the setting is chosen"
        if self.shards > 1 and self.select != "none":
            yield "shards", "has no use with `select`: what learns nothing has nothing to choose by validation"


@dataclass(frozen=True, kw_only=True)
class Range:
    """Numbers between two ends, for a search."""

    low: float
    high: float
    whole: bool
    """Whole numbers only."""

    @property
    def log(self) -> bool:
        """Whether it is searched in its logarithm."""
        return self.low > 0 and self.high >= LOG_FROM * self.low


def read_study(file: Path | None, given: Mapping[str, Any]) -> tuple[Study, dict[str, str]]:
    """A study from a `sweep.yaml`, changed by what the command line gives.

    Args:
        given: settings by name; None where nothing was given. Mappings are joined, all else is replaced.

    Returns:
        The study, and for each key of its grid and settings what messages call its place.

    Raises:
        RecipeError: all faults at once.
    """
    stated = {key: value for key, value in given.items() if value not in (None, {}, ())}
    if stated.get("select", "none") not in ("none", "validation", "first-task"):
        raise RecipeError(f"found {stated['select']!r}", where="--select", expected="validation or first-task",
                          todo=NO_TEST[0].upper() + NO_TEST[1:] + ".")  # fmt: skip
    layer, wrong = read(file, label=str(file)) if file is not None else (None, [])
    values = dict(layer.values) if layer else {}
    if str(values.get("select", "")).startswith("test"):
        raise RecipeError("found 'test'", where=f"{file}: select", expected="validation or first-task", todo=NO_TEST)
    places = {key: f"{file}" for part in ("grid", "settings") for key in _keys(values.get(part))}
    places |= dict.fromkeys(stated.get("grid", {}), "--grid")
    places |= dict.fromkeys(stated.get("settings", {}), "command line")
    for key, value in stated.items():
        joined = isinstance(value, Mapping) and isinstance(values.get(key), Mapping)
        values[key] = {**values[key], **value} if joined else value
    study, faults = config.check(Study, values)
    if layer is not None:
        wrong = [*wrong, *(located(fault, layer) for fault in faults)]
    else:
        wrong = [_on_command_line(fault.path, fault.what, fault.hint) for fault in faults]
    if wrong or study is None:
        raise Unreadable(wrong, layer.files if layer else ())
    grid, said = {}, []
    for key, value in study.grid.items():
        try:
            grid[key] = values_of(key, value, places[key], search=bool(study.search))
        except RecipeError as fault:
            said.append(fault)
    if said:
        raise RecipeError("\n".join(map(str, said)))
    return replace(study, grid=grid), places


def read_grid(options: Sequence[str]) -> dict[str, Any]:
    """``--grid section.key=a,b`` -> values by name; a single one is a list of one.

    Raises:
        RecipeError: all faults at once.
    """
    layer, wrong = read_overrides(options, paths=True)
    if wrong:
        raise Unreadable([replace(w, mark=replace(w.mark, file="--grid")) for w in wrong])
    found = {}
    for option in options:
        key = option.partition("=")[0]
        value: Any = layer.values
        for part in key.split("."):
            value = value[part]
        found[key] = value if isinstance(value, list) or _is_range(value) else [value]
    return found


def values_of(key: str, value: Any, place: str, *, search: bool) -> tuple[Any, ...] | Range:
    """The values of one setting of a grid.

    Raises:
        RecipeError: it has none, one of them twice, or a range where every combination is to be run.
    """
    where = f"{place}: {key}"
    if _is_range(value):
        low, high = (float(end) for end in str(value).split(".."))
        if not search:
            raise RecipeError(f"{value} is a range", where=where, expected="a list of values, or --search N")
        if low >= high:
            raise RecipeError(f"{value} is empty", where=where, expected="the lower end first")
        return Range(low=low, high=high, whole=all(re.fullmatch(r"[+-]?\d+", end) for end in str(value).split("..")))
    if not isinstance(value, list | tuple) or not value:
        raise RecipeError("holds no list of values", where=where, expected="[value, value]")
    plain = [repr(one) for one in value]
    if (twice := next((one for one, said in zip(value, plain) if plain.count(said) > 1), None)) is not None:
        raise RecipeError(f"{twice} is given twice", where=where)
    return tuple(value)


def _is_range(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(rf"{_NUMBER}\.\.{_NUMBER}", value) is not None


def _keys(part: Any) -> list[str]:
    return list(part) if isinstance(part, Mapping) else []


def _on_command_line(path: Sequence[Any], what: str, hint: str) -> Wrong:
    option = f"--{path[0]}" if path else "perdure sweep"
    mark = Mark(file=option, line=1, column=1, width=0, text="")
    return Wrong(mark=mark, what=what, hint=hint)
