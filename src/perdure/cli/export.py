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
perdure export runs/mg_clip-microworld/seed_0 my_model --onnx --version 3
"""


def command(
    run: Annotated[Path, typer.Argument(help="folder of a run", metavar="RUN", autocompletion=_complete.runs)],
    out: Annotated[Path, typer.Argument(help="folder to write", metavar="DIR")],
    merged: Annotated[bool, typer.Option("--merged", help="low-rank updates in the weights, no adapter")] = False,
    space: Annotated[bool, typer.Option("--space", help="also a Gradio page: app.py, requirements.txt")] = False,
    onnx: Annotated[bool, typer.Option("--onnx", help="also ONNX, of CLIP classifiers")] = False,
    version: Annotated[int | None, typer.Option("--version", min=1, help="which; else the promoted one")] = None,
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
        usage = exports.write(_address(run, version), out, merged=merged, page=space, as_onnx=onnx)
    for path in sorted(p for p in out.rglob("*") if p.is_file()):
        print(path)
    print(f"\n{usage.strip()}")


def _address(run: Path, version: int | None) -> Path:
    from perdure.errors import RecipeError
    from perdure.run_folder import versions

    folder, wanted = versions.split(run)
    if wanted and version is not None:
        raise RecipeError(f"{run} names a version already", where="--version", todo="Leave one of the two out.")
    return Path(f"{folder}{versions.AT}{version}") if version is not None else run
