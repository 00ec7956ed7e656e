"""Reports: from runs' folders to pages and tables that people and programs read.

Knows which files a report has. Imports no torch; `load`, `tables`, `figures` and the writers do the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from perdure.errors import DataError
from perdure.files.folders import require_folder
from perdure.reporting.card import compare_cards, make_card

__all__ = ["compare_cards", "find_runs", "make_card", "report", "report_below"]
COMPARISON = "comparison"
"""Folder of the report of several."""


def report_below(
    folders: str | Path | Sequence[str | Path], out: str | Path | None = None, *, spread: Literal["sd", "ci"] = "ci"
) -> dict[str, Path]:
    """``perdure.report``: the report of all runs in these folders and below them, as ``perdure report`` writes it.

    Args:
        folders: of runs, or of what holds some; one or several.
        out: folder for the report. If left out: the folder that is named; of several, so that none loses its own,
            `comparison` in the working folder.
        spread: see `report`.

    Returns:
        file name -> path.

    Raises:
        RecipeError: nothing can be written there.
        DataError: as `report`.
    """
    paths = [Path(one) for one in ([folders] if isinstance(folders, str | Path) else folders)]
    if not paths:
        raise DataError("no run is named", where="report", expected="a run's folder")
    several = len({path.absolute() for path in paths if not path.is_file()}) > 1
    place = Path(out) if out is not None else Path(COMPARISON) if several else paths[0]
    require_folder(place, setting="--out")
    return report(find_runs(paths), place, spread=spread)


def report(runs: Sequence[Path], out: Path, *, spread: Literal["sd", "ci"] = "ci", seen: str = "") -> dict[str, Path]:
    """Write ``report.html``, ``report.md``, ``scores.csv`` and ``report.json`` of these runs into the folder `out`.

    Runs that differ in their seed only are merged; different ones are compared. Of runs that only tested (test-time
    adaptation) there are tables of methods and test sets, too: on both pages, in ``sets.csv`` and ``sets.tex``.

    Args:
        spread: what stands behind ± in those: the standard deviation, or half of the 95 % interval of the mean.
        seen: what the numbers say, in sentences for the head of ``report.html`` and ``report.md``.

    Returns:
        file name -> path.

    Raises:
        DataError: no run was given, a folder is not a run's, or none of them has a score yet.
    """
    from perdure.reporting import by_set, html, load, markdown, plain, tables

    read = [load.read(Path(folder)) for folder in dict.fromkeys(map(Path, runs))]
    scored = [run for run in read if run.rows]
    if not scored:
        where = ", ".join(str(run.folder) for run in read)
        raise DataError("there is no score yet", where=where, expected="a finished task", todo="Resume the run.")
    groups = tables.groups(scored)
    wide = by_set.tables(groups)
    texts = {
        "report.html": html.html(groups, seen=seen, sets=by_set.as_texts(wide, spread)),
        "report.md": markdown.markdown(groups, seen=seen),
        "scores.csv": plain.scores_csv(groups),
        "report.json": plain.report_json(groups),
    }
    if wide:
        texts["report.md"] += "\n" + by_set.as_markdown(wide, spread) + "\n"
        texts |= {"sets.csv": by_set.as_csv(wide), "sets.tex": by_set.as_latex(wide, spread)}
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (out / name).write_text(text, encoding="utf-8", newline="\n")
    return {name: out / name for name in texts}


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """Runs' folders among `folders`, and all below those that are none themselves, in order of name.

    So the folder of a recipe, which holds one folder a seed, stands for all its runs. Files among them are ignored,
    such as an earlier report's (``perdure report runs/*``), unless there is nothing else. A folder without any run is
    returned as it is, for `report` to refuse.
    """
    from perdure.run_folder.run_files import runs_below

    paths = list(map(Path, folders))
    found: list[Path] = []
    for folder in [path for path in paths if not path.is_file()] or paths:
        found += runs_below(folder) or [folder]
    return found
