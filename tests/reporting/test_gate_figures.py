"""Figures of gates say what the `modularity` events say."""

from __future__ import annotations

import json
import re

import pytest
import torch

from perdure.families.rehearsal import modularity
from perdure.models import gated_resnet
from perdure.reporting import figures, load, tables
from tests.reporting.fake_runs import falling, write_run


def write_gated(folder, seed: int = 0, classes: int = 4):
    """A made-up run of two tasks whose events come from a real gated network."""
    net = gated_resnet.load(gated_resnet.Config(width=8, hidden_ratio=2, seed=seed))
    images = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    write_run(folder, matrix=falling(2, seed=seed), method="dynamos", seed=seed)
    found = []
    with (folder / "events.jsonl").open("a") as file:
        for task in range(2):
            labels = torch.arange(12) % (classes // 2 * (task + 1))
            found.append(modularity.measure(net, images, labels, threshold=0.5))
            file.write(json.dumps({"time": 0, "event": "modularity", "task": task, **found[-1]}) + "\n")
    return found


def drawn(*folders):
    groups = tables.groups([load.read(folder) for folder in folders])
    return {figure.key: figure for figure in figures.all_figures(groups)}


def test_keep_ratios_overlap_work_and_usage_are_drawn_from_the_events(tmp_path):
    _, last = write_gated(tmp_path / "run")
    found = drawn(tmp_path / "run")
    lines = [row for row in found["keep-1"].rows if row[1] == 2]
    assert [row[0] for row in lines] == last["gates"]
    assert [row[2] for row in lines] == pytest.approx([100 * ratio for ratio in last["keep_ratio"]])
    table = [row[1:] for row in found["keep-class-1"].rows]
    assert table == [pytest.approx([100 * x for x in row]) for row in last["keep_ratio_of_class"]]
    shared = [row[1:] for row in found["overlap-1"].rows]
    assert shared == [pytest.approx([100 * x for x in row]) for row in last["overlap"]]
    work = {row[0]: row[2] for row in found["work-1"].rows if row[1] == 2}
    assert work["with gates"] == pytest.approx(last["multiply_accumulates"] / 1e6)
    assert work["dead"] == len(last["dead"])
    assert work["always on"] == len(last["always_on"])


def test_the_note_names_the_correlation_with_the_likeness_of_classes(tmp_path):
    _, last = write_gated(tmp_path / "run")
    note = drawn(tmp_path / "run")["overlap-1"].note
    assert re.search(r"Correlation .*: (not defined|-?\d\.\d\d)\.", note)
    if last["overlap_with_similarity"] is not None:
        assert f"{last['overlap_with_similarity']:.2f}" in note


def test_a_single_class_has_no_heat_map(tmp_path):
    write_gated(tmp_path / "run", classes=2)
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    kept = [e for e in events if not (e["event"] == "modularity" and e["task"] == 1)]
    (tmp_path / "run" / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in kept))
    found = drawn(tmp_path / "run")
    assert "keep-1" in found
    assert "overlap-1" not in found


def test_seeds_are_averaged(tmp_path):
    last = [write_gated(tmp_path / str(seed), seed)[1] for seed in (0, 1)]
    rows = drawn(tmp_path / "0", tmp_path / "1")["keep-1"].rows
    mean = [50 * (a + b) for a, b in zip(last[0]["keep_ratio"], last[1]["keep_ratio"])]
    assert [row[2] for row in rows if row[1] == 2] == pytest.approx(mean)


def test_runs_without_gates_have_no_such_figure(tmp_path):
    write_run(tmp_path / "run", matrix=falling(2))
    assert not {"keep-1", "overlap-1", "work-1"} & drawn(tmp_path / "run").keys()
