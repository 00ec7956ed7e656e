"""`perdure cp`: a recipe as a file of your own, with comments, completed and checked by editors.

Knows files. Does not know settings: the schema is made by `perdure.recipe.schema`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from perdure.cli import _complete

EXAMPLES = """
perdure cp mg_clip/cifar100 my.yaml
perdure cp rapf/imagenet_r my.yaml --force
"""


def command(
    recipe: Annotated[
        str,
        typer.Argument(help="name (perdure list recipes) or file", metavar="RECIPE", autocompletion=_complete.recipes),
    ],
    to: Annotated[Path, typer.Argument(help="the new file", metavar="FILE.yaml")],
    force: Annotated[bool, typer.Option("--force", help="overwrite")] = False,
) -> None:
    """Copy a recipe to change it.

    Writes a JSON Schema beside it, by which editors complete and check it.
    """
    from perdure.errors import RecipeError
    from perdure.files.folders import require_file
    from perdure.recipe import load, locate
    from perdure.recipe.schema import json_schema

    source, _ = locate(recipe)
    loaded = load(recipe)
    if to.is_dir():
        to = to / source.name
    if to.suffix not in (".yaml", ".yml"):
        raise RecipeError("is not a recipe file name", where=str(to), expected="a name that ends in .yaml")
    schema = to.with_suffix(".schema.json")
    for file in (to, schema):
        if file.exists() and not force:
            raise RecipeError("exists already", where=str(file), todo="Overwrite it with --force.")
    head = f"# yaml-language-server: $schema={schema.name}\n"
    lines = source.read_text(encoding="utf-8").splitlines(keepends=True)
    body = "".join(line for line in lines if not line.startswith("# yaml-language-server:"))
    require_file(to, setting="FILE.yaml")
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_text(head + body, encoding="utf-8", newline="\n")
    schema.write_text(json.dumps(json_schema(loaded), indent=1) + "\n", encoding="utf-8", newline="\n")
    print(f"wrote {to} and {schema}\nRun it with: perdure run {to}")
