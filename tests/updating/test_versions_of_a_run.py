"""Every task of a run leaves a version: cheap, whole, usable, and pruned as the recipe says."""

import json
import os
import shutil
from types import SimpleNamespace

import pytest

from perdure import api, prediction, recipe, recording, updating
from perdure.errors import Interrupted, RecipeError
from perdure.files.sizes import in_words
from perdure.reporting import history
from perdure.run_folder import leaving, promoting, versions
from perdure.run_folder.run_files import checkpoint_file
from perdure.testing.running import assert_equal_state
from tests.updating import pictures
from tests.updating.test_updating import WIDE, Killed, state

NAMES = "ant bee cat dog eel fox"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return pictures.folder(tmp_path_factory.mktemp("base"), NAMES)


def run(base, out, *overrides):
    """Three tasks of two classes."""
    return api.execute(pictures.asked(base, out, *overrides))[0].folder


@pytest.fixture(scope="module")
def made(base, tmp_path_factory):
    return run(base, tmp_path_factory.mktemp("out"))


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "run")


def test_each_version_is_the_run_as_it_stood_and_repeats_from_its_own_recipe(made, tmp_path):
    assert versions.numbers(made) == [1, 2, 3] and versions.current(made) == 3
    second = versions.resolve(f"{made}@2")
    assert (second.parent, second.classes) == (1, ("ant", "bee", "cat", "dog"))
    whole = recipe.load(second.folder / "recipe.yaml", [f"run.out={tmp_path}"])
    api.execute(whole, quiet=True)
    again = whole.folder(0)
    assert_equal_state(state(second.folder)["method"], state(again)["method"], "another state")
    assert second.scores["rows"] == json.loads((again / "scores.json").read_text())["rows"]
    assert versions.read_tasks(again)["tasks"] == second.tasks
    assert [len(prediction.load(f"{made}@{n}", device="cpu").classes) for n in (1, 2, 3)] == [2, 4, 6]
    assert promoting.faults(second) == []


def test_a_list_tells_scores_data_date_and_size_and_sizes_are_said_before(made):
    rows = [history.described(version) for version in versions.listed(made)]
    assert [(r["version"], r["parent"], r["task"], r["examples"], r["current"]) for r in rows] == [
        (1, None, "classes 0-1", 16, False),
        (2, 1, "classes 2-3", 16, False),
        (3, 2, "classes 4-5", 16, True),
    ]
    assert all(r["time"] and r["bytes"] and r["new"] is not None and r["data"].startswith("image_folder") for r in rows)
    assert [len(versions.resolve(f"{made}@{n}").scores["rows"]) for n in (1, 2, 3)] == [1, 3, 6]
    first, *_ = (made / "log.txt").read_text().splitlines()
    assert "each task leaves a version; 3 are kept (run.keep)" in first
    assert history.history(made) == []  # nothing has been updated: a report says nothing of it


