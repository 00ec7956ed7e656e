"""Recipes as text: YAML 1.2 and overrides become nested values that remember their line and column.

Knows text, positions, layers and how a fault is shown (`file:line:col: error: ...`, the line, a caret).
Does not know what a recipe means: that is `perdure.recipe`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from perdure.errors import RecipeError
from perdure.files.text_files import read_text
from perdure.files.yaml_limits import DEEPEST, MOST_BYTES, MOST_VALUES, text_fault
from perdure.recipe.heading import heading
from perdure.settings.faults import Fault, Keys

COMMAND_LINE = "<command line>"
NAMED_SECTIONS = frozenset({"stream", "models", "method"})
"""Sections of things with a name."""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """Where a key or a value is written."""

    file: str
    line: int
    """From 1; for overrides the number of the argument."""
    column: int
    """From 1."""
    width: int
    """Characters to underline."""
    text: str
    """The whole line."""

    def __str__(self) -> str:
        return "command line" if self.file == COMMAND_LINE else f"{self.file}:{self.line}"


@dataclass(frozen=True, kw_only=True)
class Layer:
    """Values, and the marks of their keys and values by path."""

    values: dict[str, Any]
    keys: dict[Keys, Mark] = field(default_factory=dict)
    marks: dict[Keys, Mark] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    """In the order in which faults are listed."""
    heading: tuple[str, ...] = ()
    """The comment at the head of the file."""


@dataclass(frozen=True, kw_only=True)
class Wrong:
    """A fault and where it is written."""

    mark: Mark
    what: str
    hint: str = ""


def read(file: Path, *, label: str, text: str | None = None) -> tuple[Layer, list[Wrong]]:
    """A recipe's file.

    Args:
        label: what messages call the file.
        text: what would be in it, where there is no such file.

    Raises:
        RecipeError: it cannot be read, or is not YAML.
    """
    text = read_text(file, error=RecipeError, most=MOST_BYTES) if text is None else text
    reader = _Reader(text, file=label)
    values = reader.whole()
    values = _with_whole_paths(values, file.parent)
    layer = Layer(values=values, keys=reader.keys, marks=reader.marks, files=(label,), heading=heading(text))
    return layer, reader.wrong


def _with_whole_paths(value: Any, folder: Path) -> Any:
    """Paths of Python files in `folder`, which stand for methods, models, metrics ... of the user's own, made whole."""
    if isinstance(value, dict):
        return {key: _with_whole_paths(inner, folder) for key, inner in value.items()}
    if isinstance(value, list):
        return [_with_whole_paths(inner, folder) for inner in value]
    if isinstance(value, str) and value.endswith(".py") and (file := folder / Path(value).expanduser()).is_file():
        return str(file.resolve())
    return value


def read_overrides(overrides: Sequence[str], *, paths: bool = False) -> tuple[Layer, list[Wrong]]:
    """``section.key=value`` arguments as one layer; each value is YAML 1.2, or a list without its brackets (``0,1,2``),
    which some shells take for themselves.

    Args:
        paths: such a list may hold folders and hub ids, too (``a/b,c/d``). Else that is one path with a comma.
    """
    item = r"[\w./~+-]+" if paths else r"[\w.+-]+"
    layer = Layer(values={}, files=(COMMAND_LINE,))
    wrong: list[Wrong] = []
    for number, argument in enumerate(overrides, start=1):
        key, equals, value = argument.partition("=")
        whole = Mark(file=COMMAND_LINE, line=number, column=1, width=max(len(key), 1), text=_first_line(argument))
        if not equals or not re.fullmatch(r"[\w-]+(\.[\w-]+)*", key):
            wrong.append(Wrong(mark=whole, what=f"`{key}` is not a setting", hint="write section.key=value"))
            continue
        bare = int(re.fullmatch(rf"{item}(,{item})+", value) is not None)
        value = f"[{value}]" if bare else value
        reader = _Reader(value, file=COMMAND_LINE, line=number - 1, column=len(key) + 1 - bare, shown=argument)
        path: Keys = tuple(key.split("."))
        try:
            found = reader.value(path)
        except RecipeError as error:
            wrong += error.wrong if isinstance(error, Unreadable) else []
            continue
        wrong += reader.wrong
        single: Any = _with_whole_paths(found, Path())
        if isinstance(single, str) and isinstance(_at(path, layer.values), dict):
            single = {"name": single}  # a setting of the thing was given before its name
        nested: Any = single
        for part in reversed(path):
            nested = {part: nested}
        at = 0
        for depth, part in enumerate(key.split("."), start=1):
            reader.keys[path[:depth]] = replace(whole, column=at + 1, width=len(part))
            at += len(part) + 1
        if _at(path, layer.values) is not _ABSENT and path in layer.marks:
            wrong.append(
                Wrong(mark=whole, what=f"`{key}` is given twice", hint=f"also argument {layer.marks[path].line}")
            )
        layer = merge(layer, Layer(values=nested, keys=reader.keys, marks=reader.marks), named=NAMED_SECTIONS)
    return replace(layer, files=(COMMAND_LINE,)), wrong


