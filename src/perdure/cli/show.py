"""`perdure show`: a recipe with every setting, its meaning and its origin; what a run has come to; or one thing.

Knows how settings are laid out. Imports no torch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from perdure.cli import _complete
from perdure.cli._layout import columns, width

EXAMPLES = """
perdure show mg_clip/cifar100
perdure show my.yaml method.lr=1e-4 --json
perdure show runs/mg_clip-microworld/seed_0
perdure show image_folder
"""


def command(
    what: Annotated[
        str,
        typer.Argument(
            help="recipe, file, folder of a run, or a name from perdure list",
            metavar="RECIPE|RUN|NAME",
            autocompletion=_complete.recipes_and_runs,
        ),
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="section.key=value", autocompletion=_complete.settings)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="write JSON")] = False,
    as_yaml: Annotated[bool, typer.Option("--yaml", help="write the whole recipe as YAML")] = False,
) -> None:
    """Show a recipe, a run, or the settings of one thing.

    First what the recipe's author says of it; then each setting with its value, where that comes from (default,
    file:line, command line) and its meaning. A method, stream, data set or model is shown with its defaults.
    """
    from perdure import recipe as recipes
    from perdure.cli import _runs, _things
    from perdure.run_folder import run_files

    if not (overrides or as_yaml or Path(what).exists()) and (found := _things.things(what)):
        text = "\n".join(_things.lines(found, what))
        print(json.dumps(found, indent=1, ensure_ascii=False) if as_json else text)
        return
    loaded = recipes.load(what, overrides or [])
    if as_yaml:
        print("".join(f"# {line}".rstrip() + "\n" for line in loaded.heading) + recipes.to_yaml(loaded), end="")
        return
    table = recipes.resolved(loaded)
    run = _runs.state(run_files.one_run(Path(what)))
    if as_json:
        settings = {name: setting._asdict() for name, setting in table.items()}
        more = {"heading": list(loaded.heading)} if loaded.heading else {}
        print(json.dumps({**more, "settings": settings, **({"run": run} if run else {})}, indent=1, ensure_ascii=False))
        return
    if loaded.heading:
        print("\n".join([*(part for line in loaded.heading for part in columns([[line]], total=width())), ""]))
    if run:
        print("\n".join([*columns([[k, str(v)] for k, v in run.items()], total=width()), ""]))
    print("\n".join(_lines(table)))


def _lines(table: dict[str, Any]) -> list[str]:
    """One block a section: name, value, origin, meaning."""
    from perdure.recipe.text import flow

    sections: dict[str, list[list[str]]] = {}
    for name, setting in table.items():
        section, _, key = name.partition(".")
        if section == "models":
            role, _, key = key.partition(".")
            section = f"models.{role}"
        row = [key or section, flow(setting.value), setting.origin, setting.doc]
        sections.setdefault(section, []).append(row)
    lines = []
    for section, rows in sections.items():
        for row in rows:
            if len(row[1]) > 44:  # a long value takes the line of its meaning
                row[1], row[3] = "...", f"{row[1]}  {row[3]}"
        lines += [f"{section}:", *columns(rows, indent="  ", total=width()), ""]
    return lines[:-1]
