"""`perdure check`: all faults of a recipe at once, then the tasks that it would go through, and its first steps.

Knows arguments and how a plan is laid out. Imports no torch for faults; the data's reader and `--steps` may.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from perdure.cli import _complete
from perdure.cli._layout import columns, duration, libraries_aside, text, width

if TYPE_CHECKING:
    from perdure.recipe import Recipe
    from perdure.recipe.checked import Checked
    from perdure.testing.forecast import Forecast
    from perdure.testing.tokens import Conversation
    from perdure.testing.trial import Trial
    from perdure.types import Task

SHOWN = 20
"""Classes of a task that are named."""
EXAMPLES = """
perdure check my.yaml method.lr=1e-4
perdure check mg_clip/cifar100 --no-data
perdure check mg_clip/microworld --steps 3
perdure check sefe/coin --tokens
perdure check mg_clip/microworld --forecast
perdure check mg_clip/microworld --determinism --tasks 2
perdure check --env
"""


def command(
    recipe: Annotated[
        str,
        typer.Argument(
            help="name, file, or folder of a run", metavar="[RECIPE]", autocompletion=_complete.recipes_and_runs
        ),
    ] = "",
    overrides: Annotated[
        list[str] | None, typer.Argument(help="section.key=value", autocompletion=_complete.settings)
    ] = None,
    env: Annotated[bool, typer.Option("--env", help="versions, devices, memory, programs")] = False,
    data: Annotated[bool, typer.Option("--data/--no-data", help="also read the data and list the tasks")] = True,
    steps: Annotated[int, typer.Option("--steps", min=0, max=10**6, help="train this many steps")] = 0,
    tokens: Annotated[bool, typer.Option("--tokens", help="show a conversation and what of it is learned")] = False,
    forecast: Annotated[bool, typer.Option("--forecast", help="measure a little; say time, memory, disk")] = False,
    determinism: Annotated[
        bool, typer.Option("--determinism", help="run it several ways; say and keep what moves")
    ] = False,
    tasks: Annotated[
        int | None, typer.Option("--tasks", min=1, max=10**6, help="for --determinism: the first tasks alone")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="write the forecast as JSON alone")] = False,
) -> None:
    """Find all faults of a recipe; list its tasks.

    Nothing is written. With --steps, the first and the last task are tried with the real models: loss, seconds, memory.
    With --forecast, what the whole run will cost here. With --tokens: what a language model reads of the first
    conversation of each task, and which of it is learned. With --determinism: what
    moves between threads, test batches, processes and devices, which later runs' cards state.
    """
    from perdure.errors import RecipeError

    if as_json and (not forecast or steps or tokens or determinism):
        raise RecipeError("goes with --forecast alone", where="--json", todo="perdure check RECIPE --forecast --json")
    if tasks is not None and not determinism:
        raise RecipeError("goes with --determinism", where="--tasks")
    if env:
        print("\n".join(columns(environment(), total=width())))
    if recipe:
        found = _check(recipe, overrides or [], data=data or tokens or forecast, quiet=as_json)
        if tokens:
            _show_tokens(found)
        if steps:
            _try(found, steps)
        if forecast:
            _forecast(found, as_json=as_json)
        if determinism:
            _moves(found, tasks=tasks)
    elif not env:
        raise RecipeError("nothing to check", todo="Type: perdure check RECIPE, or perdure check --env")


def _check(recipe: str, overrides: list[str], *, data: bool, quiet: bool) -> Checked:
    from perdure.recipe.checked import check

    found = check(recipe, overrides, data=False)
    if data:
        with libraries_aside():
            found = found.with_data()
    if not quiet:
        print("\n".join([str(found), *(_plan(found) if data else [])]), flush=True)
    return found


def _show_tokens(found: Checked) -> None:
    from perdure.testing.tokens import conversations  # brings torch

    with libraries_aside():
        read = list(conversations(found.recipe, found.stream))
    print("\n".join(line for one in read for line in ["", *_told(one)]))


def _try(found: Checked, steps: int) -> None:
    from perdure.testing.trial import first_steps  # brings torch

    with libraries_aside():
        trial = first_steps(found.recipe, found.stream, steps)
    print("\n".join(["", *_tried(trial, steps)]))


def _forecast(found: Checked, *, as_json: bool) -> None:
    """What the run will cost; on standard output nothing else where JSON is asked for."""
    import psutil

    from perdure.files.text_files import to_json
    from perdure.testing.forecast import forecast  # brings torch

    with libraries_aside():
        said = forecast(found.recipe, found.stream, began=psutil.Process().create_time())
    print(to_json(said.to_json(), indent=1) if as_json else "\n".join(["", *_cost(said, found.recipe)]))


def _moves(found: Checked, *, tasks: int | None) -> None:
    """What moves between ways to run the recipe, and where it is kept."""
    import sys

    from perdure.auditing.determinism import measure
    from perdure.recipe.checked import require_folders
    from perdure.run_folder.run_files import DETERMINISM

    require_folders(found.recipe, again=True)
    print("", flush=True)
    moved = measure(found.recipe, tasks=tasks, note=lambda said: print(f"running: {said}", file=sys.stderr))
    rows = [["beside one thread", "scores", "numbers", "answers"]]
    for each in moved:
        if each.found is None:
            rows.append([each.way.said, "–", "–", f"not possible: {each.refused}"])
        else:
            a = each.found
            rows.append([each.way.said, f"{a.score:.3g}", f"{a.numbers:.2g}", f"{a.answers} of {a.records}"])
    print("\n".join(columns(rows, total=width())))
    said = "Largest differences: of scores in their unit, of numbers in records as a share; answers that changed."
    print("\n".join(text(said)))
    folder = found.recipe.folder(found.recipe.seeds[0]).parent
    print(f"Cards of later runs in {folder} state it: {folder / DETERMINISM}")


def _cost(said: Forecast, asked: Recipe) -> list[str]:
    """The forecast in a line, what is left, and what each figure stands on."""
    from perdure.files.sizes import in_words

    ends = f"{duration(said.low)} to {duration(said.high)}"
    peak = ", ".join(f"{in_words(size)} peak {where}" for where, size in said.memory.items())
    lines = text(f"≈ {duration(said.seconds)} ({ends}), {peak}, {in_words(said.disk)} disk, on {said.device}")
    first, *others = asked.seeds
    if others:
        lines += text(f"{len(asked.seeds)} runs, one for each seed: ≈ {duration(said.seconds * len(asked.seeds))}")
    if said.left < said.seconds:
        folder = asked.folder(first)
        lines += text(f"{folder} holds {said.done} of {said.tasks} tasks; left: ≈ {duration(said.left)}")
    rows = [["part", "time", "basis"], *([part.name, duration(part.seconds), part.basis] for part in said.parts)]
    rows += [[name, "", basis] for name, basis in said.basis.items()]
    return [*lines, *columns(rows, total=width())]


def _plan(found: Checked) -> list[str]:
    """Tasks, classes, examples and steps; then the folders of the runs."""
    from perdure.recipe.plan import passes

    loaded, tasks, pairs = found.recipe, found.tasks, passes(found.recipe)
    shown = [*(["steps"] if pairs else []), "name"]
    counted = ["classes", "train", "validation", "test"]
    rows = [["task", "kind", *counted, *shown]]
    for row, task in zip(tasks, found.stream):
        said = row | {"steps": " + ".join(map(str, row["steps"])), "name": _named(task)}
        rows.append([str(said[key]) for key in rows[0]])
    rows.append(["all", "", *(str(sum(row[key] for row in tasks)) for key in counted), *[""] * len(shown)])
    lines = columns(rows, total=width())
    if pairs:
        said = " + ".join(
            f"{p.setting} ({p.epochs}) x train / {p.batch_size}{' of the first task' * p.first_task_only}"
            for p in pairs
        )
        lines += text(f"steps: {said}, for the task's own examples; what is kept of earlier tasks comes on top")
        if words := sorted({p.epochs for p in pairs if isinstance(p.epochs, str)}):
            lines += text(f"{', '.join(words)}: the method sets the epochs when a task begins")
    data = loaded.stream.settings.get("data")
    root = data.get("root") if isinstance(data, dict) else None
    if root and any(isinstance(e.inputs.get("image"), Path) for task in found.stream for e in task.train[:1]):
        lines += text(f"images were not opened: perdure data check {shlex.quote(str(root))} looks through them")
    folders = ", ".join(str(loaded.folder(seed)) for seed in loaded.seeds)
    return [*lines, *text(f"{len(loaded.seeds)} run{'s' if len(loaded.seeds) > 1 else ''}: {folders}")]


def _named(task: Task) -> str:
    """The task's name, and of classes theirs."""
    if task.kind != "classify" or not task.candidates or task.candidates == (task.name,):
        return task.name
    more = f" and {len(task.candidates) - SHOWN} more" if len(task.candidates) > SHOWN else ""
    return f"{task.name}: {', '.join(task.candidates[:SHOWN])}{more}"


