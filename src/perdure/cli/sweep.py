"""`perdure sweep`: a study from one command, on one machine or many; and how it stands.

Knows arguments, what is asked before, and exit codes. Does not know what runs a study has, nor where they run.
"""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from perdure.cli import _complete
from perdure.cli._layout import libraries_aside

if TYPE_CHECKING:
    from perdure.sweeping import Plan
    from perdure.sweeping.executors import Place
    from perdure.sweeping.tally import Tally

UNFINISHED = 1
"""Exit code of a sweep some of whose runs did not come to their end."""


class On(StrEnum):
    """Where runs take place."""

    local = "local"
    slurm = "slurm"
    ray = "ray"


EXAMPLES = """
perdure sweep er/digits --grid method.lr=0.01,0.1 --seeds 0,1,2 --methods er,derpp,sgd
perdure sweep er/digits --grid method.lr=0.01,0.1 --select validation stream.validation_share=0.1
perdure sweep er/digits --grid method.lr=1e-3..1 --search 30 --select validation stream.validation_share=0.1
perdure sweep my_sweep.yaml --jobs 2 --yes
perdure sweep tda/imagenet_shifts --shards 8 --on slurm --slurm partition=gpu --slurm gres=gpu:1
perdure sweep status runs/er-digits-sweep
"""


def command(
    words: Annotated[
        list[str],
        typer.Argument(
            help="recipes or a sweep.yaml, and section.key=value for all; or: status [SWEEP]",
            metavar="RECIPE... [KEY=VALUE]...",
            autocompletion=_complete.recipes,
        ),
    ],
    grid: Annotated[
        list[str] | None, typer.Option("--grid", "-g", help="section.key=a,b,c; several are combined")
    ] = None,
    seeds: Annotated[str, typer.Option("--seeds", help="0,1,2 [the recipes']")] = "",
    methods: Annotated[str, typer.Option("--methods", help="each recipe with each of these, a,b,c")] = "",
    select: Annotated[str, typer.Option("--select", help="choose a setting by validation, or first-task")] = "",
    metric: Annotated[str, typer.Option("--metric", help="by which it is chosen [the headline]")] = "",
    search: Annotated[int, typer.Option("--search", min=0, help="trials of Optuna instead of all combinations")] = 0,
    fresh: Annotated[str, typer.Option("--fresh", help="seeds of the chosen setting's runs")] = "",
    shards: Annotated[int, typer.Option("--shards", min=0, help="cut a test-time run's test sets into parts")] = 0,
    name: Annotated[str, typer.Option("--name", help="of the sweep's folder")] = "",
    on: Annotated[On, typer.Option("--on", help="where runs take place")] = On.local,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=0, help="runs at once")] = 0,
    gpus: Annotated[str, typer.Option("--gpus", help="0,1: a run sees one of these")] = "",
    gpu_share: Annotated[float | None, typer.Option("--gpu-share", min=0, help="of a GPU for a run (ray)")] = None,
    slurm: Annotated[list[str] | None, typer.Option("--slurm", help="option of sbatch, key=value")] = None,
    leave: Annotated[bool, typer.Option("--leave", help="do not wait for the queue (slurm)")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="do not ask")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check all runs and list them")] = False,
    forecast: Annotated[
        bool | None, typer.Option("--forecast/--no-forecast", help="measure what it will cost [where it asks]")
    ] = None,
    data: Annotated[bool, typer.Option("--data/--no-data", help="also read the data to check them")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="status as JSON")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="no progress")] = False,
) -> int:
    """Run every combination of settings, methods and seeds; or choose a setting honestly, and run what was chosen.

    The same command again goes on: finished runs are skipped, stopped ones resumed. Exit code 0: all finished.
    1: some run failed, the others went on. 2: wrong input. 130: stopped.
    """
    if words[0] == "status":
        return _status(words[1:], as_json=as_json)
    given = {"seeds": seeds, "fresh": fresh, "methods": methods, "select": select, "metric": metric, "name": name}
    given |= {"search": search, "shards": shards}
    gpu = {"gpus": _listed(gpus), "gpu_share": gpu_share}
    place = {"kind": on.value, "jobs": jobs, **gpu, "options": _options(slurm or [], on)}
    how = {"ask": not yes, "dry_run": dry_run, "measure": not yes and not dry_run if forecast is None else forecast}
    return _sweep(words, grid or [], given, place, how, data=data, leave=leave, quiet=quiet)


def _status(words: list[str], *, as_json: bool) -> int:
    from perdure.cli._sweep_lines import status

    print(status(words, as_json=as_json))
    return 0


