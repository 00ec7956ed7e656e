"""`perdure rollback`: back to the version that was promoted before.

Knows arguments. Imports no torch.
"""

from __future__ import annotations

from typing import Annotated

import typer

from perdure.cli import _complete

EXAMPLES = """
perdure rollback runs/mine
perdure rollback runs/mine 1 --reason "confuses eels and snakes"
"""


def command(
    run: Annotated[str, typer.Argument(help="folder of a run", metavar="RUN", autocompletion=_complete.runs)],
    version: Annotated[int | None, typer.Argument(help="its number [the one promoted before]", min=1)] = None,
    reason: Annotated[str, typer.Option("--reason", help="for the history")] = "",
) -> None:
    """Promote the version that was promoted before; nothing is deleted, and the next update starts from it."""
    from perdure.run_folder import promoting, versions

    found = promoting.rollback(versions.split(run)[0], version, reason=reason)
    print(f"version {found.number} is promoted")
