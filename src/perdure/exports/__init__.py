"""What a run has learned, as a folder of its own: weights, how it was made, and Python lines that answer.

Knows opened runs, and what every export has. What weights are written in which form is the method's affair; a method
that writes none keeps its state in perdure's own form.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from perdure import calibration, checkpoint, recipe
from perdure.api import Opened, reopen
from perdure.errors import DataError
from perdure.exports import card, onnx, space
from perdure.files.folders import require_empty
from perdure.files.text_files import read_json
from perdure.files.written_whole import MODE, write_json
from perdure.loop import saved_state
from perdure.run_folder.run_files import checkpoint_file

DATA = frozenset({"memory", "stored", "initial", "examples"})
"""Parts of methods' states that are training data, or what training began with; kept where answers need them."""


def export(
    run: str | Path,
    folder: str | Path,
    *,
    merged: bool = False,
    space: bool = False,
    force: bool = False,
    onnx: bool = False,
) -> str:
    """``perdure.export``: what a run has learned, in a folder of its own, as ``perdure export`` writes it.

    Args:
        run: folder of a run, or ``RUN@3``.
        merged: add low-rank updates to the weights, and write no ``adapter``.
        space: also write a Gradio app that answers.
        force: write into a folder that is not empty.
        onnx: also write a CLIP classifier as ONNX.

    Returns:
        The Python lines that answer.

    Raises:
        RecipeError: nothing can be written there.
        DataError: the folder is not empty; or as `write`.
    """
    require_empty(Path(folder), setting="folder", force=force)
    return write(Path(run), Path(folder), merged=merged, page=space, as_onnx=onnx)


def write(run: Path, out: Path, *, merged: bool = False, page: bool = False, as_onnx: bool = False) -> str:
    """Export a run to a folder.

    Args:
        merged: add low-rank updates to the weights, and write no ``adapter``.
        page: also write a Gradio app that answers (``app.py``, ``requirements.txt``).
        as_onnx: also write ``onnx/`` (`perdure.exports.onnx`).

    Returns:
        The Python lines that answer.

    Raises:
        DataError: the method has learned nothing, or no page can be made for such tasks.
    """
    opened = reopen(run, device="cpu")
    method: Any = opened.method
    stock = hasattr(method, "export") and all(getattr(model, "is_stock", True) for model in opened.models.values())
    if not stock and not method.state_dict():
        raise DataError(f"method {opened.recipe.method.name} learns nothing that could be exported", where=str(run))
    if page:
        space.require(opened)
    if as_onnx:
        onnx.require()
    out.mkdir(parents=True, exist_ok=True)
    usage = method.export(out) if stock else None
    if usage is None or opened.query.kind == "caption":  # a captioner's export is its mapper, which answers nothing
        usage = _own_state(opened, out)
    if opened.query.kind == "classify" and not (out / "classes.json").exists():
        write_json(out / "classes.json", {"classes": list(opened.query.candidates)})
    elif opened.temperature is not None and (out / "classes.json").exists():
        about = read_json(out / "classes.json")
        write_json(out / "classes.json", about | {"temperature": opened.temperature})
    if merged:
        _merge(out)
    if as_onnx:
        usage += "\n" + onnx.write(out, method=opened.recipe.method.name)
    for name in ("recipe.yaml", "tasks.json"):
        if (opened.folder / name).is_file():
            shutil.copy(opened.folder / name, out / name)
    if page:
        space.write(opened, out)
    card.write(opened, out, usage, page=page)
    for file in out.rglob("*"):
        if file.is_file():
            file.chmod(MODE)
    return usage


def _own_state(opened: Opened, out: Path) -> str:
    """The method's state without training data, as `reopen` reads it."""
    saved = saved_state(opened.folder)
    assert saved is not None
    state = dict(saved["method"])
    left_out = (DATA - getattr(opened.method, "answers_from", frozenset())) & state.keys()
    if left_out:
        fresh: Any = recipe.build_method(opened.recipe, opened.recipe.run.seed)[0]
        state |= {part: fresh.state_dict()[part] for part in left_out}
    checkpoint.save(checkpoint_file(out), saved | {"method": state})
    if opened.temperature is not None:
        shutil.copy(opened.folder / calibration.FILE, out / calibration.FILE)
    kind = opened.query.kind
    if kind in ("classify", "caption"):
        return f'import perdure\n\nprint(perdure.predict("{out}", ["picture.jpg"]))\n'
    return (
        "from pathlib import Path\nfrom perdure.api import reopen\n"
        f'opened = reopen(Path("{out}"), device="cpu")\n'
        f"answer = opened.method.predictor(opened.query)  # kind {kind}: of batches of opened.method.preprocess\n"
    )


def _merge(out: Path) -> None:
    """Low-rank updates become part of the weights. A LLaVA's are already; its `adapter` is written besides."""
    adapter, base = out / "adapter", out / "model"
    if not adapter.is_dir():
        return
    if base.is_dir():
        from peft import PeftModel
        from transformers import CLIPModel

        whole: Any = PeftModel.from_pretrained(CLIPModel.from_pretrained(base), adapter)
        whole.merge_and_unload().save_pretrained(base)
    shutil.rmtree(adapter)