def _sweep(
    words: list[str],
    grid: list[str],
    given: dict[str, Any],
    at: dict[str, Any],
    how: dict[str, bool],
    *,
    data: bool,
    leave: bool,
    quiet: bool,
) -> int:
    from perdure import sweeping
    from perdure.errors import RecipeError
    from perdure.sweeping.executors import Place

    stated = {key: value or None for key, value in given.items()}
    stated |= {key: _numbers(f"--{key}", given[key]) for key in ("seeds", "fresh")}
    study, places = _study(words, grid, stated | {"methods": _listed(given["methods"])})
    place = Place(**at)
    if leave and (place.kind != "slurm" or study.select != "none"):
        why = (
            "what is chosen is known when all are finished" if study.select != "none" else "nobody else would run them"
        )
        raise RecipeError(why, where="--leave", expected="--on slurm, without --select")
    with libraries_aside():
        plan = sweeping.plan(study, places, data=data)
    if not _agreed(plan, place, **how) or how["dry_run"]:
        return 0
    return _conduct(plan, place, leave=leave, quiet=quiet)


def _study(words: list[str], grid: list[str], given: dict[str, Any]) -> Any:
    """The study, and the places of its settings."""
    from perdure.errors import RecipeError
    from perdure.recipe.source import read
    from perdure.sweeping.study import read_grid, read_study

    names = [word for word in words if "=" not in word]
    stated = dict(word.split("=", 1) for word in words if "=" in word)
    sweeps = []
    for one in names:
        file = Path(one)
        if file.is_file() and {"recipes", "grid"} & set(read(file, label=one)[0].values):
            sweeps.append(file)
    if sweeps and len(names) > 1:
        raise RecipeError("is a sweep of its own", where=str(sweeps[0]), expected="it alone, or recipes")
    given |= {"grid": read_grid(grid), "settings": _settings(stated), "recipes": () if sweeps else tuple(names)}
    return read_study(sweeps[0] if sweeps else None, given)


def _settings(stated: dict[str, str]) -> dict[str, Any]:
    from perdure.recipe.source import Unreadable, read_overrides

    layer, wrong = read_overrides([f"{key}={value}" for key, value in stated.items()])
    if wrong:
        raise Unreadable(wrong)
    found = {}
    for key in stated:
        value: Any = layer.values
        for part in key.split("."):
            value = value[part]
        found[key] = value
    return found


def _agreed(plan: Plan, place: Place, *, ask: bool, dry_run: bool, measure: bool) -> bool:
    """Say what it comes to, and ask."""
    from perdure.cli._sweep_lines import outlook
    from perdure.errors import RecipeError

    asks = ask and not dry_run and bool(plan.todo or plan.later)
    if asks and not sys.stdin.isatty():
        raise RecipeError("nobody can be asked whether to begin", where="sweep", todo="Add --yes.")
    lines = outlook(plan, place, listed=dry_run, measure=measure)
    print("\n".join(lines), file=sys.stdout if dry_run else sys.stderr)
    if not asks:
        return True
    print("Begin? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _conduct(plan: Plan, place: Place, *, leave: bool, quiet: bool) -> int:
    from perdure.cli._sweep_lines import Live, ended
    from perdure.sweeping.conducting import conduct

    with libraries_aside(), Live(quiet=quiet) as live:
        tally: Tally = conduct(plan, place, live.tell, leave=leave)
    if leave:
        print(f"The jobs are in the queue: perdure sweep status {plan.folder}")
        return 0
    with libraries_aside():
        lines = ended(tally)
    print("\n".join(lines))
    return 0 if tally.count("finished", "pruned") == len(tally.cells) else UNFINISHED


def _listed(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _numbers(option: str, text: str) -> tuple[int, ...]:
    from perdure.errors import RecipeError

    words = _listed(text)
    if wrong := next((word for word in words if not word.isdigit()), None):
        raise RecipeError(f"found {wrong!r}", where=option, expected="whole numbers, 0,1,2")
    return tuple(map(int, words))


def _options(given: list[str], on: On) -> dict[str, str]:
    from perdure.errors import RecipeError

    if given and on is not On.slurm:
        raise RecipeError("has no use here", where="--slurm", expected="--on slurm")
    if wrong := next((text for text in given if "=" not in text), None):
        raise RecipeError(f"found {wrong!r}", where="--slurm", expected="key=value, as in --slurm partition=gpu")
    return dict(text.split("=", 1) for text in given)
