"""`perdure promote`: make a version of a run the one that is used.

Knows arguments. Imports no torch.
"""

from __future__ import annotations

from typing import Annotated

import typer

from perdure.cli import _complete

EXAMPLES = """
perdure promote runs/mine 3
perdure promote runs/mine 3 --reason "checked by hand"
"""


def command(
    run: Annotated[str, typer.Argument(help="folder of a run", metavar="RUN", autocompletion=_complete.runs)],
    version: Annotated[int, typer.Argument(help="its number: see perdure versions", min=1)],
    reason: Annotated[str, typer.Option("--reason", help="for the history")] = "",
) -> None:
    """Promote a version; a server that follows the run takes it up. Nothing is deleted."""
    from perdure.run_folder import promoting, versions

    promoting.promote(versions.split(run)[0], version, reason=reason)
    print(f"version {version} is promoted")
