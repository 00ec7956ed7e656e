"""`perdure export`: what a run has learned, in the formats of its ecosystem.

Knows folders and the card beside an export. What is written is the method's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from perdure.cli import _complete

EXAMPLES = """
perdure export runs/mg_clip-microworld/seed_0 my_model
perdure export runs/finetune-microworld/seed_0 my_model --force
"""


def command(
    run: Annotated[Path, typer.Argument(help="folder of a run", metavar="RUN", autocompletion=_complete.runs)],
    out: Annotated[Path, typer.Argument(help="folder to write", metavar="DIR")],
    force: Annotated[bool, typer.Option("--force", help="write into a folder that is not empty")] = False,
) -> None:
    """Write a folder that plain transformers and peft load without perdure."""
    from perdure.errors import DataError
    from perdure.folders import require_folder

    require_folder(out, setting="DIR")
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not force:
        raise DataError("is not empty", where=str(out), todo="Name another folder, or add --force.")
    from perdure import api
    from perdure.cli._layout import libraries_aside

    with libraries_aside():
        opened = api.reopen(run, device="cpu")
    if not hasattr(opened.method, "export"):
        name = opened.recipe.method.name
        raise DataError(f"method {name} learns nothing that could be exported", where=str(run))
    out.mkdir(parents=True, exist_ok=True)
    with libraries_aside():
        usage = opened.method.export(out)
        api.write_model_card(opened, out, usage)
    for path in sorted(p for p in out.rglob("*") if p.is_file()):
        print(path)
    print(f"\n{usage.strip()}")
