"""`perdure audit`: leaks of the protocol in a run, looked for by experiment.

Knows arguments and how findings are laid out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from perdure.cli import _complete
from perdure.cli._layout import columns, libraries_aside, width

if TYPE_CHECKING:
    from perdure.auditing.finding import Finding

EXAMPLES = """
perdure audit runs/mg_clip-microworld/seed_0
perdure audit runs/er-digits
perdure audit runs/tent-microworld --examples 100 --json
"""


def command(
    run: Annotated[
        Path, typer.Argument(help="folder of a run, or of its seeds", metavar="RUN", autocompletion=_complete.runs)
    ],
    examples: Annotated[int, typer.Option("--examples", min=4, max=10**6, help="tests asked in each experiment")] = 32,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, mps ...")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="write JSON")] = False,
) -> int:
    """Look for leaks: does an answer hang on its batch, its companions, the task's name; are tests among what was
    learned; were settings chosen on the test?

    Each is an experiment with what the run has learned, and its data. The findings lie in the run's `audit.json`. The
    exit code is 1 if something leaks.
    """
    from perdure.auditing import FILE, audit, seeds_of  # brings torch
    from perdure.files.folders import require_folder
    from perdure.files.text_files import to_json

    folder = seeds_of(run)[0]
    require_folder(folder, setting="RUN")
    with libraries_aside():
        findings = audit(run, count=examples, device=device)
    if as_json:
        print(to_json([each._asdict() for each in findings], indent=1))
    else:
        print("\n".join(_lines(findings)))
        print(f"What was done and seen, in full: {folder / FILE}")
    return int(any(each.verdict == "leaks" for each in findings))


def _lines(findings: Sequence[Finding]) -> list[str]:
    """Verdict, what should hold and what was seen; then a count."""
    rows = [["verdict", "what should hold, and what was seen"]]
    rows += [[each.verdict, f"{each.check}: {each.seen}"] for each in findings]
    counts = Counter(each.verdict for each in findings)
    return [*columns(rows, total=width()), "", ", ".join(f"{n} {verdict}" for verdict, n in counts.items())]