def merge(below: Layer, above: Layer, *, named: frozenset[str] = frozenset()) -> Layer:
    """`above` over `below`: mappings key by key, all else replaced.

    Args:
        named: sections of things with a `name`. A thing of another name brings its own settings, so the
            new mapping replaces the old one whole; and ``data: cifar100`` is widened to
            ``data: {name: cifar100}`` where `above` states one of its settings.
    """
    keys, marks = dict(below.keys), dict(below.marks)

    def forget(path: Keys) -> None:
        for table in (keys, marks):
            for known in [k for k in table if k[: len(path)] == path]:
                del table[known]

    def join(old: Any, new: Any, path: Keys) -> Any:
        if path and path[0] in named and isinstance(new, dict):
            if isinstance(old, str) and "name" not in new:
                keys[*path, "name"] = marks[*path, "name"] = marks[path]
                old = {"name": old}
            elif isinstance(old, dict) and "name" in old and new.get("name", old["name"]) != old["name"]:
                old = None
        if isinstance(old, dict) and isinstance(new, dict):
            joined = {k: join(old[k], new[k], (*path, k)) if k in new else old[k] for k in old}
            return joined | {k: v for k, v in new.items() if k not in old}
        forget(path)
        return new

    values = join(below.values, above.values, ())
    files = (*below.files, *(f for f in above.files if f not in below.files))
    lines = above.heading or below.heading
    return Layer(values=values, keys=keys | above.keys, marks=marks | above.marks, files=files, heading=lines)


def located(fault: Fault, layer: Layer) -> Wrong:
    """A fault of settings with its place in the text: its own, or that of the nearest enclosing key."""
    path = fault.path
    mark = layer.marks.get(path) if fault.at == "value" else None
    while mark is None and path:
        mark = layer.keys.get(path) or layer.marks.get(path)
        path = path[:-1]
    if mark is None:
        file = next((f for f in reversed(layer.files) if f != COMMAND_LINE), COMMAND_LINE)
        mark = Mark(file=file, line=1, column=1, width=0, text="")
    return Wrong(mark=mark, what=fault.what, hint=fault.hint)


class Unreadable(RecipeError):
    """Faults in a recipe, all of them, as text with carets."""

    def __init__(self, wrong: Iterable[Wrong], files: Sequence[str] = ()) -> None:
        order = {file: i for i, file in enumerate(files)}
        self.wrong = sorted(
            dict.fromkeys(wrong), key=lambda w: (order.get(w.mark.file, -1), w.mark.line, w.mark.column)
        )
        super().__init__("\n".join([*(rendered(w) for w in self.wrong), _count(len(self.wrong))]))