def _told(conversation: Conversation) -> list[str]:
    """A conversation as a model reads it: what is learned on lines that begin with >, line breaks as \\n."""
    from perdure.errors import printable

    images = f", {conversation.of_images} of images" if conversation.of_images else ""
    counted = f"{conversation.tokens} tokens{images}, {conversation.learned} learned (lines with >)"
    lines = text(f"{conversation.task}, {conversation.name}: {counted}")
    room = (width() or 80) - 2
    for part in conversation.parts:
        mark = "> " if part.learned else "  "
        if part.image:
            lines.append(f"{mark}[image: {part.tokens} tokens]")
            continue
        for line in part.text.splitlines(keepends=True):
            shown = printable(line.rstrip("\n")) + ("\\n" if line.endswith("\n") else "")
            lines += [mark + shown[i : i + room] for i in range(0, len(shown), room)]
    return lines


def _tried(trial: Trial, steps: int) -> list[str]:
    """What the first steps gave: parameters, losses, seconds, memory."""
    tasks = " and ".join(f"task {index + 1} ({n} examples)" for index, n in trial.examples.items())
    memory = ", ".join(f"{size / 2**30:.1f} GiB {where}" for where, size in trial.peak_memory.items())
    head = (
        f"The first {steps} steps of each stage of {tasks}, on {trial.device} in {trial.precision}; "
        f"nothing is kept. Peak memory: {memory}."
    )
    if not trial.stages:
        return [*text(head), "The method learns without steps."]
    rows = [["task", "stage", "trained", "seconds a step", "loss"]]
    for stage in trial.stages:
        losses = " ".join("-" if loss is None else f"{loss:.4g}" for loss in stage.losses)
        rows.append([str(stage.task + 1), stage.name, f"{stage.parameters:,}", _seconds(stage.seconds), losses])
    return [*text(head), *columns(rows, total=width())]


