"""`perdure report`: runs become a page with figures, and tables to paste.

Knows arguments and what is printed. Imports no torch.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from perdure.cli import _complete


class Table(StrEnum):
    """Tables that are printed instead of a report."""

    wide = "wide"


class Format(StrEnum):
    """How a table is written."""

    markdown = "markdown"
    latex = "latex"
    csv = "csv"


class Spread(StrEnum):
    """What stands behind ±."""

    sd = "sd"
    ci = "ci"


EXAMPLES = """
perdure report runs/mg_clip-microworld
perdure report runs/mg_clip-cifar100 runs/rapf-cifar100
perdure report runs/tda-microworld runs/tent-microworld --spread sd --out shifted
perdure report runs/er-digits-sweep --table wide --metrics average,forgetting --format latex
"""


def command(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="folders of runs, or folders that hold them", metavar="RUN...", autocompletion=_complete.runs
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="folder for the report [RUN; of several: comparison]")
    ] = None,
    spread: Annotated[
        Spread, typer.Option("--spread", help="behind ± in wide tables: standard deviation or 95 % interval")
    ] = Spread.ci,
    table: Annotated[
        Table | None, typer.Option("--table", help="a paper's table alone: methods down, metrics and streams across")
    ] = None,
    metrics: Annotated[
        str, typer.Option("--metrics", help="of the table: average,last,forgetting,ece [average,last]")
    ] = "",
    form: Annotated[Format, typer.Option("--format", help="of the table")] = Format.markdown,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="print the paths only")] = False,
) -> None:
    """One HTML page that opens offline, and the same as Markdown, CSV and JSON.

    Runs that differ in their seed only are merged; others are compared, seed by seed. With --table the table is printed
    and nothing else is made; published rows stand below ours with their source.
    """
    if table is not None:
        _print_table(runs, metrics, form, spread, out)
        return
    from perdure.cli._layout import libraries_aside, tables_of
    from perdure.reporting import find_runs, report_below

    with libraries_aside():
        paths = report_below(runs, out, spread=spread.value)
    if not quiet:
        print(tables_of(find_runs(runs), paths["report.md"]))
    for path in paths.values():
        print(path)


def _print_table(runs: list[Path], metrics: str, form: Format, spread: Spread, out: Path | None) -> None:
    """On standard output, or as a file of a folder."""
    from perdure.files.folders import require_folder
    from perdure.files.written_whole import write_text
    from perdure.reporting import find_runs, load, wide

    if out is not None:
        require_folder(out, setting="--out")
    names = [name.strip() for name in metrics.split(",") if name.strip()]
    made = wide.wide([load.read(folder) for folder in dict.fromkeys(find_runs(runs))], names)
    text = wide.written(made, form.value, spread.value)
    if out is None:
        print(text, end="")
        return
    file = out / f"table.{wide.SUFFIXES[form.value]}"
    write_text(file, text)
    print(file)