def rendered(wrong: Wrong) -> str:
    """One fault: place and text, the line, and a caret with the hint."""
    mark, hint = wrong.mark, _printable(wrong.hint)
    head = f"{mark.file}:{mark.line}:{mark.column}: error: {_printable(wrong.what)}"
    if not mark.text.strip():
        return f"{head}; {hint}" if hint else head
    text, start = _window(mark.text, mark.column - 1)
    before, under = text[:start], text[start : start + max(mark.width, 1)]
    pad = "".join("\t" if c == "\t" else " " * _cells(c) for c in before)
    caret = "^" * max(sum(_cells(c) for c in under), 1)
    number = f"{mark.line:>3}"
    return f"{head}\n{number} | {text}\n{' ' * len(number)} | {pad}{caret} {hint}".rstrip()


def _count(faults: int) -> str:
    return f"{faults} error{'s' if faults != 1 else ''}; nothing was run"


def _window(text: str, start: int) -> tuple[str, int]:
    """A long line cut down around the fault."""
    text = _printable(text)
    if len(text) <= 160:
        return text, start
    first = max(start - 40, 0)
    return text[first : first + 120], start - first


def _printable(text: str) -> str:
    """Control characters replaced, for a terminal obeys them."""
    return "".join(c if c.isprintable() or c == "\t" else "?" for c in text)


def _cells(character: str) -> int:
    """Columns of a terminal that a character takes."""
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _first_line(text: str) -> str:
    return (text.splitlines() or [""])[0]


def _at(path: Keys, values: Any) -> Any:
    """The value at a path, or `_ABSENT`."""
    for part in path:
        values = values.get(part, _ABSENT) if isinstance(values, dict) else _ABSENT
    return values


_ABSENT = object()