def _seconds(seconds: list[float]) -> str:
    """The mean after the first step, in which much is made ready."""
    later = seconds[1:] or seconds
    return f"{sum(later) / len(later):.3f} (first {seconds[0]:.3f})" if seconds else "no step"


PACKAGES = ("perdure", "torch", "torchvision", "transformers", "peft", "accelerate", "numpy", "scikit-learn")
EXTRAS = {
    "caption": "pycocoevalcap",
    "video": "av",
    "parquet": "pyarrow",
    "datasets": "datasets",
    "heic": "pillow-heif",
    "serve": "starlette",
    "onnx": "onnxruntime",
    "openclip": "open_clip_torch",
    "smolvlm": "num2words",
    "quantize": "bitsandbytes",
    "audit": "ImageHash",
    "track": "tensorboard",
}


def environment() -> list[list[str]]:
    """Versions, devices, memory and programs, without importing torch."""
    from importlib.metadata import PackageNotFoundError, version

    def installed(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return "not installed"

    rows = [["python", platform.python_version()], ["system", platform.platform()]]
    rows += [[package, installed(package)] for package in PACKAGES]
    for extra, package in EXTRAS.items():
        found = installed(package)
        hint = f'not installed (pip install "perdure[{extra}]")' if found == "not installed" else found
        rows.append([f"{package} [{extra}]", hint])
    rows.append(["cpu cores", str(os.cpu_count())])
    rows.append(["memory", _memory()])
    rows += [["gpu", line] for line in _gpus()]
    for program, use in (("java", "METEOR, SPICE"), ("ffmpeg", "not needed: PyAV brings its own")):
        rows.append([program, f"{'yes' if shutil.which(program) else 'no'} ({use})"])
    return rows


def _memory() -> str:
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        free, total = (page * os.sysconf(name) / 2**30 for name in ("SC_AVPHYS_PAGES", "SC_PHYS_PAGES"))
    except (ValueError, OSError, AttributeError):
        return "unknown"
    return f"{free:.1f} GiB free of {total:.1f} GiB"


def _gpus() -> list[str]:
    """What NVIDIA's own tool says; torch would take seconds to import."""
    tool = shutil.which("nvidia-smi")
    if not tool:
        mac = platform.system() == "Darwin" and platform.machine() == "arm64"
        return ["Apple (mps)"] if mac else ["none found"]
    query = ["--query-gpu=name,memory.free,memory.total,driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run([tool, *query], capture_output=True, text=True, timeout=1.5, check=True)
    except (subprocess.SubprocessError, OSError):
        return ["nvidia-smi does not answer"]
    return [line.strip() for line in told.stdout.splitlines() if line.strip()] or ["none found"]
