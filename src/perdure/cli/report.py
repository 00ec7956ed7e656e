"""`perdure report`: runs become a page with figures, and tables to paste.

Knows arguments and what is printed. Imports no torch.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from perdure.cli import _complete


class Spread(StrEnum):
    """What stands behind ±."""

    sd = "sd"
    ci = "ci"


EXAMPLES = """
perdure report runs/mg_clip-microworld
perdure report runs/mg_clip-cifar100 runs/rapf-cifar100 --out comparison
perdure report runs/tda-microworld runs/tent-microworld --spread sd --out comparison
"""


def command(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="folders of runs, or folders that hold them", metavar="RUN...", autocompletion=_complete.runs
        ),
    ],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="folder for the report [the first RUN]")] = None,
    spread: Annotated[
        Spread, typer.Option("--spread", help="behind ± in tables of test sets: standard deviation or 95 % interval")
    ] = Spread.ci,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="print the paths only")] = False,
) -> None:
    """One HTML page that opens offline, and the same as Markdown, CSV and JSON.

    Runs that differ in their seed only are merged; others are compared, seed by seed.
    """
    from perdure.cli._layout import libraries_aside, tables_of
    from perdure.reporting import find_runs, report_below

    with libraries_aside():
        paths = report_below(runs, out, spread=spread.value)
    if not quiet:
        print(tables_of(find_runs(runs), paths["report.md"]))
    for path in paths.values():
        print(path)
