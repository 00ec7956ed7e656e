"""`perdure versions`: what a run has become: versions, their scores, gates and sizes, and which one is promoted.

Knows how versions are listed. Imports no torch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from perdure.cli import _complete
from perdure.cli._layout import columns, width

EXAMPLES = """
perdure versions runs/mine
perdure versions runs/mine --json
perdure versions runs/mine --prune 3
perdure versions runs/mine@3 --regate milder.yaml
"""


def command(
    run: Annotated[str, typer.Argument(help="folder of a run", metavar="RUN", autocompletion=_complete.runs)],
    as_json: Annotated[bool, typer.Option("--json", help="write JSON")] = False,
    prune: Annotated[int | None, typer.Option("--prune", min=0, help="keep the states of so many newest alone")] = None,
    regate: Annotated[
        Path | None,
        typer.Option("--regate", help="judge RUN@N, or the newest candidate, by these rules; no model is asked"),
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="compare every state with its digest")] = False,
) -> int:
    """List the versions of a run: 1 is the run itself, each update adds one.

    A pruned version keeps its scores and its history, but no state. The promoted version is never pruned. With --verify
    the exit code is 1 if a state is damaged. --regate judges a version again, by the records that it left; the exit
    code is 3 if it does not pass.
    """
    from perdure.errors import RecipeError, printable

    if regate is not None:
        return _regate(run, regate, as_json=as_json)
    from perdure.reporting import history
    from perdure.run_folder import promoting, versions

    folder, wanted = versions.split(run)
    if wanted or not (folder / "recipe.yaml").is_file():
        raise RecipeError("this is not a run's folder", where=run, expected="a run, without @version")
    if prune is not None:
        promoting.prune(folder, prune)
    listed = versions.listed(folder)
    if as_json:
        pointer = versions.pointer(folder)
        found = {"run": str(folder), **pointer, "versions": [history.described(version) for version in listed]}
        print(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        print("\n".join(columns([history.COLUMNS, *map(history.cells, listed)], total=width())))
    faults = [fault for version in listed for fault in promoting.faults(version)] if verify else []
    for fault in faults:
        print(printable(fault))
    return int(bool(faults))


def _regate(run: str, file: Path, *, as_json: bool) -> int:
    from perdure import gate
    from perdure.cli._layout import libraries_aside
    from perdure.cli.update import REFUSED, verdict_lines
    from perdure.run_folder import versions

    rules = gate.read(file)
    folder, wanted = versions.split(run)
    version = versions.resolve(f"{folder}{versions.AT}{wanted or 'candidate'}")
    with libraries_aside():
        from perdure.updating import judging

        verdict = judging.again(version, rules)
    passed = verdict["outcome"] == "passed"
    end = f"version {version.number}: {verdict['outcome']}"
    end += f". To use it: perdure promote {folder} {version.number}" if passed and not version.current else ""
    print(json.dumps(verdict, indent=1, ensure_ascii=False) if as_json else "\n".join([*verdict_lines(verdict), end]))
    return 0 if passed else REFUSED
