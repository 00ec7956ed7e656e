"""`perdure repro`: a run made again from its card, and whether it came out the same.

Knows arguments and how the verdict is laid out.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from perdure.cli import _complete
from perdure.cli._layout import libraries_aside, text

if TYPE_CHECKING:
    from perdure.auditing.repro import Repeated

EXAMPLES = """
perdure repro runs/mg_clip-microworld/seed_0
perdure repro card.json stream.data.root=/data/cifar100
perdure repro card.json run.device=cuda --out elsewhere
"""


def command(
    source: Annotated[
        Path, typer.Argument(help="folder of a run, or a card.json", metavar="RUN|CARD", autocompletion=_complete.runs)
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="where data and weights lie here; settings that move no number", metavar="[KEY=VALUE]..."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="folder of the new run")] = Path("repro"),
    again: Annotated[bool, typer.Option("--again", help="remove what --out holds of it and start anew")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="no progress")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="write JSON")] = False,
) -> int:
    """Make a run again from its card alone, and say: identical, within the tolerance that the card states for other
    devices and threads, or different, with the first task and record that differ.

    Weights, data and code are compared with the card's hashes first. The exit code is 1 if the run is different.
    """
    from perdure.files.folders import require_folder
    from perdure.files.text_files import to_json

    require_folder(out, setting="--out")
    from perdure.auditing import repro  # brings torch

    with libraries_aside():
        repeated = repro.repro(source, overrides or [], out=out, again=again, quiet=quiet)
    print(to_json(repro.to_json(repeated), indent=1) if as_json else "\n".join(_lines(repeated)))
    return int(repeated.verdict == "different")


def _lines(repeated: Repeated) -> list[str]:
    found = repeated.apart
    lines = text(f"{repeated.verdict}: {repeated.basis} compared, {found.records} records")
    if not found.same:
        lines += text(f"first difference: {found.first}")
        lines += text(
            f"scores differ by up to {found.score:.4g}, numbers of records by up to {found.numbers:.2g} of their size, "
            f"{found.answers} answers"
        )
        stated = repeated.tolerance
        said = "the card states no tolerance: perdure check RECIPE --determinism measures one for later runs"
        if stated:
            share = f"{stated['answers']} of {stated['records']} answers"
            said = f"the card's tolerance: scores {stated['score']:.4g}, numbers {stated['numbers']:.2g}, {share}"
        lines += text(said)
    for other in repeated.elsewhere:
        lines += text(f"another machine: {other}")
    return [*lines, f"The new run: {repeated.folder}"]