class _Reader:
    """Builds plain values out of ruamel's nodes, which know where they begin and end."""

    def __init__(self, text: str, *, file: str, line: int = 0, column: int = 0, shown: str = "") -> None:
        self.text, self.file, self.line, self.column = text, file, line, column
        self.lines = re.split(r"\r\n|[\n\r\x85\u2028\u2029]", shown or text)
        self.keys: dict[Keys, Mark] = {}
        self.marks: dict[Keys, Mark] = {}
        self.wrong: list[Wrong] = []
        self._left = MOST_VALUES
        self._open: set[int] = set()

    def whole(self) -> dict[str, Any]:
        """The document, which must be a mapping."""
        node = self._compose()
        if node is None:
            raise Unreadable([Wrong(mark=self._at(0, 0, 0), what="the recipe is empty")])
        if not hasattr(node, "value") or not node.tag.endswith(":map"):
            what = "a recipe is a mapping of sections (stream, models, method, ...)"
            raise Unreadable([Wrong(mark=self._span(node), what=what)])
        return self._plain(node, ())

    def value(self, path: Keys) -> Any:
        """Any value, whose path is given."""
        node = self._compose()
        if node is None:
            self.marks[path] = self._at(0, 0, 1)
            return None
        self.marks[path] = self._span(node)
        return self._plain(node, path)

    def _compose(self) -> Any:
        from ruamel.yaml import YAML
        from ruamel.yaml.error import MarkedYAMLError, YAMLError
        from ruamel.yaml.reader import ReaderError

        if self.text.startswith("\ufeff"):
            raise Unreadable([Wrong(mark=self._at(0, 0, 1), what="a second byte-order mark begins the text")])
        if fault := text_fault(self.text):
            raise Unreadable([Wrong(mark=self._at(0, 0, 0), what=fault)])
        try:
            return YAML(typ="safe", pure=True).compose(self.text)
        except MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            at = self._at(mark.line, mark.column, 1) if mark else self._at(0, 0, 0)
            raise Unreadable([Wrong(mark=at, what=_syntax(error))]) from None
        except ReaderError as error:
            line = self.text.count("\n", 0, error.position)
            column = error.position - (self.text.rfind("\n", 0, error.position) + 1)
            what = f"the character U+{ord(self.text[error.position]):04X} is not allowed in YAML"
            raise Unreadable([Wrong(mark=self._at(line, column, 1), what=what)]) from None
        except RecursionError:
            raise Unreadable([Wrong(mark=self._at(0, 0, 0), what="nested too deeply")]) from None
        except (YAMLError, ValueError, TypeError, AttributeError, IndexError, AssertionError) as error:
            # ruamel lets a few of these out of broken directives and tags.
            what = f"not YAML: {_first_line(str(error))}"
            raise Unreadable([Wrong(mark=self._at(0, 0, 0), what=what)]) from None

    def _plain(self, node: Any, path: Keys) -> Any:
        self._left -= 1
        if self._left < 0 or id(node) in self._open or len(path) > DEEPEST:
            what = "aliases make too many values" if self._left < 0 else "nested too deeply"
            what = "a value contains itself" if id(node) in self._open else what
            raise Unreadable([*self.wrong, Wrong(mark=self._span(node), what=what)])
        if isinstance(node.value, str):
            return self._scalar(node)
        self._open.add(id(node))
        if not re.fullmatch(r"tag:yaml\.org,2002:(map|seq)", str(node.tag)):
            self.wrong.append(Wrong(mark=self._span(node), what=f"tags are not read: {node.tag}"))
        if node.id == "sequence":
            result: Any = []
            for i, item in enumerate(node.value):
                self.keys[*path, i] = self.marks[*path, i] = self._span(item)
                result.append(self._plain(item, (*path, i)))
        else:
            result = dict(self._pairs(node, path))
        self._open.discard(id(node))
        return result

    def _pairs(self, node: Any, path: Keys) -> Iterator[tuple[str, Any]]:
        first: dict[str, Mark] = {}
        for key_node, value_node in node.value:
            mark = self._span(key_node)
            if not isinstance(key_node.value, str):
                self.wrong.append(Wrong(mark=mark, what="a key must be a word"))
                continue
            key = key_node.value
            if key in first:
                hint = f"first on line {first[key].line}"
                self.wrong.append(Wrong(mark=mark, what=f"`{key}` is given twice", hint=hint))
                continue
            first[key] = self.keys[*path, key] = mark
            written = value_node.id == "scalar" or value_node.flow_style
            self.marks[*path, key] = self._span(value_node) if written else mark
            if value_node.id == "scalar" and value_node.value == "" and value_node.style is None:
                self.marks[*path, key] = mark  # nothing is written; ruamel marks the next line
            yield key, self._plain(value_node, (*path, key))

    def _scalar(self, node: Any) -> Any:
        text, tag = node.value, str(node.tag).rpartition(":")[2]
        plain = text.replace("_", "").lower()
        if tag == "null":
            return None
        if tag == "bool":
            return plain == "true"
        try:
            if tag in ("int", "float") and len(plain) > 100:
                raise ValueError
            if tag == "int":
                sign, digits = (-1 if plain[0] == "-" else 1), plain.lstrip("+-")
                base = {"0x": 16, "0o": 8, "0b": 2}.get(digits[:2], 10)
                return sign * int(digits[2:] if base != 10 else digits, base)
            if tag == "float":
                return float(plain.replace(".inf", "inf").replace(".nan", "nan"))
        except ValueError:  # thousands of digits, or `!!int x`
            self.wrong.append(Wrong(mark=self._span(node), what=f"not a number: {text[:40]}"))
            return None
        if tag in ("str", "timestamp", "merge") or str(node.tag) == "!":
            return text
        self.wrong.append(Wrong(mark=self._span(node), what=f"tags are not read: {node.tag}"))
        return None

    def _span(self, node: Any) -> Mark:
        start, end = node.start_mark, node.end_mark
        one_line = end.line == start.line
        line = self.lines[start.line] if start.line < len(self.lines) else ""
        length = end.column - start.column if one_line else len(line) - start.column
        return self._at(start.line, start.column, length)

    def _at(self, line: int, column: int, width: int) -> Mark:
        text = self.lines[line] if line < len(self.lines) else ""
        shift = self.column if line == 0 else 0
        return Mark(file=self.file, line=self.line + line + 1, column=shift + column + 1, width=width, text=text)


def _syntax(error: Any) -> str:
    """ruamel's words, without its excerpts."""
    problem = (error.problem or error.context or "not YAML").strip()
    if "found character '\\t'" in problem:
        return "a tab indents this line; YAML wants spaces"
    if error.context and error.problem:
        return f"{problem} ({error.context.strip()})"
    return problem
