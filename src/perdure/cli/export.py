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
perdure export runs/finetune-microworld/seed_0 my_model --merged --force
perdure export runs/sefe-microworld/seed_0 my_space --space
"""


def command(
    run: Annotated[Path, typer.Argument(help="folder of a run", metavar="RUN", autocompletion=_complete.runs)],
    out: Annotated[Path, typer.Argument(help="folder to write", metavar="DIR")],
    merged: Annotated[bool, typer.Option("--merged", help="low-rank updates in the weights, no adapter")] = False,
    space: Annotated[bool, typer.Option("--space", help="also a Gradio page: app.py, requirements.txt")] = False,
    force: Annotated[bool, typer.Option("--force", help="write into a folder that is not empty")] = False,
) -> None:
    """Write what a run has learned: weights, classes, and a README whose few lines answer.

    Plain transformers and peft load it without perdure where the model is theirs (CLIP, LLaVA).
    """
    from perdure.files.folders import require_empty

    require_empty(out, setting="DIR", force=force)  # before torch is imported
    from perdure import exports
    from perdure.cli._layout import libraries_aside

    with libraries_aside():
        usage = exports.write(run, out, merged=merged, page=space)
    for path in sorted(p for p in out.rglob("*") if p.is_file()):
        print(path)
    print(f"\n{usage.strip()}")
