"""`perdure check`: all faults of a recipe at once, then the tasks that it would go through.

Knows what can be told without training. Imports no torch for faults; the data's reader may.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from typing import Annotated

import typer

from perdure.cli._layout import columns, width

EXAMPLES = """
perdure check my.yaml method.lr=1e-4
perdure check mg_clip/cifar100 --no-data
perdure check --env
"""


def command(
    recipe: Annotated[str, typer.Argument(help="name, file, or folder of a run", metavar="[RECIPE]")] = "",
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value")] = None,
    env: Annotated[bool, typer.Option("--env", help="versions, devices, memory, programs")] = False,
    data: Annotated[bool, typer.Option("--data/--no-data", help="also read the data and list the tasks")] = True,
) -> None:
    """Find all faults of a recipe; list its tasks.

    Nothing is trained. With --env: what this machine offers.
    """
    from perdure.errors import RecipeError

    if env:
        print("\n".join(columns(environment(), total=width())))
    if recipe:
        _check(recipe, overrides or [], data=data)
    elif not env:
        raise RecipeError("nothing to check", todo="Type: perdure check RECIPE, or perdure check --env")


def _check(recipe: str, overrides: list[str], *, data: bool) -> None:
    from perdure import recipe as recipes

    loaded = recipes.load(recipe, overrides)
    settings = len(recipes.resolved(loaded))
    print(f"{loaded.run.name}: {settings} settings, no fault")
    if not data:
        return
    stream = recipes.build_stream(loaded)
    recipes.check_kinds(loaded, {task.kind for task in stream})
    rows = [["task", "kind", "classes", "train", "validation", "test", "name"]]
    for task in stream:
        counts = [len(task.candidates), len(task.train), len(task.validation), len(task.test)]
        rows.append([str(task.index + 1), task.kind, *map(str, counts), task.name])
    total = [sum(len(getattr(task, s)) for task in stream) for s in ("train", "validation", "test")]
    rows.append(["all", "", str(sum(len(t.candidates) for t in stream)), *map(str, total), ""])
    print("\n".join(columns(rows, total=width())))
    print(
        f"{len(loaded.seeds)} run{'s' if len(loaded.seeds) > 1 else ''}: "
        + ", ".join(str(loaded.folder(seed)) for seed in loaded.seeds)
    )


PACKAGES = ("perdure", "torch", "torchvision", "transformers", "peft", "accelerate", "numpy", "scikit-learn")
EXTRAS = {"caption": "pycocoevalcap", "video": "av", "openclip": "open_clip_torch", "track": "tensorboard"}


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
