"""A stream exactly as an earlier run had it, from the manifest that the run saved.

Knows the manifests of the streams of classification, and the result cards that hold them.
Where the data are not those of the manifest, it stops: a replay that is only similar is none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from typing_extensions import TypedDict

from perdure.errors import DataError, RecipeError
from perdure.files.text_files import read_json
from perdure.settings import registry
from perdure.settings.config import Named
from perdure.streams import selection
from perdure.types import Dataset, Stream


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of a replayed stream."""

    manifest: Path
    """A saved manifest, or the card.json of a run."""
    data: Annotated[Named, "data"] | None = None
    """The data set of a stream over one data set on this machine; null: read as the manifest says."""
    domains: tuple[Annotated[Named, "data"], ...] = ()
    """The data sets of a domain-incremental stream on this machine; empty: read as the manifest says."""


def build(config: Config) -> Stream:
    """The stream of the manifest.

    Raises:
        RecipeError: the file is no manifest.
        DataError: the data differ from those of the manifest; the first differences are named.
    """
    saved, where = load(config.manifest), str(config.manifest)
    made_by = registry.load("streams", saved.stream)
    if isinstance(saved, _Settings):
        source = config.data or Named.of("data", saved.source)
        dataset = source.build()
        _require_same("the data", [saved.data], [dataset], where)
        stream = made_by.assemble(dataset, _settings(made_by, saved, source, where))
        made = {name: stream.manifest.get(name) for name in _RESULTS}
        _compare("the tasks", {name: getattr(saved, name) for name in _RESULTS}, made, where)
        return stream
    if isinstance(saved, _ClassIncremental):
        dataset = (config.data or Named.of("data", saved.source)).build()
        _require_same("the data", [saved.data], [dataset], where)
        stream = made_by.assemble(dataset, _plan(saved, made_by.RULES, "order", "cuts"))
    else:
        datasets = [each.build() for each in config.domains or (Named.of("data", n) for n in saved.source)]
        _require_same("the data", saved.data, datasets, where)
        stream = made_by.assemble(datasets, _plan(saved, made_by.RULES, "names"))
    _compare("the tasks", saved.tasks, stream.manifest["tasks"], where)
    return stream


def save(stream: Stream, path: Path) -> None:
    """Write the manifest of a stream, for `load` and for the setting `manifest`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(stream.manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def load(path: Path) -> _ClassIncremental | _Domain | _Settings:
    """A saved manifest, by itself or inside a result card, checked."""
    from pydantic import TypeAdapter, ValidationError

    path = Path(path).expanduser()
    content = read_json(path, error=RecipeError, todo="Give the card.json of a run.")
    if isinstance(content, dict) and isinstance(content.get("manifest"), dict):
        content = content["manifest"]
    kind = _KINDS.get(content.get("stream")) if isinstance(content, dict) else None
    if kind is None:
        raise _no_manifest(path, f"holds no manifest of {' or '.join(_KINDS)}")
    try:
        manifest: _ClassIncremental | _Domain | _Settings = TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise _no_manifest(path, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    if isinstance(manifest, _ClassIncremental):
        bounds, count = manifest.cuts, len(manifest.data["classes"])
        rising = all(a < b for a, b in pairwise(bounds))
        if bounds[:1] != [0] or bounds[-1] != count or not rising or sorted(manifest.order) != list(range(count)):
            raise _no_manifest(path, f"`order` and `cuts` do not divide its {count} classes")
    return manifest


Source = str | dict[str, Any]
"""A data set in YAML's two forms."""


@dataclass(frozen=True, kw_only=True)
class _Rules:
    stream: str
    clean_names: bool
    train_per_class: Annotated[int, Field(ge=0)] | None
    test_per_class: Annotated[int, Field(ge=1)] | None
    validation_share: Annotated[float, Field(ge=0, lt=1)]
    task_revealed: bool
    tasks: list[dict[str, Any]]


class _Identity(TypedDict):
    name: str
    classes: list[str]
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class _ClassIncremental(_Rules):
    source: Source
    order: list[int]
    cuts: list[int]
    scope: Literal["seen", "all"]
    data: _Identity


@dataclass(frozen=True, kw_only=True)
class _Domain(_Rules):
    source: list[Source]
    names: list[str]
    data: list[_Identity]


@dataclass(frozen=True, kw_only=True)
class _Settings:
    """A stream over one data set that follows from its settings; what came of them is compared."""

    stream: str
    source: Source
    settings: dict[str, Any]
    data: _Identity
    examples: dict[str, Any]
    order: list[int] | None = None
    changes: list[dict[str, Any]] | None = None


_RESULTS = ("examples", "order", "changes")
_FROM_SETTINGS = ("general", "mnist360", "permuted", "rotated")
_KINDS: dict[Any, Any] = {
    "class_incremental": _ClassIncremental,
    "domain": _Domain,
    **dict.fromkeys(_FROM_SETTINGS, _Settings),
}


def _settings(made_by: Any, saved: _Settings, source: Named, where: str) -> Any:
    """The settings of the stream's module, checked."""
    from pydantic import TypeAdapter, ValidationError

    unknown = saved.settings.keys() - {field.name for field in fields(made_by.Config)}
    if unknown:
        raise _no_manifest(Path(where), f"settings: {sorted(unknown)[0]} is no setting of {saved.stream}")
    try:
        checked = TypeAdapter(made_by.Config).validate_python({"data": source, **saved.settings})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise _no_manifest(Path(where), f"settings.{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    return checked


def _no_manifest(where: Path, what: str) -> RecipeError:
    return RecipeError(what, where=str(where), expected="a manifest", todo="Give the card.json of a run.")


def _plan(saved: Any, rules: tuple[str, ...], *more: str) -> dict[str, Any]:
    return {name: getattr(saved, name) for name in ("stream", "source", *more, *rules)}


def _require_same(what: str, saved: Sequence[Any], datasets: Sequence[Dataset], where: str) -> None:
    if len(saved) != len(datasets):
        raise DataError(f"{len(datasets)} data sets", where=where, expected=f"{len(saved)}, as in the manifest")
    for old, new in zip(saved, datasets):
        _compare(what, old, selection.identity(new), where)


def _compare(what: str, old: Any, new: Any, where: str) -> None:
    differences = list(_differences(old, new))
    if differences:
        raise DataError(
            f"{what} differ from the manifest: {'; '.join(differences[:4])}",
            where=where,
            expected="the files that the manifest was made from",
            todo="Check them with: perdure data check. Or build a new stream.",
        )


def _differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from _differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for place, (a, b) in enumerate(zip(old, new)):
            yield from _differences(a, b, f"{path}.{place}" if path else str(place))
    elif old != new:
        yield f"{path} {_short(old)} -> {_short(new)}"


def _short(value: Any) -> str:
    text = f"{len(value)} entries" if isinstance(value, list) else str(value)
    return text if len(text) <= 20 else text[:12] + "..."
