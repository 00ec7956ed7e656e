"""What a run's files say of how its number came about: the choice of settings, and seeds.

Knows result cards and saved predictions. Does not know methods, and asks none.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from perdure.auditing.finding import Finding, Subject


def chosen_on_test(it: Subject) -> Finding:
    """What a sweep wrote of its choice into the card: `study` of perdure's own, `selection` of any other."""
    check, done = "settings were not chosen on the test", "what a sweep wrote into card.json read"
    study = it.card.get("study") or {}
    choice = study.get("choice") or {}
    own = {"on": choice.get("by"), "metric": choice.get("metric"), "size": choice.get("tried")} if choice else {}
    if chosen := it.card.get("selection") or own:
        of = f"the best of {chosen.get('size', '?')} by {chosen.get('metric', '?')} on {chosen.get('on', '?')}"
        return Finding(check, done, of, "leaks" if chosen.get("on") == "test" else "passes")
    if study.get("settings", 1) > 1:
        of = f"one of {study['settings']} settings, of which the sweep chose none"
        return Finding(check, done, f"{of}: the best by these tests would be chosen on the test", "not applicable")
    return Finding(check, done, "no sweep chose settings; a choice by hand leaves no trace", "not applicable")


def seeds_differ(it: Subject) -> Finding:
    """Runs with other seeds that gave the same records are one run."""
    check, done = "runs with other seeds are other runs", "saved predictions of all seeds compared, byte by byte"
    known: dict[str, list[str]] = {}
    for folder in it.folders:
        if mark := _digest(folder):
            known.setdefault(mark, []).append(folder.name)
    count = sum(map(len, known.values()))
    if count < 2:
        return Finding(check, done, "one run with predictions", "not applicable")
    alike = [names for names in known.values() if len(names) > 1]
    if not alike:
        return Finding(check, done, f"{count} runs, no two the same", "passes")
    said = "; ".join(f"{', '.join(names)} are one" for names in alike)
    return Finding(check, done, f"{said}: an interval over them says nothing", "leaks")


def _digest(run: Path) -> str:
    """Of all records of a run; empty if it saved none."""
    files = sorted((run / "predictions").glob("*.jsonl"))
    found = hashlib.blake2b(digest_size=16)
    for file in files:
        found.update(file.name.encode() + file.read_bytes())
    return found.hexdigest() if files else ""
