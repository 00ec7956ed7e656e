"""`perdure versions`: what a run has become: versions, their scores, gates and sizes, and which one is promoted.

Knows how versions are listed. Imports no torch.
"""

from __future__ import annotations

import json
from typing import Annotated

import typer

from perdure.cli import _complete
from perdure.cli._layout import columns, width

EXAMPLES = """
perdure versions runs/mine
perdure versions runs/mine --json
perdure versions runs/mine --prune 3
"""


def command(
    run: Annotated[str, typer.Argument(help="folder of a run", metavar="RUN", autocompletion=_complete.runs)],
    as_json: Annotated[bool, typer.Option("--json", help="write JSON")] = False,
    prune: Annotated[int | None, typer.Option("--prune", min=0, help="keep the states of so many newest alone")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="compare every state with its digest")] = False,
) -> int:
    """List the versions of a run: 1 is the run itself, each update adds one.

    A pruned version keeps its scores and its history, but no state. The promoted version is never pruned. With --verify
    the exit code is 1 if a state is damaged.
    """
    from perdure.errors import RecipeError, printable
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
