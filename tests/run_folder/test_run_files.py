"""The files of a run's folder hold what their schemas say, or are refused by one message that names the part."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from perdure import checkpoint, loop
from perdure.errors import CheckpointError, DataError
from perdure.files import written_whole
from perdure.files.written_whole import write_json
from perdure.reporting import load
from perdure.run_folder import run_files

SCORES = {
    "tasks": ["one", "two"],
    "headline": "accuracy",
    "rows": [{"after": 0, "asked": 1, "n": 2, "values": {"accuracy": 50.0, "per_class_accuracy": {"0": 50.0}}}],
}
POINT = {
    "task": 1,
    "names": ["one", "two"],
    "rows": SCORES["rows"],
    "method": {"net": {}},
    "query": {"kind": "classify", "candidates": ["a", "b"], "offset": 0, "task": None},
    "skipped": {"a.png": "torn"},
}
CARD = {"method": "er", "recipe": {}, "weights": {"clip": {"sha256": "0"}}, "wall_seconds": 1.5, "seeds": {"seed": 0}}
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=3),
    max_leaves=6,
)


def places(value, path=()):
    """Paths of all parts of a value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def replaced(value, path, new):
    """A copy with another value at `path`; None of `new` removes it."""
    if not path:
        return new
    value = copy.deepcopy(value)
    holder = value
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = new
    return value


def write(folder, name, value):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(value))
    return folder


@pytest.mark.parametrize(("name", "good"), [("scores.json", SCORES), ("card.json", CARD)])
def test_a_run_is_read_or_refused_whatever_stands_in_a_part(tmp_path, name, good):
    @settings(max_examples=80, deadline=None)
    @given(st.sampled_from(list(places(good))), VALUES)
    def try_one(path, new):
        write(tmp_path, name, replaced(good, path, new))
        try:
            read = load.read(tmp_path)
        except DataError as refused:
            assert name in str(refused) and "\n" not in str(refused)
            return
        for row in read.rows:
            assert -1 <= row["after"] < len(read.tasks) and 0 <= row["asked"] < len(read.tasks)

    try_one()


@pytest.mark.parametrize(
    ("path", "new", "said"),
    [
        (("rows", 0, "after"), 10**9, "row 0 is after task 1000000000 and asks task 1 of 2"),
        (("rows", 0, "after"), -99, "rows.0.after: found -99. Expected a number of at least -1"),
        (("rows", 0, "n"), "many", "rows.0.n: found 'many'. Expected a whole number"),
        (("rows",), None, "rows: found nothing. Expected a list"),
        (("headline",), 5, "headline: found 5. Expected text"),
        ((), [], "holds a list"),
    ],
)
def test_the_part_of_the_scores_that_is_wrong_is_named(tmp_path, path, new, said):
    write(tmp_path, "scores.json", replaced(SCORES, path, new))
    with pytest.raises(DataError) as refused:
        run_files.read_scores(tmp_path)
    assert said in str(refused.value) and "Delete it" in str(refused.value)


@pytest.mark.parametrize("name", ["scores.json", "card.json", "events.jsonl", "recipe.yaml"])
def test_a_folder_in_the_place_of_a_file_is_named(tmp_path, name):
    write(tmp_path, "scores.json" if name != "scores.json" else "card.json", SCORES if name != "scores.json" else CARD)
    (tmp_path / name).mkdir()
    with pytest.raises(DataError, match=f"{name}: this is a folder"):
        load.read(tmp_path)


def test_lines_that_are_no_events_are_counted(tmp_path):
    good = {"event": "task", "time": 1.5, "task": 0}
    odd = [3, [], {"event": "task"}, {"event": 4, "time": 1}, good | {"task": 10**12}, good | {"task": "0"}]
    lines = [json.dumps(line) for line in [good, *odd]] + ["{", "[" * 100_000, ""]
    (tmp_path / "events.jsonl").write_bytes("\n".join(lines).encode() + b"\xff\xfe\n")
    assert run_files.read_lines(tmp_path / "events.jsonl") == ([good], len(odd) + 3)


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(list(places(POINT))), VALUES)
def test_a_resume_point_is_read_or_refused_whatever_stands_in_a_part(tmp_path_factory, path, new):
    folder = tmp_path_factory.mktemp("run")
    checkpoint.save(run_files.checkpoint_file(folder), replaced(POINT, path, new))
    try:
        saved = loop.saved_state(folder)
    except CheckpointError as refused:
        assert "latest.safetensors" in str(refused) and "\n" not in str(refused)
        return
    assert 0 <= saved["task"] < len(saved["names"])


@pytest.mark.parametrize("key", POINT)
def test_a_resume_point_without_a_part_is_refused(tmp_path, key):
    checkpoint.save(run_files.checkpoint_file(tmp_path), {k: v for k, v in POINT.items() if k != key})
    with pytest.raises(CheckpointError, match=f"{key}: found nothing"):
        loop.saved_state(tmp_path)


def test_a_resume_point_of_a_stage_is_none_of_a_task(tmp_path):
    checkpoint.save(run_files.checkpoint_file(tmp_path), {"step": 3, "finished": False, "state": {}})
    with pytest.raises(CheckpointError, match="latest"):
        loop.saved_state(tmp_path)


def test_the_state_of_another_method_is_named():
    class Other:
        def load_state_dict(self, state):
            torch.nn.Linear(2, 2).load_state_dict(state["net"])

    for state in ({}, {"net": None}, {"net": {"a": torch.zeros(3)}}, {"net": [1]}):
        with pytest.raises(CheckpointError, match="the state is not that of Other") as refused:
            loop.load_into(Other(), {"method": state}, run_files.Path("out"))
        assert "\n" not in str(refused.value)


TREES = [
    "[" * 50_000,
    '{"$tensor": "b"}',
    '{"$tensor": [1]}',
    '{"$items": 5}',
    '{"$items": [[1]]}',
    '{"$tuple": 5}',
    "no",
]


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: tree[:16])
def test_a_checkpoint_whose_tree_is_none_is_damaged(tmp_path, tree):
    tensors = {"a": torch.zeros(3)}
    file = tmp_path / "a.safetensors"
    metadata = {"format": checkpoint.FORMAT, "tree": tree, "checksum": checkpoint._checksum(tree, tensors)}
    save_file(tensors, file, metadata=metadata)
    with pytest.raises(CheckpointError, match="tree of values"):
        checkpoint.load(file)
    save_file(tensors, file, metadata={"format": checkpoint.FORMAT})
    with pytest.raises(CheckpointError, match="not a checkpoint of perdure"):
        checkpoint.load(file)


def test_files_that_a_killed_process_was_writing_are_swept_and_others_stay(tmp_path):
    stray = [".-1_0.jsonl.31022", "checkpoint/.latest.safetensors.7", "predictions/.0_0.jsonl.99999"]
    kept = [".hidden", ".lock.0a1b", "predictions/0_0.jsonl", ".note.txt", "a.7"]
    for name in [*stray, *kept]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    checkpoint.sweep(tmp_path)
    there = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert there == set(kept)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch):
    file = tmp_path / "a.json"
    write_json(file, {"a": 1})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(written_whole, "sync", full)
    with pytest.raises(OSError):
        write_json(file, {"a": 2})
    assert json.loads(file.read_text()) == {"a": 1} and [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_full_disk_says_so_when_tensors_are_saved(tmp_path, monkeypatch):
    from safetensors import SafetensorError

    def full(*_, **__):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError) as raised:
        checkpoint.save(tmp_path / "a.safetensors", {"a": torch.zeros(3)})
    assert raised.value.errno == 28 and not list(tmp_path.iterdir())