def test_a_version_is_the_checkpoint_itself_until_the_next_task(base, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stop_after_a_task(patch)
        run(base, tmp_path)
    folder = tmp_path / "mine" / "seed_0"
    assert versions.numbers(folder) == [1, 3]
    assert os.path.samefile(versions.resolve(f"{folder}@1").state, checkpoint_file(folder))
    run(base, tmp_path)
    files = [version.state.stat().st_ino for version in versions.listed(folder)]
    assert len({*files}) == 3


def stop_after_a_task(patch):
    make = api.make_runtime

    def stopping(*given, **more):
        runtime = make(*given, **more)
        runtime.agreed = lambda said: runtime.task == 0  # type: ignore[method-assign]
        return runtime

    patch.setattr(api, "make_runtime", stopping)


def test_a_kill_between_the_state_and_its_version_loses_none(base, tmp_path, monkeypatch):
    def killed(*_):
        raise Killed

    for name in ("rename", "link"):  # of a whole version, and of its state
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(leaving.os, name, killed)
            run(base, tmp_path)
    folder = run(base, tmp_path)
    assert versions.numbers(folder) == [1, 2, 3] and not (folder / "versions" / ".leaving").exists()


def test_old_versions_are_pruned_as_the_recipe_says_but_never_the_promoted_one_nor_a_parent_in_use(
    folder, base, tmp_path
):
    kept = [v.number for v in versions.listed(run(base, tmp_path / "kept", "run.keep=2")) if v.state.is_file()]
    assert kept == [2, 3]
    new = pictures.folder(tmp_path / "new", "gnu hen", kind=1)
    promoting.promote(folder, 1)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr("perdure.gate.judge", lambda *_, **__: (_ for _ in ()).throw(Killed()))
        updating.update(folder, new, gate=WIDE, quiet=True)
    promoting.promote(folder, 2)
    assert promoting.prune(folder, 0) == []  # 1 is the parent of the update, 2 is promoted, 3 the run itself
    versions.point(folder, 1, by="a test")
    found = updating.update(folder, new, gate=WIDE, quiet=True)
    assert (found.parent, found.current) == (1, True)
    os.utime(versions.pointer_file(folder), (0, 0))  # the promotion is long ago
    assert promoting.prune(folder, 0) == [1, 2]
    assert updating.update(folder, new, gate=WIDE, quiet=True, overrides=["run.keep=1"]).parent == 4


def test_an_update_from_an_earlier_version_is_the_run_that_stopped_there(folder, tmp_path):
    promoting.rollback(folder, 2)
    new = pictures.folder(tmp_path / "new", "gnu bee", kind=1)
    found = updating.update(folder, new, gate=WIDE, quiet=True)
    assert found.number == 4 and found.classes == ("ant", "bee", "cat", "dog", "gnu")
    assert [row["asked"] for row in found.scores["rows"] if row["after"] == 2] == [0, 1, 2]
    whole = recipe.load(found.folder / "recipe.yaml", [f"run.out={tmp_path / 'whole'}"])
    api.execute(whole, quiet=True)
    assert_equal_state(state(found.folder)["method"], state(whole.folder(0))["method"], "another state")
    assert len(history.history(folder)) == 4


def test_a_run_made_anew_leaves_its_versions_anew_and_updates_stand_against_it(base, folder, tmp_path):
    asked = pictures.asked(base, tmp_path / "again")
    first = api.execute(asked, quiet=True)[0].folder
    before = versions.resolve(f"{first}@1").state.stat().st_mtime_ns
    api.execute(asked, again=True, quiet=True)
    assert versions.resolve(f"{first}@1").state.stat().st_mtime_ns > before
    updating.update(first, pictures.folder(tmp_path / "new", "gnu", kind=1), gate=WIDE, quiet=True)
    with pytest.raises(RecipeError, match="versions have been built on this run"):
        api.execute(asked, again=True, quiet=True)


def test_without_room_a_version_has_no_state_and_the_run_goes_on(base, tmp_path, monkeypatch):
    full = SimpleNamespace(disk_usage=lambda _: SimpleNamespace(free=0), rmtree=shutil.rmtree)
    for module in (recording, leaving):
        monkeypatch.setattr(module, "shutil", full)
    folder = run(base, tmp_path)
    first, last = versions.resolve(f"{folder}@1"), versions.resolve(folder)
    assert first.about["pruned"] and not first.state.exists() and last.state.is_file() and promoting.faults(first) == []
    said = (folder / "log.txt").read_text()
    assert "there is no room for so many versions" in said and "no room on the disk for the state of version 1" in said


def test_what_learns_nothing_leaves_no_version(base, tmp_path):
    asked = {
        "stream": {"name": "class_incremental", "data": {"name": "image_folder", "root": str(base)}, "step": 2},
        "method": {"name": "zero_shot"},
        "models": {"policy": {"name": "clip", "weights": "micro-clip"}},
        "run": {"device": "cpu", "out": str(tmp_path)},
    }
    folder = api.execute(recipe.load(asked), quiet=True)[0].folder
    assert versions.numbers(folder) == [1] and not (folder / "versions").exists()


def test_sizes_in_words():
    assert [in_words(n) for n in (0, 500, 2048, 3 * 2**20)] == ["0 bytes", "500 bytes", "2 KiB", "3 MiB"]
