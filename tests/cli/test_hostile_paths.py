"""Places to write to that cannot be: one message before any work, exit code 2, and nothing is left behind."""

from __future__ import annotations

import errno
import json
import os
import string
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perdure import errors
from perdure.cli import main
from perdure.files import folders

GOOD = """stream: {name: class_incremental, data: digits, step: 5, train_per_class: 10, test_per_class: 5}
models: {net: {name: mlp, inputs: 192, hidden: 8}}
method: {name: sgd, epochs: 1}
run: {device: cpu, threads: 1}
"""
IMPOSSIBLE = {
    "a device": "/dev/null",
    "below a device": "/dev/null/x",
    "a file": "file",
    "below a file": "file/deeper/x",
    "a name of 300 characters": "n" * 300,
    "a path of 6000 characters": "x/" * 3000,
}
WRITERS = {
    "report": ("report", "run", "--out", "{}"),
    "export": ("export", "run", "{}"),
    "cp": ("cp", "er/digits", "{}/x.yaml"),
    "data make": ("data", "make", "microworld", "--as", "imagefolder", "--out", "{}"),
    "data prepare": ("data", "prepare", "file", "{}"),
    "demo": ("demo", "--out", "{}"),
    "run": ("run", "q.yaml", "-q", "run.out={}"),
    "check": ("check", "q.yaml", "run.out={}"),
    "asd": ("prepare", "asd", "file", "--kind", "question", "--out", "{}/x.json"),
    "predictions": ("prepare", "predictions", "file", "--task", "gqa", "--answers", "file", "--out", "{}/x"),
    "features": ("prepare", "features", "--data", "caption_texts", "--out", "{}/x"),
    "clipscore": ("prepare", "clipscore", "file", "--images", ".", "--out", "{}/x"),
    "coco-results": ("prepare", "coco-results", "file", "--out", "{}"),
    "html": ("predict", "--method", "rlcf_encoder", "--classes", "a,b", "file", "--html", "{}/x"),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "q.yaml").write_text(GOOD)
    (tmp_path / "file").write_text("a file")
    (tmp_path / "run").mkdir()
    scores = {"tasks": ["a"], "headline": "accuracy", "rows": []}
    (tmp_path / "run" / "scores.json").write_text(json.dumps(scores))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said(capsys, *arguments):
    with pytest.raises(SystemExit) as left:
        main(list(arguments))
    captured = capsys.readouterr()
    return left.value.code, captured.out, captured.err


@pytest.mark.parametrize("place", IMPOSSIBLE, ids=lambda name: name.replace(" ", "_"))
@pytest.mark.parametrize("writer", WRITERS, ids=lambda name: name.replace(" ", "_"))
def test_a_place_that_cannot_be_is_refused_before_work(folder, capsys, monkeypatch, writer, place):
    monkeypatch.setattr("perdure.api.execute", None, raising=False)
    before = {p: p.is_file() and p.read_bytes() for p in folder.rglob("*")}
    code, out, err = said(capsys, *(a.replace("{}", IMPOSSIBLE[place]) for a in WRITERS[writer]))
    assert code == 2 and not out, err
    assert len(err.strip().split("\n")) <= 4 and "internal error" not in err
    assert {p: p.is_file() and p.read_bytes() for p in folder.rglob("*")} == before


@pytest.mark.parametrize("name", ["-rf", "--help", "", ".", "..", "a/b", "n" * 256, "é" * 200, "a\0b", "\x1b[31m"])
def test_a_run_is_not_called_what_is_no_name_of_a_folder(folder, capsys, name):
    code, _, err = said(capsys, "check", "q.yaml", f"run.name={json.dumps(name)}")
    assert code == 2 and "run.name" in err and err.isprintable() is False  # line ends alone
    assert not set(err) & {"\x1b", "\0"}


def test_an_empty_folder_of_runs_is_refused(folder, capsys):
    code, _, err = said(capsys, "check", "q.yaml", 'run.out=""')
    assert code == 2 and "the path is empty" in err


def test_a_recipe_whose_file_begins_with_a_dash_names_a_run_that_does_not(folder, capsys):
    Path("-rf.yaml").write_text(GOOD)
    code, out, _ = said(capsys, "check", "./-rf.yaml", "--no-data")
    assert code == 0 and out.startswith("rf:")


PARTS = st.text(string.ascii_letters + "\0\x1b .-", min_size=1, max_size=6) | st.just("n" * 300)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(PARTS, min_size=1, max_size=4))
def test_any_path_is_refused_or_can_be_written_to(tmp_path, parts):
    here = Path(tempfile.mkdtemp(dir=tmp_path))
    folder = Path(here, "new", *(part for part in parts if set(part) != {"."}))
    try:
        folders.require_folder(folder, setting="--out")
    except errors.RecipeError:
        with pytest.raises((OSError, ValueError)):
            folder.mkdir(parents=True, exist_ok=True)
        return
    assert not list(here.iterdir()), "the look leaves nothing"
    folder.mkdir(parents=True)
    (folder / "file").write_text("x")
    folders.require_file(folder / "file", setting="--out")


REFUSALS = ["EROFS", "ENOSPC", "ENOTDIR", "EACCES", "ENAMETOOLONG", "EISDIR", "EDQUOT", "EIO", "EMFILE", "EPERM"]


@pytest.mark.parametrize("name", REFUSALS)
def test_what_the_system_refuses_is_a_message(folder, capsys, monkeypatch, name):
    code = getattr(errno, name)

    def refuse(*_, **__):
        raise OSError(code, os.strerror(code), "some/\x1b[31mfile")

    monkeypatch.setattr("perdure.reporting.report", refuse)
    exit_code, _, err = said(capsys, "report", "run")
    assert exit_code == 2 and err.count("\n") == 1
    assert os.strerror(code).lower() in err and r"some/\x1b[31mfile" in err


def test_a_fault_of_ours_is_still_an_internal_error(folder, capsys, monkeypatch):
    def fail(*_, **__):
        raise OSError("nobody knows")

    monkeypatch.setattr("perdure.reporting.report", fail)
    assert said(capsys, "report", "run")[0] == 70


def test_a_file_called_as_the_folder_of_runs_is_named(folder, capsys):
    (folder / "runs").write_text("a file")
    code, out, err = said(capsys, "run", "q.yaml", "--quiet")
    assert code == 2 and not out and err.count("\n") == 1
    assert "runs is no folder" in err and "run.out" in err


@pytest.mark.slow
def test_a_run_that_is_taken_up_leaves_no_file_of_a_killed_process(folder, capsys):
    stray = folder / "runs" / "q" / "seed_0" / "predictions" / ".-1_0.jsonl.31022"
    stray.parent.mkdir(parents=True)
    stray.write_text("half a rec")
    assert said(capsys, "run", "q.yaml", "--quiet")[0] == 0
    assert not [path for path in (folder / "runs").rglob(".*") if path.is_file()]


@pytest.mark.slow
def test_a_disk_that_is_full_in_the_middle_of_a_run_is_one_message_and_the_run_goes_on(folder, capsys, monkeypatch):
    from perdure import checkpoint

    save = checkpoint.save_file

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "latest.safetensors")

    monkeypatch.setattr(checkpoint, "save_file", full)
    code, _, err = said(capsys, "run", "q.yaml", "--quiet")
    assert code == 2 and err.count("\n") == 1
    assert "no space left on device" in err and "the same command goes on" in err
    monkeypatch.setattr(checkpoint, "save_file", save)
    assert said(capsys, "run", "q.yaml", "--quiet")[0] == 0
