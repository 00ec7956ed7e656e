"""The runs of a study: each a recipe of one seed in a folder of its own, and all that is wrong with any of them.

Knows recipes, grids and the names of folders. Does not know how runs are started, nor what has become of them. Imports
no torch; the data's reader may.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from perdure import recipe as recipes
from perdure import resuming
from perdure.errors import PerdureError, RecipeError
from perdure.recipe import Recipe, given_models
from perdure.recipe.source import COMMAND_LINE, Unreadable, Wrong
from perdure.recipe.text import flow
from perdure.settings import registry
from perdure.sweeping.study import Range, Study

Phase = Literal["grid", "search", "chosen", "shards"]
LONGEST = 120
"""Characters of a cell's folder; of a longer name the end is a digest."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A recipe with one method: within it settings are compared."""

    name: str
    asked: str
    """Name or file of its recipe."""
    overrides: tuple[str, ...]
    """Those that make it of that recipe."""

    @property
    def source(self) -> str:
        """Where its settings come from, in words."""
        return f"{self.asked}, the method with its defaults" if self.overrides else self.asked


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run."""

    arm: str
    name: str
    """Of its settings, without the seed."""
    recipe: Recipe
    """Of this seed alone, in the sweep's folder."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Those of the grid."""
    tasks: int | None = None
    """It is done after so many tasks; None: when all are."""
    trial: int | None = None
    """Number of a search's trial, which may be ended between tasks."""
    phase: Phase = "grid"
    """Of a sweep that chooses: `search` for one, then the runs of what was `chosen`. `shards` are parts of a run."""

    @property
    def seed(self) -> int:
        return self.recipe.run.seed

    @property
    def folder(self) -> Path:
        return self.recipe.folder(self.seed)

    @property
    def key(self) -> str:
        """What it is called in a sweep, whose folder it lies below: its settings and seed."""
        return below(self.phase, f"{self.name}/seed_{self.seed}")


def below(phase: Phase, name: str) -> str:
    """A place below a sweep's folder: what was searched and what was chosen lie apart."""
    return name if phase == "grid" else f"{phase}/{name}"


class Faults:
    """Gathers what is wrong with many runs, each fault once."""

    def __init__(self) -> None:
        self.wrong: dict[Wrong, None] = {}
        self.said: dict[str, PerdureError] = {}

    def note(self, error: PerdureError, *, places: Mapping[str, str] | None = None) -> None:
        """Args: places: what messages call the place of a setting that was given as an override."""
        if isinstance(error, Unreadable):
            self.wrong |= dict.fromkeys(_placed(wrong, places or {}) for wrong in error.wrong)
        else:
            self.said.setdefault(str(error), error)

    def of(self, act: Callable[[], Any], *, places: Mapping[str, str] | None = None) -> Any:
        """What `act` returns; None where it raises what a user can mend, which is noted."""
        try:
            return act()
        except PerdureError as error:
            self.note(error, places=places)
            return None

    def settle(self) -> None:
        """Raise all that was noted: a single error as it is.

        Raises:
            RecipeError: all faults at once.
        """
        if self.wrong:
            text = str(Unreadable(self.wrong))
            raise RecipeError("\n".join([*self.said, text])) if self.said else Unreadable(self.wrong)
        if len(self.said) == 1:
            raise next(iter(self.said.values()))
        if self.said:
            raise RecipeError("\n".join([*self.said, f"{len(self.said)} errors; nothing was run"]))


def arms(study: Study, faults: Faults) -> list[Arm]:
    """Each recipe with each of the study's methods."""
    found: list[Arm] = []
    for asked in study.recipes:
        made = [_own(asked, faults)] if not study.methods else [_with(asked, m, faults) for m in study.methods]
        found += [arm for arm in made if arm is not None]
    for name in {arm.name for arm in found}:
        if sum(arm.name == name for arm in found) > 1:
            faults.note(RecipeError(f"two of its recipes are called {name}", where="sweep", todo="Name each once."))
    return found


def grid(study: Study) -> Iterator[dict[str, Any]]:
    """Every combination of the study's lists of values."""
    keys = [key for key, values in study.grid.items() if not isinstance(values, Range)]
    yield from (dict(zip(keys, values)) for values in itertools.product(*(study.grid[key] for key in keys)))


def loaded(arm: Arm, settings: Mapping[str, Any], study: Study, more: Sequence[str] = ()) -> Recipe:
    """The recipe of an arm with values of the grid; its seeds are the study's, or its own.

    Raises:
        RecipeError: all its faults at once.
    """
    given = [f"{key}={flow(value)}" for key, value in {**study.settings, **settings}.items()]
    seeds = [f"run.seeds={flow(list(study.seeds))}"] if study.seeds else []
    return recipes.load(arm.asked, [*arm.overrides, *given, *seeds, *more])


def named(arm: Arm, settings: Mapping[str, Any], keys: Iterable[str]) -> str:
    """The folder of a setting: the arm's name and the values of the grid, whatever order it is stated in.

    Args:
        keys: all of the grid, of which two may end alike.
    """
    leaves = [key.rpartition(".")[2] for key in keys]
    words = []
    for key in sorted(settings):
        leaf = key.rpartition(".")[2]
        word = f"{leaf if leaves.count(leaf) == 1 else key}={flow(settings[key])}"
        words.append(re.sub(r"[^\w.+=]+", "_", word).strip("_"))
    whole = "-".join([arm.name, *words])
    if len(whole) <= LONGEST and all(re.fullmatch(r"[\w.+-]*", flow(value)) for value in settings.values()):
        return whole
    digest = hashlib.blake2b(repr(sorted(settings.items())).encode(), digest_size=5).hexdigest()
    return f"{whole[: LONGEST - 11]}-{digest}"


