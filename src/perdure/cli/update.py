"""`perdure update`: a finished run learns one more task, and its new version is promoted if a gate passes.

Knows arguments, and how a plan and a verdict are printed. Does not know how a version is learned or judged.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from perdure.cli import _complete
from perdure.cli._layout import columns, libraries_aside, width
from perdure.files.sizes import in_words

if TYPE_CHECKING:
    from perdure.run_folder.versions import Version

EXAMPLES = """
perdure update runs/mg_clip-microworld/seed_0 --data photos/week_2
perdure update runs/mine --data week_3.csv --gate gate.yaml --dry-run
perdure update runs/mine --data week_3.csv method.epochs=2 --promote never --json
"""
REFUSED = 3
"""Exit code of an update that was learned and not promoted."""


def command(
    run: Annotated[str, typer.Argument(help="folder of a run", metavar="RUN", autocompletion=_complete.runs)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="section.key=value, of method, run, task, data", metavar="[KEY=VALUE]..."),
    ] = None,
    data: Annotated[str, typer.Option("--data", help="folder, table, shards, hf:name, or {name: READER, ...}")] = "",
    test: Annotated[str, typer.Option("--test", help="test the new task with these; else with a share of --data")] = "",
    name: Annotated[str, typer.Option("--name", help="of the task [the folder's]")] = "",
    teaches: Annotated[str, typer.Option("--as", help="classes (new, or more of known), or domain")] = "",
    rename: Annotated[list[str] | None, typer.Option("--rename", help="THEIRS=KNOWN, a class's name")] = None,
    gate: Annotated[Path | None, typer.Option("--gate", help="YAML of rules [the defaults]")] = None,
    group: Annotated[
        str, typer.Option("--group", help="column of --data: rows of one patient or video stay together")
    ] = "",
    probe: Annotated[str, typer.Option("--probe", help="data that nobody trains on, asked before and after")] = "",
    promote: Annotated[str, typer.Option("--promote", help="auto, never or always")] = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="read the data and say what would be done")] = False,
    abandon: Annotated[bool, typer.Option("--abandon", help="drop another update that is under way")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="write JSON")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="no progress")] = False,
) -> int:
    """Teach a finished run one more task; promote the new version if its gate passes.

    The data of earlier tasks need not be there. Exit code 0: promoted. 3: learned, but the gate failed or held: the
    version stays a candidate, and the promoted one goes on as it was. The same command again goes on after a stop.
    """
    from perdure.errors import RecipeError

    if not data:
        raise RecipeError("is missing", where="--data", expected="what is to be learned")
    from perdure import updating

    overrides = [*(overrides or []), *([f"data.group_column={group}"] if group else [])]
    asked: dict[str, Any] = {"test": test or None, "name": name, "teaches": teaches, "overrides": overrides}
    asked |= {"renames": _renames(rename or []), "gate": _gate(gate, probe)}
    if dry_run:
        with libraries_aside():
            told = updating.plan(run, data, **asked).told()
        print(json.dumps(told, indent=1, ensure_ascii=False) if as_json else "\n".join(_plan_lines(told)))
        return 0
    with libraries_aside():
        version = updating.update(run, data, promote=promote, quiet=quiet, abandon=abandon, **asked)
    found = {**version.about, "promoted": version.current}
    lines = [*verdict_lines(found["gate"]), _end(version)]
    print(json.dumps(found, indent=1, ensure_ascii=False) if as_json else "\n".join(lines))
    return 0 if version.current or found["gate"]["outcome"] == "passed" else REFUSED


def verdict_lines(verdict: Mapping[str, Any]) -> list[str]:
    """What a gate found: a row a rule, then what got worse."""
    rows = [["rule", "task", "n", "before", "after", "lost at most", "may lose", "outcome"]]
    for rule in verdict["rules"]:
        sure = f"{max(-rule['low'], 0):.2f}" if "low" in rule else ""
        numbers = [f"{rule[key]:.2f}" if rule.get(key) is not None else "" for key in ("before", "after")]
        margin = f"{rule['margin']:g}" if "low" in rule and rule["rule"] != "learned" else ""
        margin = f"at least {rule['margin']:g}" if rule["rule"] == "min_learned" else margin
        if "times" in rule:
            numbers, margin = ["", f"{rule['times']:.2f} times"], f"{rule['margin']:g} times"
        rows.append([rule["rule"], rule["task"], str(rule["n"]), *numbers, sure, margin, _said(rule["outcome"])])
    lines = [*columns(rows, total=width()), ""]
    lines += [f"{name}: no test example was kept, so that nothing is known of it" for name in verdict["unknown"]]
    lines += verdict.get("warnings", [])
    worse = [row for row in verdict["classes"] if row["before"] is not None and row["after"] < row["before"]]
    if worse:
        lines += ["got worse:", *columns([_class_row(row) for row in worse[:10]], indent="  ", total=width())]
    if verdict["turned_wrong"]:
        wrong = [[r["id"], r["task"], f"{r['before']} -> {r['after']}"] for r in verdict["turned_wrong"]]
        lines += ["turned wrong:", *columns(wrong, indent="  ", total=width())]
    return lines


def _class_row(row: Mapping[str, Any]) -> list[str]:
    return [row["class"], row["task"], f"{row['before']:.1f} -> {row['after']:.1f} ({row['n']} examples)"]


def _end(version: Version) -> str:
    outcome = _said(version.about["gate"]["outcome"])
    if version.current:
        return f"version {version.number} is promoted (gate: {outcome})"
    todo = f"perdure promote {version.run} {version.number}"
    return f"version {version.number} stays a candidate (gate: {outcome}). To promote it all the same: {todo}"


def _plan_lines(told: Mapping[str, Any]) -> list[str]:
    task, counts = told["task"], told["examples"]
    rows = [
        ["task", f"{task['index'] + 1}, {task['name']} ({task['kind']}), on version {told['parent']}"],
        ["new classes", _listed(told["new_classes"])],
        ["known classes", _listed(told["known_classes"])],
        ["examples", ", ".join(f"{n} {split}" for split, n in counts.items())],
        ["kept tests", ", ".join(f"{n} of {name}" for name, n in told["kept_tests"].items())],
        ["a version", in_words(told["bytes_of_a_version"])],
        *([f"{name} was", f"{was}, now {now}"] for name, (was, now) in told["changed"].items()),
        *(["without tests", told["without_tests"]] for _ in range(bool(told["without_tests"]))),
        *(["gate", line] for line in told["power"]),
    ]
    return columns([[key, value or "none"] for key, value in rows], total=width())


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _renames(given: Sequence[str]) -> dict[str, str]:
    from perdure.errors import RecipeError

    pairs = [text.partition("=") for text in given]
    if wrong := next((text for text, pair in zip(given, pairs) if not pair[0] or not pair[2]), None):
        raise RecipeError(f"is {wrong!r}", where="--rename", expected="THEIRS=KNOWN")
    return {theirs: known for theirs, _, known in pairs}


def _gate(file: Path | None, probe: str) -> Any:
    from dataclasses import replace

    from perdure import gate
    from perdure.updating.planned import data_set

    rules = gate.read(file)
    return replace(rules, probe=data_set(probe)) if probe else rules


def _said(outcome: str) -> str:
    """`held` alone reads as if the rule had held."""
    return "held back" if outcome == "held" else outcome
