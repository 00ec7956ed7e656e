"""A run made again from its card alone, and how far the two lie apart.

Knows cards, what of weights, data and code makes them the same, and run folders. Does not know methods or data sets by
name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from perdure import api, recipe, recording
from perdure.auditing.comparing import Apart, apart, scores_apart
from perdure.auditing.determinism import tolerance
from perdure.errors import DataError, RecipeError
from perdure.files.written_whole import write_json
from perdure.recipe import Built, Recipe
from perdure.reporting.card import identity
from perdure.resuming import other_data
from perdure.run_folder import run_files

Verdict = Literal["identical", "within the tolerance", "different"]
FILE = "repro.json"
"""In the folder of the new run."""


@dataclass(frozen=True, kw_only=True)
class Repeated:
    """What making a run again showed."""

    verdict: Verdict
    folder: Path
    """Of the new run."""
    apart: Apart
    basis: str
    """What was compared."""
    tolerance: Mapping[str, Any]
    """Of the card; empty if it states none."""
    elsewhere: tuple[str, ...]
    """What of the machine is another: device, versions."""


def repro(
    source: Path, overrides: Sequence[str] = (), *, out: Path = Path("repro"), again: bool = False, quiet: bool = False
) -> Repeated:
    """Make a run again from its card and compare.

    Args:
        source: a run's folder, or a card. Beside a card, the run's records are compared where they are.
        overrides: where data and weights lie here, the device, and other settings that move no number.
        out: folder of the new run.

    Raises:
        RecipeError: this is no card, a setting moves numbers, or weights or code are others.
        DataError: data are missing, or are others.
    """
    card, folder = run_files.card_of(source)
    if not card.get("recipe"):
        raise RecipeError("the card holds no recipe", where=str(source), expected="the card.json of a run")
    asked = _recipe(card, overrides, out, where=str(source))
    built = recipe.build(asked, asked.run.seed)
    if wrong := list(_others(card, asked, built)):
        raise DataError(
            f"what the run was made of is not here: {'; '.join(wrong)}",
            where=str(source),
            expected="the same weights, data and code; nothing was run",
            todo="Say where they lie: perdure repro CARD stream.data.root=... models.ROLE.weights=...",
        )
    del built
    (done,) = api.execute(asked, again=again, quiet=quiet)
    whole = (folder / "predictions").is_dir()
    if whole:
        found = apart(folder, done.folder)
    else:
        new = run_files.read_card(done.folder)
        found = scores_apart(card.get("accuracy_matrix", {}), new.get("accuracy_matrix", {}))
    stated = tolerance(card)
    verdict: Verdict = "different"
    if found.same:
        verdict = "identical"
    elif stated and found.within(stated):
        verdict = "within the tolerance"
    elsewhere = tuple(_elsewhere(card, run_files.read_card(done.folder)))
    basis = "scores and every record" if whole else "the card's matrix of scores: no records lie beside it"
    repeated = Repeated(
        verdict=verdict, folder=done.folder, apart=found, basis=basis, tolerance=stated, elsewhere=elsewhere
    )
    write_json(done.folder / FILE, to_json(repeated))
    return repeated


def to_json(repeated: Repeated) -> dict[str, Any]:
    """All of it, JSON-ready."""
    said = {"verdict": repeated.verdict, "folder": str(repeated.folder), "basis": repeated.basis}
    return said | {
        "apart": repeated.apart.to_json(),
        "tolerance": dict(repeated.tolerance),
        "elsewhere": list(repeated.elsewhere),
    }


def _recipe(card: Mapping[str, Any], overrides: Sequence[str], out: Path, *, where: str) -> Recipe:
    told = recipe.load(card["recipe"])
    asked = recipe.load(card["recipe"], list(overrides))
    if changed := recipe.differences(told, asked):
        listed = "; ".join(f"{name}: was {was!r}, now {now!r}" for name, was, now in changed)
        raise RecipeError(f"these settings move numbers: {listed}", where=where, expected="the card's own settings")
    return replace(asked, run=replace(asked.run, out=out, seeds=(), trackers=()))


def _others(card: Mapping[str, Any], asked: Recipe, built: Built) -> Iterator[str]:
    """What differs of weights, data and files of the user's own."""
    for role, before in card.get("weights", {}).items():
        model = built.models.get(role)
        now = model.provenance() if model is not None and hasattr(model, "provenance") else {}
        if identity(before) != identity(now):
            yield f"weights of {role}: the card's are {_mark(before)}, here are {_mark(now)}"
    yield from other_data(card.get("stream", {}), built.stream.manifest)
    here = recording.own_code(recipe.resolved(asked))
    for name, facts in card.get("code", {}).items():
        if facts.get("sha256") != here.get(name, {}).get("sha256"):
            yield f"file {name}: " + ("another digest" if name in here else f"not at {facts.get('path')}")


def _mark(part: Mapping[str, Any]) -> str:
    marks = [f"{name} {str(value)[:16]}" for name, value in sorted(identity(part).items())]
    return ", ".join(marks[:2]) or "unknown"


def _elsewhere(card: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """What of the machine differs: it may move numbers."""
    if card.get("device") != new.get("device"):
        yield f"device: {card.get('device')} then, {new.get('device')} now"
    before, now = card.get("versions", {}), new.get("versions", {})
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            yield f"{name}: {before.get(name)} then, {now.get(name)} now"
