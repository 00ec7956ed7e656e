"""Pages of the site that are made from the source: settings of everything in the registry, recipes, metrics, commands.

Knows the registry's places, a recipe's sections, and how settings become a table. Runs no method and imports no torch.
"""

import dataclasses
import io
import re
import types
import typing
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, Literal

from perdure.cli import application
from perdure.cli import list as listing
from perdure.recipe import sections
from perdure.recipe.text import flow
from perdure.settings import config, registry
from perdure.settings.source import class_docs, locate, parsed
from perdure.types import Evaluation

METHODS = re.compile(r"^## Methods\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
ROW = re.compile(r"^\| `(\w+)` \|", re.MULTILINE)
GENERATED = ("results/index.md",)
PLACES = {"streams": "Streams", "data": "Data sets", "models": "Models"}
TYPES = {float: "number", int: "integer", str: "text", bool: "true or false", Path: "path", type(None): "null"}
BOUNDS = {
    "gt": ">\N{NO-BREAK SPACE}{}",
    "ge": "≥\N{NO-BREAK SPACE}{}",
    "lt": "<\N{NO-BREAK SPACE}{}",
    "le": "≤\N{NO-BREAK SPACE}{}",
    "min_length": "{} or more",
}


def pages(root: Path) -> dict[str, str]:
    """All generated pages: address below the site -> Markdown."""
    made = {f"reference/{file.stem}.md": family(file) for file in sorted((root / "docs" / "methods").glob("*.md"))}
    made |= {f"reference/{place}.md": place_page(place, title) for place, title in PLACES.items()}
    made["reference/recipe.md"] = recipe_sections()
    made["reference/recipes.md"] = all_recipes()
    made["reference/metrics.md"] = metrics()
    made["reference/commands.md"] = commands()
    made["results/index.md"] = results(root / "benchmarks" / "results")
    return made


def methods_of(text: str) -> list[str]:
    """Names in the first column of the table below a page's heading `Methods`."""
    found = METHODS.search(text)
    return ROW.findall(found.group(1)) if found else []


def with_links_to_settings(text: str, *, family: str) -> str:
    """A family's page, each method of its table linked to its settings."""

    def linked(table: re.Match[str]) -> str:
        return ROW.sub(lambda row: f"| [`{row[1]}`](../reference/{family}.md#{row[1]}) |", table.group())

    return METHODS.sub(linked, text)


def family(file: Path) -> str:
    text = file.read_text(encoding="utf-8")
    title = text.partition("\n")[0].removeprefix("# ")
    link = f"[{title}](../methods/{file.name})"
    head = f"# Settings: {title.partition(':')[0]}\n\nMade from the source. What the methods do: {link}.\n"
    return "\n".join([head, *(_thing("methods", name) for name in methods_of(text))])


def place_page(place: str, title: str) -> str:
    names = registry.names(typing.cast(registry.Place, place))
    head = f"# {title}\n\nMade from the source; in a terminal: `perdure list {place}`.\n"
    return "\n".join([head, *(_thing(place, name) for name in names)])


def recipe_sections() -> str:
    """The sections of a recipe that are not named things."""
    head = (
        "# A recipe's sections\n\nA recipe states `stream`, `models` by role and `method`, each by name with the "
        "settings of that name, and may state `evaluate`, `run` and `expect`. `perdure show RECIPE` prints all of them "
        "with their origin.\n"
    )
    parts = [("evaluate", Evaluation), ("run", sections.Run), ("expect", sections.Expect)]
    return "\n".join([head, *(f"## {name}\n\n{cls.__doc__}\n\n{table(cls)}\n" for name, cls in parts)])


def all_recipes() -> str:
    """Every recipe by method: its first line and what it needs."""
    lines = ["# Recipes", "", "`perdure run NAME`, `perdure show NAME`, `perdure cp NAME mine.yaml`."]
    method = ""
    for item in listing.entries("recipes"):
        if item["name"].partition("/")[0] != method:
            method = item["name"].partition("/")[0]
            lines += ["", f"## {method}", "", "| recipe | what | needs |", "|---|---|---|"]
        lines.append(f"| `{item['name']}` | {_cell(item['summary'])} | {_cell(item['needs'])} |")
    return "\n".join(lines) + "\n"


def metrics() -> str:
    """Every metric of a task."""
    lines = ["# Metrics", "", "Of one test; how they are drawn together over tasks: [scores](../scores.md).", ""]
    lines += ["| metric | what | needs |", "|---|---|---|"]
    lines += [
        f"| `{item['name']}` | {_cell(item['summary'])} | {_cell(item['needs'])} |"
        for item in listing.entries("metrics")
    ]
    return "\n".join(lines) + "\n"


def commands() -> str:
    """The help of every command, as a terminal of 80 columns shows it."""

    def walk(command: Any, words: list[str]) -> Iterator[list[str]]:
        yield words
        for name in getattr(command, "commands", {}):
            yield from walk(command.commands[name], [*words, name])

    app, lines = application([]), ["# Commands", ""]
    for words in walk(app, []):
        shown = io.StringIO()
        with redirect_stdout(shown):
            app(args=[*words, "--help"], prog_name="perdure", standalone_mode=False, max_content_width=80)
        lines += [f"## {' '.join(['perdure', *words])}", "", "```text", shown.getvalue().strip(), "```", ""]
    return "\n".join(lines)


def results(folder: Path) -> str:
    """What was measured: a line a page."""
    lines = ["# Results", "", "What was measured, with commands, all figures and what they do not show.", ""]
    for file in sorted(folder.glob("*.md")):
        title = file.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        lines.append(f"- [{title}]({file.name})")
    return "\n".join(lines) + "\n"


def table(cls: type) -> str:
    """The settings of a class and of those inside it: name, default, meaning, type."""
    rows = list(_rows(cls))
    if not rows:
        return "No settings."
    head = ["| setting | default | meaning | type |", "|---|---|---|---|"]
    return "\n".join([*head, *("| " + " | ".join(row) + " |" for row in rows)])


def _thing(place: str, name: str) -> str:
    at = typing.cast(registry.Place, place)
    about = registry.describe(at, name)
    lines = [f"## {name}", "", about.summary, ""]
    if about.needs:
        lines += [f"Needs: {about.needs}", ""]
    if about.answers:
        models = ", ".join(f"`{role}`" for role in about.roles) or "none"
        lines += [f"Answers: {', '.join(f'`{kind}`' for kind in about.answers)}. Models by role: {models}.", ""]
    return "\n".join([*lines, table(registry.settings(at, name)), ""])


def _rows(cls: type, prefix: str = "") -> Iterator[list[str]]:
    docs = _docs(cls)
    hints = config.field_types(cls)
    for field in dataclasses.fields(cls):
        if field.name not in hints:
            continue
        inner = _inner(hints[field.name])
        default = _default(field)
        if inner is not None and default != "*required*" and default != "`null`":
            default = "*below*"
        name = f"{prefix}{field.name}"
        yield [f"`{name}`", default, _cell(docs.get(field.name, "")), _cell(_type(hints[field.name]))]
        if inner is not None:
            yield from _rows(inner, f"{name}.")


def _docs(cls: type) -> dict[str, str]:
    """The docstring under each field, of the class and of those that it extends."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            node = parsed(locate(base.__module__)).definition(base.__name__)[1]
            docs |= {name: text for name, text in class_docs(typing.cast(Any, node)).items() if text}
    return docs


def _inner(hint: Any) -> type | None:
    """The settings class that a field holds, if it is one, or may be."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint) and hint is not config.Named:
        return hint
    if typing.get_origin(hint) in (typing.Union, types.UnionType, typing.Annotated):
        return next((found for arg in typing.get_args(hint) if (found := _inner(arg))), None)
    return None


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return "*required*"
    text = flow(config.plain(value))
    return f"`{text}`" if text else ""


def _type(hint: Any) -> str:
    """A type in words."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if place := config.named_place(hint):
        several = origin in (tuple, list)
        return f"{'list of names' if several else 'a name'} of [{place}]({place}.md)" if place in PLACES else "a name"
    if origin is typing.Annotated:
        bounds = [text for each in args[1:] for text in _bounds(each)]
        return ", ".join([_type(args[0]), *bounds])
    if origin is Literal:
        return ", ".join(f"`{flow(value)}`" for value in args)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type(arg) for arg in args)
    if origin in (tuple, list, frozenset, set):
        inner = [arg for arg in args if arg is not Ellipsis]
        return f"list of {_type(inner[0])}" if len(set(inner)) == 1 else "list: " + ", ".join(map(_type, inner))
    if origin is dict:
        return f"mapping to {_type(args[1])}"
    return "settings" if dataclasses.is_dataclass(hint) else TYPES.get(hint, getattr(hint, "__name__", str(hint)))


def _bounds(mark: Any) -> Iterator[str]:
    for each in getattr(mark, "metadata", [mark]):
        for name, form in BOUNDS.items():
            value = getattr(each, name, None)
            if value is not None:
                power = (value + 1).bit_length() - 1 if isinstance(value, int) else 0
                yield form.format(f"2^{power} - 1" if power > 30 and value + 1 == 2**power else value)


def _cell(text: str) -> str:
    """Text within a table; code keeps its signs."""
    parts = text.replace("|", "\\|").split("`")
    return "`".join(part if i % 2 else part.replace("<", "&lt;") for i, part in enumerate(parts))
