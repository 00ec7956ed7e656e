"""`perdure data`: list data sets, look through one or through your own images, write a generated one.

Knows arguments and what is printed. `perdure.prepare.check_images` looks through images.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from perdure.cli import SETTINGS, _complete, epilog
from perdure.cli._layout import libraries_aside

EXAMPLES = """
perdure data check my_images/
perdure data check cifar100 root=/data/cifar100
perdure data make microworld --as imagefolder --out shapes
"""
app = typer.Typer(
    help="Look through data before a run.",
    epilog=epilog(EXAMPLES),
    rich_markup_mode=None,
    no_args_is_help=True,
    context_settings=SETTINGS,
)
LISTED = """
perdure data list
perdure data list imagenet
"""
CHECKED = """
perdure data check my_images/ --decode
perdure data check list.csv
perdure data check 'shards/train-{000..012}.tar'
perdure data check table path=list.csv image_column=picture
perdure data check imagenet_r root=/data/imagenet-r
"""
PREPARED = """
perdure data prepare videos/ clips/
perdure data prepare talk.mp4 clips/ --seconds 5 --start 30
"""
MADE = """
perdure data make microworld --as imagefolder --out shapes
perdure data make microworld --as flickr30k --out f30k seed=3
perdure data make microworld --as coin --out coin_microworld
perdure data make microworld --as ave --out AVE train_clips=40 test_clips=20
"""


@app.command("list", epilog=epilog(LISTED), context_settings=SETTINGS)
def list_data(
    word: Annotated[str, typer.Argument(help="only lines that hold this word")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="write JSON")] = False,
) -> None:
    """List the data sets that can be read."""
    from perdure.cli.list import command

    command("data", word, as_json)


@app.command("check", epilog=epilog(CHECKED), context_settings=SETTINGS)
def check(
    what: Annotated[
        str,
        typer.Argument(
            help="a data set's name, a folder, a table, .tar shards, or hf:owner/name", autocompletion=_complete.data
        ),
    ],
    settings: Annotated[list[str] | None, typer.Argument(help="of a data set: key=value")] = None,
    decode: Annotated[bool, typer.Option("--decode", help="decode every pixel, not the headers alone")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="write JSON")] = False,
) -> None:
    """Count, and find what would stop a run.

    Finds unreadable and missing images, the same image in two splits, and class names that do not match; says what a
    run does to images that are turned by EXIF, in CMYK, in 16 bit, with a palette or alpha, or moving.
    Exit code 0: sound; 1: faults were found; 2: it cannot be checked.
    """
    from perdure.prepare import check_images
    from perdure.settings import registry
    from perdure.settings.config import Named

    path = Path(what).expanduser()
    if what in registry.names("data") and not path.exists():
        named = Named(place="data", name=what, settings=stated(what, settings or []))
        with libraries_aside():
            found = check_images.check(named.build(), decode=decode)
    else:
        if not path.exists() and path.name == what and not what.startswith("hf:") and not what.endswith(".tar"):
            raise _nothing(what, path)
        with libraries_aside():
            found = check_images.check_path(path, decode=decode)
    print(json.dumps(found.to_json(), indent=1) if as_json else "\n".join(found.lines()))
    if found.exit_code:
        raise SystemExit(found.exit_code)


@app.command("make", epilog=epilog(MADE), context_settings=SETTINGS)
def make(
    name: Annotated[str, typer.Argument(help="a generated data set: microworld")],
    settings: Annotated[list[str] | None, typer.Argument(help="key=value")] = None,
    layout: Annotated[str, typer.Option("--as", help="layout on disk: imagefolder, flickr30k, coin, ave ...")] = "",
    out: Annotated[Path | None, typer.Option("--out", help="an empty folder")] = None,
) -> None:
    """Write a generated data set in a real one's layout."""
    from importlib import import_module

    from perdure.errors import RecipeError
    from perdure.files.folders import require_folder
    from perdure.recipe.limits import bytes_needed, require_memory
    from perdure.settings import registry
    from perdure.settings.config import parse

    found = registry.find("data", name)
    if not any((Path(folder) / "disk.py").is_file() for folder in found.submodule_search_locations or ()):
        raise RecipeError(f"{name} is not generated: it cannot be written", expected="microworld")
    disk = import_module(f"{found.name}.disk")
    if not layout or out is None:
        layouts = ", ".join(sorted(disk.WRITERS))
        raise RecipeError("--as LAYOUT and --out FOLDER are needed", expected=f"a layout of {layouts}")
    require_folder(out, setting="--out")
    config = parse(registry.load("data", name).Config, stated(name, settings or []), where=name)
    require_memory(name, bytes_needed(config))
    with libraries_aside():
        written = disk.write(layout, out, config)
    print(f"wrote {len(written)} files below {out}")


@app.command("prepare", epilog=epilog(PREPARED), context_settings=SETTINGS)
def prepare(
    source: Annotated[Path, typer.Argument(help="folder of videos, or one video")],
    out: Annotated[Path, typer.Argument(help="folder for frames and sound")],
    seconds: Annotated[int, typer.Option("--seconds", min=1, max=86_400, help="seconds taken of each video")] = 10,
    start: Annotated[float, typer.Option("--start", min=0, help="where to begin, in seconds")] = 0.0,
    workers: Annotated[int, typer.Option("--workers", min=1, max=256, help="processes")] = 1,
) -> None:
    """Take one frame a second and 32 kHz sound out of videos; go on where an earlier call stopped.

    Exit code 1: some videos could not be read; they are named.
    """
    from perdure.errors import RecipeError
    from perdure.files.folders import require_folder
    from perdure.prepare.audio_visual import prepare_videos

    if not start < 10**6:  # NaN, too
        raise RecipeError(f"is {start:g}", where="--start", expected="seconds from the beginning, below a million")
    require_folder(out, setting="OUT")
    with libraries_aside():
        report = prepare_videos(source, out, seconds=seconds, start=start, workers=workers)
    print(f"made {report.made}, there already {report.there_already}, broken {len(report.broken)}")
    for title, names in (("shorter than asked", report.short), ("silent", report.silent)):
        if names:
            print(f"{title}: {', '.join(names)}")
    for name, reason in report.broken.items():
        print(f"{name}: {reason}")
    if report.broken:
        raise SystemExit(1)


def stated(name: str, settings: list[str]) -> dict[str, Any]:
    """``key=value`` arguments, each value in YAML 1.2, checked against the settings of the data set."""
    from perdure.recipe.source import Unreadable, located, read_overrides
    from perdure.settings import config, registry

    layer, wrong = read_overrides(settings)
    _, faults = config.check(registry.settings("data", name), layer.values)
    wrong += [located(fault, layer) for fault in faults if fault.at == "value" or fault.path in layer.keys]
    missing = [fault for fault in faults if fault.path not in layer.keys and fault.at == "key"]
    if wrong:
        raise Unreadable(wrong)
    if missing:
        from perdure.errors import RecipeError

        raise RecipeError(" ".join(f.what for f in missing), where=name, todo="State it as key=value.")
    return layer.values


def _nothing(what: str, path: Path) -> Exception:
    """Neither a path nor a name: says so of both, and what is near."""
    from perdure.errors import DataError
    from perdure.settings import registry
    from perdure.settings.suggestions import nearest

    beside = os.listdir(path.parent) if path.parent.is_dir() else []
    near = nearest(what, beside) or nearest(what, registry.names("data"))
    return DataError(
        "there is no such file or folder, and no data set of this name",
        where=what,
        expected="a folder of images, a table, .tar shards; or a data set's name (perdure data list)",
        todo=f"Did you mean `{near}`?" if near else "",
    )
