"""Addresses of versions, the pointer, and the folders that they stand for."""

import json

import pytest

from perdure.errors import DataError, RecipeError
from perdure.run_folder import versions


@pytest.fixture
def run(tmp_path):
    """A finished run and two later versions, of which the first is promoted."""
    folder = tmp_path / "runs" / "mine" / "seed_0"
    names = {2: ["ant", "bee"], 3: ["ant", "bee", "cat"]}
    for number in (1, 2, 3):
        place = versions.version_folder(folder, number)
        (place / "checkpoint").mkdir(parents=True)
        (place / "checkpoint" / "latest.safetensors").touch()
        (place / "recipe.yaml").touch()
        if number > 1:
            (place / "version.json").write_text(json.dumps(about(number, names[number])))
            tasks = {"tasks": [task(names[number])], "shared_candidates": True, "task_revealed": False, "scope": "seen"}
            (place / "tasks.json").write_text(json.dumps(tasks))
    versions.point(folder, 2, by="a test")
    return folder


def task(names):
    return {"index": 0, "name": "t", "kind": "classify", "candidates": names, "offset": 0, "metrics": ["accuracy"]}


def about(number, names):
    return {"version": number, "parent": number - 1, "time": "now", "task": task(names), "state": {"bytes": 0}}


def test_an_address_names_the_promoted_version_a_number_or_the_candidate(run):
    assert versions.resolve(run).number == 2 and versions.resolve(f"{run}@current").current
    assert versions.resolve(run.parent).number == 2  # the only run that lies in it
    assert versions.resolve(f"{run}@1").folder == run
    assert versions.resolve(f"{run}@candidate").number == 3
    third = versions.resolve(f"{run}@3")
    assert third.folder == run / "versions" / "000003" and third.state.is_file() and not third.current
    assert third.classes == ("ant", "bee", "cat")
    assert str(third) == f"{run}@3" and versions.resolve(third.folder) == third
    assert [v.number for v in versions.listed(run)] == [1, 2, 3]
    assert versions.ancestors(versions.listed(run), 3) == [2, 1]


def test_what_is_no_version_is_named_with_those_that_are(run):
    for wanted in ("4", "0", "-1", "next", "99999999999999"):
        with pytest.raises(RecipeError, match=r"there is no version .*one of 1, 2, 3, current or candidate"):
            versions.resolve(f"{run}@{wanted}")
    versions.point(run, 3, by="a test")
    with pytest.raises(RecipeError, match="the newest version, 3, is promoted"):
        versions.resolve(f"{run}@candidate")


def test_a_folder_with_an_at_in_its_name_is_a_folder(tmp_path):
    (tmp_path / "me@7").mkdir()
    (tmp_path / "me@7" / "recipe.yaml").touch()
    assert versions.resolve(tmp_path / "me@7").number == 1
    assert versions.resolve(f"{tmp_path}/me@7@1").folder == tmp_path / "me@7"


def test_a_run_without_versions_is_version_1_and_the_pointer_keeps_its_history(run, tmp_path):
    assert versions.pointer(tmp_path) == {"current": 1, "history": []}
    versions.point(run, 1, by="perdure rollback", reason="worse on cats")
    assert versions.resolve(run).folder == run
    history = versions.pointer(run)["history"]
    assert [(h["version"], h["was"], h["reason"]) for h in history] == [(2, 1, ""), (1, 2, "worse on cats")]


def test_a_torn_pointer_is_one_message_and_never_version_1(run):
    for torn in ('{"current": 2, "his', '{"current": 0, "history": []}', '{"history": []}'):
        versions.pointer_file(run).write_text(torn)
        with pytest.raises(DataError, match=r"current\.json"):
            versions.resolve(run)
