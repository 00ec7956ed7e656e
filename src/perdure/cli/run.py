"""`perdure run`: a recipe from its text to its table.

Knows arguments and what is printed where (progress on standard error, the table on standard output).
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from perdure.cli import _complete

if TYPE_CHECKING:
    from perdure.recipe import Recipe

EXAMPLES = """
perdure run mg_clip/microworld
perdure run mg_clip/cifar100 method.lr=5e-4 run.seeds=0,1,2
perdure run my.yaml --again
perdure run week_2.yaml --from runs/mine/seed_0
perdure run tda/microworld adapt/microworld zero/microworld run.seeds=0,1,2
"""


def command(
    recipe: Annotated[
        str,
        typer.Argument(
            help="name, file, or folder of a run", metavar="RECIPE", autocompletion=_complete.recipes_and_runs
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="section.key=value, as in the recipe; or further recipes",
            metavar="[KEY=VALUE]...",
            autocompletion=_complete.settings,
        ),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="remove the run of this name and start anew")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="no progress")] = False,
    start: Annotated[str, typer.Option("--from", help="go on from what a run has learned, RUN or RUN@3")] = "",
) -> None:
    """Run a recipe, or go on where it stopped.

    The same command again resumes the run exactly; a finished run prints its table and trains nothing. Several recipes
    run one after another and share frozen features (`run.features`).
    """
    from perdure.errors import RecipeError
    from perdure.recipe import load
    from perdure.recipe.checked import require_folders

    words = [recipe, *(overrides or [])]
    names = [recipe, *filter(_is_recipe, words[1:])]
    asked = [load(name, [word for word in words[1:] if word not in names[1:]]) for name in names]
    if start:
        if len(asked) > 1:
            raise RecipeError(
                "goes on from one run, and there are several recipes", where="--from", expected="one recipe"
            )
        _fork(asked[0], start, again=again, quiet=quiet)
        return
    asked = _sharing(asked) if len(asked) > 1 else asked
    for one in asked:
        if again or not _all_finished(one):
            require_folders(one, again=again)
            _run(one, again=again, quiet=quiet)
    if len(asked) > 1:
        print(f"All beside each other: perdure report {shlex.join(str(one.run.out / one.run.name) for one in asked)}")


def _run(asked: Recipe, *, again: bool, quiet: bool) -> None:
    from perdure import api  # brings torch: after all that can be wrong in the text
    from perdure.cli._layout import libraries_aside

    with libraries_aside():
        finished = api.execute(asked, again=again, quiet=quiet)
    if finished.main:
        _print_results([one.folder for one in finished])


def _fork(checked: Recipe, start: str, *, again: bool, quiet: bool) -> None:
    """A run in a folder of its own that goes through the recipe's tasks after those of another run."""
    from perdure import resuming, updating
    from perdure.cli._layout import libraries_aside
    from perdure.recipe.checked import require_folders

    require_folders(checked, again=again)
    if again:
        resuming.require_no_versions(checked.folder(checked.seeds[0]))
        resuming.clear(checked.folder(checked.seeds[0]))
    with libraries_aside():
        finished = updating.fork(checked, start, quiet=quiet)
    if finished.main:
        _print_results([one.folder for one in finished])


def _is_recipe(word: str) -> bool:
    """Whether a word is a recipe, not a setting."""
    from perdure.recipe import shipped

    return "=" not in word and (Path(word).exists() or word.removesuffix(".yaml") in shipped())


def _sharing(asked: Sequence[Recipe]) -> list[Recipe]:
    """Recipes with one place for their frozen features, beside their runs; a place that one states stays."""
    return [
        one if one.run.features else replace(one, run=replace(one.run, features=one.run.out / "features"))
        for one in asked
    ]


def _all_finished(asked: Recipe) -> bool:
    """Print the table of runs that are all finished, at once: torch is not imported."""
    from perdure import resuming

    jobs = [(asked.for_seed(seed), asked.folder(seed)) for seed in asked.seeds]
    if not all(resuming.finished_scores(folder) for _, folder in jobs):
        return False
    if os.environ.get("RANK", "0") != "0":  # one of several processes prints
        return True
    for one, folder in jobs:
        resuming.require_same_settings(one, folder)
    folders = [folder for _, folder in jobs]
    if said := resuming.require_same_data_if_there(asked, folders):
        print(f"{', '.join(map(str, folders))}: {said}", file=sys.stderr)
    print("finished before; nothing was trained (--again makes it anew)", file=sys.stderr)
    _print_results(folders)
    return True


def _print_results(folders: Sequence[Path]) -> None:
    """The table of all seeds, and where their report lies: in the folder above theirs."""
    from perdure.cli._layout import tables_of
    from perdure.reporting import report

    pages = report(folders, folders[0].parent)
    print(tables_of(folders, pages["report.md"]))
    print(f"The report, with figures: {pages['report.html']}")