def placed(asked: Recipe, folder: Path, phase: Phase, name: str, *, share: bool = True) -> Recipe:
    """A recipe whose runs lie in a sweep's folder.

    Args:
        share: frozen features, which are made once for all runs.
    """
    run = replace(asked.run, out=(folder / below(phase, "x")).parent, name=name)
    return replace(asked, run=replace(run, features=folder / "features") if share and not run.features else run)


def of_seeds(
    arm: Arm, settings: Mapping[str, Any], asked: Recipe, name: str, *, seeds: Sequence[int] = (), **more: Any
) -> list[Cell]:
    """A cell for each seed: those given, or the recipe's."""
    return [
        Cell(arm=arm.name, name=name, recipe=asked.for_seed(seed), settings=dict(settings), **more)
        for seed in seeds or asked.seeds
    ]


def require(
    cells: Sequence[Cell], faults: Faults, *, data: bool = True, also: Callable[[Recipe, Any], None] | None = None
) -> list[Any]:
    """Note all that keeps a cell from being run: its data, what its method cannot answer, weights that cannot be had, a
    folder that holds another run, or that nothing can be written to.

    Args:
        data: read the data, once for each stream, and look for the weights.
        also: asserts more of a recipe and its stream.

    Returns:
        The streams that could be built.
    """
    streams: list[tuple[Any, Any]] = []
    fitted: list[Recipe] = []
    _require_same_settings(cells, faults)
    for cell in cells:
        plain = replace(cell.recipe, run=replace(cell.recipe.run, seed=0, name="run"))
        if not data or plain in fitted:
            continue
        fitted.append(plain)
        faults.of(lambda cell=cell: given_models.require_weights(cell.recipe))
        stream = next((made for asked, made in streams if asked == cell.recipe.stream), None)
        if stream is None and all(asked != cell.recipe.stream for asked, _ in streams):
            stream = faults.of(lambda cell=cell: recipes.build_stream(cell.recipe))
            streams.append((cell.recipe.stream, stream))
        if stream is not None:
            faults.of(lambda cell=cell, stream=stream: recipes.check_fit(cell.recipe, stream))
            if also is not None:
                faults.of(lambda cell=cell, stream=stream: also(cell.recipe, stream))
    return [stream for _, stream in streams if stream is not None]


def _require_same_settings(cells: Sequence[Cell], faults: Faults) -> None:
    """Note runs of other settings in the cells' folders; those that differ alike, once."""
    differ: dict[str, list[Cell]] = {}
    for cell in cells:
        try:
            resuming.require_same_settings(cell.recipe, cell.folder)
        except RecipeError as error:
            differ.setdefault(error.what, []).append(cell)
    for what, those in differ.items():
        more = f" (and {len(those) - 1} more)" if len(those) > 1 else ""
        todo = "Give the sweep another --name, or remove these folders."
        faults.note(RecipeError(what, where=f"{those[0].folder}{more}", todo=todo))


def _own(asked: str, faults: Faults) -> Arm | None:
    found = faults.of(lambda: recipes.load(asked))
    return None if found is None else Arm(name=found.run.name, asked=asked, overrides=())


def _with(asked: str, method: str, faults: Faults) -> Arm | None:
    """A recipe with another method: by the method's own recipe for the same data where there is one that goes through
    the same stream."""
    base = faults.of(lambda: recipes.load(asked))
    if base is None:
        return None
    name = f"{registry.label(method)}-{base.run.name.removeprefix(f'{base.method.name}-')}"
    if base.method.name == method:
        return Arm(name=base.run.name, asked=asked, overrides=())
    found = _sibling(asked.removesuffix(".yaml"), base, method)
    if found is not None:
        sibling, other = found
        if other.stream == base.stream:
            return Arm(name=name, asked=sibling, overrides=())
        what = f"{sibling} goes through another stream than {asked}"
        faults.note(
            RecipeError(what, where="--methods", todo=f"Name {sibling} among the recipes, for a row of its own.")
        )
        return None
    arm = Arm(name=name, asked=asked, overrides=(f"method.name={flow(method)}",))
    return arm if faults.of(lambda: recipes.load(asked, arm.overrides), places={"method.name": "--methods"}) else None


def _sibling(asked: str, base: Recipe, method: str) -> tuple[str, Recipe] | None:
    """The method's own recipe beside a shipped one: of the same data and models, else of the same name."""
    if asked not in recipes.shipped():
        return None
    own = {name: recipes.load(name) for name in recipes.shipped() if name.partition("/")[0] == method}
    for name, other in own.items():
        if other.stream == base.stream and other.models == base.models:
            return name, other
    return next((one for one in own.items() if one[0].partition("/")[2] == asked.partition("/")[2]), None)


def _placed(wrong: Wrong, places: Mapping[str, str]) -> Wrong:
    """A fault of an override as one of the option or file that gave it."""
    mark = wrong.mark
    place = places.get(mark.text.partition("=")[0]) if mark.file == COMMAND_LINE else None
    return replace(wrong, mark=replace(mark, file=place, line=1)) if place and place != "command line" else wrong
