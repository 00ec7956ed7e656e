"""A finished run is updated: the same as all at once, judged by a gate, and never left by halves."""

import os
import shutil
from types import SimpleNamespace

import pytest
from safetensors import safe_open

from perdure import api, checkpoint, kept_examples, recipe, resuming, updating
from perdure.errors import BusyError, CheckpointError, DataError, Interrupted, RecipeError
from perdure.prediction import predict
from perdure.reporting import report
from perdure.run_folder import lock, promoting, versions
from perdure.run_folder.run_files import checkpoint_file
from perdure.settings import registry
from perdure.testing import tiny_stream
from perdure.testing.running import assert_equal_state
from perdure.types import Example
from perdure.updating import as_gate
from perdure.updating.judging import probe_of
from perdure.updating.planned import require_fit
from tests.updating import pictures

WIDE = {"retention": 100, "mean": 100, "learned": False, "min_learned": 0}
"""A gate that so few pictures can pass."""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("made")
    pictures.folder(root / "base", "ant bee cat dog")
    pictures.folder(root / "new", "eel fox bee", kind=1)
    pictures.folder(root / "later", "gnu cat", kind=2)
    api.execute(pictures.asked(root / "base", root / "runs"), quiet=True)
    return root


@pytest.fixture
def place(made, tmp_path):
    """A copy of the finished run's folder, and the pictures where the recipe has them."""
    shutil.copytree(made / "runs" / "mine" / "seed_0", tmp_path / "run")
    return tmp_path


def update(place, data, **more):
    return updating.update(place / "run", data, quiet=True, **{"gate": WIDE, **more})


def state(folder):
    return checkpoint.load(checkpoint_file(folder))


# -- the same as all at once --------------------------------------------------------------------------------


def test_two_updates_give_state_and_scores_of_the_whole_stream_at_once(made, place):
    second = update(place, made / "new")
    third = update(place, made / "later", name="week 3")
    assert (second.number, third.number, third.about["parent"], third.current) == (3, 4, 3, True)
    assert third.classes == ("ant", "bee", "cat", "dog", "eel", "fox", "gnu")
    whole = recipe.load(third.folder / "recipe.yaml", [f"run.out={place / 'whole'}"])
    api.execute(whole, quiet=True)
    ours, theirs = state(third.folder), state(whole.folder(0))
    assert ours["names"] == theirs["names"] == ["classes 0-1", "classes 2-3", "new", "week 3"]
    assert ours["rows"] == theirs["rows"] and ours["query"] == theirs["query"]
    assert_equal_state(ours["method"], theirs["method"], "another state")


def test_old_data_need_not_be_there_and_then_nothing_is_said_of_earlier_tasks(made, place, monkeypatch):
    there = update(place, made / "new", promote="never")
    shutil.rmtree(place / "run" / "kept")
    monkeypatch.setattr(recipe, "build_stream", gone)
    away = update(place, made / "new", gate=None)
    assert_equal_state(state(there.folder)["method"], state(away.folder)["method"], "another state")
    verdict = away.about["gate"]
    assert [row["asked"] for row in away.scores["rows"] if row["after"] == 2] == [2]
    assert report([away.folder], place / "report")["report.md"].is_file()
    assert verdict["outcome"] == "held" and verdict["unknown"] == ["classes 0-1", "classes 2-3"] and not away.current


def gone(asked):
    raise DataError("the folder is missing", where="base")


def test_kept_tests_are_tested_when_the_data_are_gone(made, place, monkeypatch):
    update(place, made / "new")
    monkeypatch.setattr(recipe, "build_stream", gone)
    third = update(place, made / "later")
    assert [row["n"] for row in third.scores["rows"] if row["after"] == 3] == [4, 4, 7, 6]
    assert third.about["gate"]["unknown"] == []


@pytest.mark.parametrize("data_there", [True, False])
def test_a_run_made_before_versions_existed_is_updated(made, place, monkeypatch, data_there):
    for name in ("data.json", "tasks.json"):
        (place / "run" / name).unlink()
    if not data_there:
        monkeypatch.setattr(recipe, "build_stream", gone)
    found = update(place, made / "new", promote="always")
    assert found.classes == ("ant", "bee", "cat", "dog", "eel", "fox") and found.tasks[1]["offset"] == 2
    with safe_open(str(found.state), framework="pt") as file:
        assert file.metadata()["format"] == "perdure-1"


def test_a_run_goes_on_in_a_folder_of_its_own(made, place):
    settings = [f"run.out={place / 'forks'}", "stream.step=3", f"stream.data.root={made / 'new'}"]
    forked = updating.fork(pictures.asked(made / "new", place, *settings), place / "run", quiet=True)
    assert forked[0].scores.tasks == ["classes 0-1", "classes 2-3", "classes 0-2"]
    assert forked[0].folder == place / "forks" / "mine" / "seed_0" and versions.current(forked.folder) == 3
    assert versions.resolve(forked.folder).classes == ("ant", "bee", "cat", "dog", "eel", "fox")
    assert_equal_state(state(versions.resolve(f"{forked.folder}@2").folder), state(place / "run"), "another state")
    assert not updating.fork(pictures.asked(made / "new", place, *settings), place / "run", quiet=True)[0].fresh
    with pytest.raises(RecipeError, match=r"method\.buffer_size.*was 200.*its method and models"):
        other = [*settings, "method.buffer_size=9", "run.name=other"]
        updating.fork(pictures.asked(made / "new", place, *other), place / "run", quiet=True)


REST = [pytest.param(name, marks=pytest.mark.slow) for name in ("sgd", "er", "der", "agem", "agem_r")]


@pytest.mark.parametrize("name", ["derpp", "gem", *REST])
def test_a_head_grows_where_an_update_brings_more_classes_as_in_one_stream(made, tmp_path, name):
    method = "method={name: NAME, batch_size: 4, lr: 0.05, epochs: 1}".replace("NAME", name)
    asked = pictures.asked(made / "base", tmp_path, method, "models.net.classes=4")
    shutil.copytree(api.execute(asked, quiet=True)[0].folder, tmp_path / "run")
    update(tmp_path, made / "new")
    found = update(tmp_path, made / "later")
    assert found.number == 4 and len(found.classes) == 7
    whole = recipe.load(found.folder / "recipe.yaml", [f"run.out={tmp_path / 'whole'}"])
    api.execute(whole, quiet=True)
    ours, theirs = state(found.folder), state(whole.folder(0))
    assert ours["method"]["net"]["head.weight"].shape[0] == 7 and ours["rows"] == theirs["rows"]
    assert_equal_state(ours["method"], theirs["method"], "another state")
    (answer,) = predict(tmp_path / "run", made / "later" / "gnu" / "0.png", device="cpu", top=9)
    assert len(answer["answers"]) == 7


# -- what stands against it, before work --------------------------------------------------------------------


def refused(place, data, match, error=DataError, **more):
    with pytest.raises(error, match=match):
        update(place, data, **more)
    assert versions.numbers(place / "run") == [1, 2]


def test_names_of_classes_are_matched_and_near_ones_are_refused(made, place, tmp_path):
    spelled = pictures.folder(tmp_path / "spelled", "BEE dogs", colors="bee dog", kind=3)
    refused(place, spelled, r"'dogs' is nearly the known class 'dog'.*--rename 'dogs'='dog'")
    told = updating.plan(place / "run", spelled, renames={"dogs": "dog"}).told()
    assert told["known_classes"] == ["bee", "dog"] and told["new_classes"] == []
    new = updating.plan(place / "run", spelled, renames={"dogs": "dogs"})
    assert new.told()["new_classes"] == ["dogs"] and set(new.task.train.targets) == {1, 4}
    refused(place, spelled, "no class 'wolf' in the data", renames={"wolf": "dog"})


def test_a_test_example_among_the_new_training_data_is_refused(made, place, tmp_path):
    leaking = tmp_path / "leaking"
    shutil.copytree(made / "new", leaking)
    known = updating.plan(place / "run", made / "new").known.tasks[0].test[0]
    shutil.copy(known.inputs["image"], leaking / "eel" / "other_name.png")
    refused(place, leaking, r"other_name\.png is the test example .*\.png of task 'classes 0-1'")


def test_settings_by_which_the_method_would_be_another_are_refused(made, place):
    refused(place, made / "new", r"method\.buffer_size", RecipeError, overrides=["method.buffer_size=9"])
    refused(place, made / "new", "the stream of a version", RecipeError, overrides=["stream.step=1"])
    found = updating.plan(place / "run", made / "new", overrides=["method.lr=0.05", "task.test_share=0.5"])
    assert found.changed == {"method.lr": [0.1, 0.05]} and len(found.task.test) > 10


def test_what_cannot_go_on_says_so_before_work(made, place, tmp_path):
    asked = pictures.asked(made / "base", tmp_path, "method={name: ewc_online, epochs: 1}", "models.net.classes=4")
    shutil.copytree(api.execute(asked, quiet=True)[0].folder, tmp_path / "fixed" / "run")
    refused(
        tmp_path / "fixed",
        made / "new",
        r"a head of 4 outputs.*fixed when the run was made, and 6 classes",
        RecipeError,
    )
    merged = pictures.asked(made / "base", tmp_path, "models.net.classes=4", "merge.how=previous", "run.name=merged")
    shutil.copytree(api.execute(merged, quiet=True)[0].folder, tmp_path / "merged" / "run")
    refused(tmp_path / "merged", made / "new", "a head of 4 outputs", RecipeError)
    refused(place, made / "missing", "no such file or folder")
    (place / "run" / "card.json").unlink()
    refused(place, made / "new", "the run is not finished", CheckpointError)


def test_methods_say_from_their_source_whether_they_can_be_updated():
    said = {name: registry.describe("methods", name).not_updatable for name in registry.names("methods")}
    assert said["tent"] == said["zero_shot"] == "it learns nothing from training data"
    assert not said["er"] and not said["mg_clip"] and not said["sefe"] and not said["php"]
    asked = recipe.load("zero_shot/microworld")
    with pytest.raises(RecipeError, match="method zero_shot: cannot be updated: it learns nothing"):
        require_fit(asked, tiny_stream())
    room = recipe.load("av_coda_prompt/microworld", ["method.tasks=2"])
    with pytest.raises(RecipeError, match="has room for 2 tasks, and this is task 3"):
        require_fit(room, tiny_stream(tasks=3))


def test_examples_that_a_method_keeps_by_their_paths_must_be_there(made, place, tmp_path):
    file = checkpoint_file(place / "run")
    saved = checkpoint.load(file)
    kept = [Example(id=str(i), inputs={"image": tmp_path / f"{i}.png"}, target=0) for i in range(2)]
    checkpoint.save(file, saved | {"method": saved["method"] | {"memory_of": kept_examples.pack(kept)}})
    refused(place, made / "new", r"0\.png is not there any more \(2 such files\)")


def test_one_process_writes_a_version(made, place, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused(place, made / "new", "several processes.*one", RecipeError)


def test_a_version_that_is_not_promoted_is_no_parent(made, place):
    with pytest.raises(RecipeError, match="parent is the promoted version"):
        updating.update(f"{place / 'run'}@2", made / "new")


# -- the gate decides ---------------------------------------------------------------------------------------


def test_shuffled_labels_are_refused_and_the_promoted_version_answers_as_before(made, place, tmp_path):
    wrong = pictures.folder(tmp_path / "wrong", "ant bee cat dog", colors="dog cat bee ant", n=12, kind=5)
    picture = sorted((made / "base" / "ant").glob("*.png"))
    before = predict(place / "run", picture, device="cpu")
    found = update(place, wrong, gate={"retention": 5}, overrides=["method.epochs=20"])
    assert not found.current and found.about["gate"]["outcome"] == "failed"
    worse = found.about["gate"]["turned_wrong"]
    assert worse and worse[0]["target"] in ("ant", "bee", "cat", "dog") and worse[0]["before"] == worse[0]["target"]
    assert predict(place / "run", picture, device="cpu") == before
    assert predict(f"{place / 'run'}@candidate", picture, device="cpu") != before
    assert found.about["changed"] == {"method.epochs": [2, 20]}


def test_rolling_back_answers_as_before_and_the_next_update_starts_there(made, place):
    picture = sorted((made / "base" / "cat").glob("*.png"))
    before = predict(place / "run", picture, device="cpu")
    second = update(place, made / "new")
    assert second.current and predict(place / "run", picture, device="cpu") != before
    promoting.rollback(place / "run", reason="a test")
    assert predict(place / "run", picture, device="cpu") == before
    third = update(place, made / "later")
    assert (third.number, third.about["parent"]) == (4, 2) and third.classes[4:] == ("gnu",)
    history = [(h["was"], h["version"], h["by"]) for h in versions.pointer(place / "run")["history"]]
    assert history == [(2, 3, "perdure update"), (3, 2, "perdure rollback"), (2, 4, "perdure update")]
    with pytest.raises(RecipeError, match="version 4 is promoted already"):
        promoting.promote(place / "run", 4)
    pages = report([place / "run"], place / "report")
    line = "|4|2|" + third.about["time"][:16] + "|later|"
    assert line in pages["report.md"].read_text() and "Versions of run" in pages["report.html"].read_text()


def test_pruned_versions_keep_what_they_were_and_a_damaged_state_is_found(made, place):
    for _ in range(3):
        update(place, made / "later", promote="never")
    run = place / "run"
    assert promoting.prune(run, 1) == [1, 3, 4] and promoting.prune(run, 1) == []
    third = versions.resolve(f"{run}@3")
    assert third.about["pruned"] and third.scores["rows"] and not third.state.exists()
    with pytest.raises(RecipeError, match="state of version 3 was pruned"):
        promoting.promote(run, 3)
    fifth = versions.resolve(f"{run}@5")
    assert promoting.faults(fifth) == [] == promoting.faults(third)
    content = bytearray(fifth.state.read_bytes())
    content[-1] ^= 1
    fifth.state.write_bytes(content)
    assert "damaged" in promoting.faults(fifth)[0]


def test_a_run_on_which_versions_are_built_is_not_made_anew(made, tmp_path):
    shutil.copytree(made / "runs", tmp_path / "runs")
    asked = pictures.asked(made / "base", tmp_path / "runs")
    update_of = updating.update(asked.folder(0), made / "later", gate=WIDE, quiet=True)
    with pytest.raises(RecipeError, match="versions have been built on this run"):
        api.execute(asked, again=True, quiet=True)
    assert update_of.state.is_file() and resuming.finished_scores(asked.folder(0))


# -- never by halves ----------------------------------------------------------------------------------------


class Killed(BaseException):
    """What no code of ours catches."""


@pytest.mark.parametrize("moment", ["learn", "test", "card", "gate", "rename", "pointer"])
def test_an_update_that_is_killed_leaves_the_promoted_version_and_goes_on_to_the_same(made, place, monkeypatch, moment):
    whole = state(update(place, made / "new", promote="never").folder)
    shutil.rmtree(place / "run" / "versions" / "000003")
    shutil.rmtree(place / "run" / "kept")
    picture = sorted((made / "base" / "cat").glob("*.png"))[:2]
    before = predict(place / "run", picture, device="cpu")
    with monkeypatch.context() as patch:
        kill(patch, moment)
        with pytest.raises((Killed, Interrupted)):
            update(place, made / "new")
    assert predict(place / "run", picture, device="cpu") == before and versions.current(place / "run") == 2
    if moment == "pointer":
        assert versions.numbers(place / "run") == [1, 2, 3]
        assert "promoted now" in promoting.settle(place / "run") and versions.current(place / "run") == 3
        assert promoting.settle(place / "run") == ""
    else:
        assert versions.numbers(place / "run") == [1, 2]
        assert update(place, made / "new").current
    found = versions.resolve(place / "run")
    assert found.number == 3 and not (place / "run" / "versions" / ".work").exists()
    assert_equal_state(state(found.folder), whole, "another state")


def kill(patch, moment):
    def killed(*_, **__):
        raise Killed

    places = {
        "test": ("perdure.loop._test", killed),
        "card": ("perdure.recording.make_card", killed),
        "gate": ("perdure.gate.judge", killed),
        "rename": ("perdure.updating.os.rename", killed),
        "pointer": ("perdure.run_folder.versions.point", killed),
    }
    if moment in places:
        patch.setattr(*places[moment])
        return
    make = api.make_runtime

    def stopping(*given, **more):
        runtime = make(*given, **more)
        runtime.stop_requested = "before" not in str(given[1])  # after the first step, and a save
        return runtime

    patch.setattr(api, "make_runtime", stopping)


def test_other_data_are_refused_while_an_update_is_under_way(made, place, monkeypatch):
    with monkeypatch.context() as patch:
        kill(patch, "learn")
        with pytest.raises(Interrupted):
            update(place, made / "new")
    with pytest.raises(RecipeError, match=r"another update is under way, task 'new' of version 2.*--abandon"):
        update(place, made / "later")
    assert update(place, made / "later", abandon=True).about["task"]["name"] == "later"


def test_a_second_update_at_the_same_time_is_refused_and_names_the_first(made, place):
    with lock.held(place / "run" / "versions"), pytest.raises(BusyError, match=f"process {os.getpid()} on "):
        update(place, made / "new")


# -- a probe ------------------------------------------------------------------------------------------------


def world(**more):
    return {"name": "microworld", "train_per_class": 1, "validation_per_class": 0, **more}


def test_a_probe_asks_for_classes_that_are_never_learned(tmp_path):
    settings = {
        "stream": {"name": "class_incremental", "data": world(test_per_class=1), "step": 40},
        "method": {"name": "finetune", "template": "a photo of a {}.", "epochs": 1, "lr": 0.01},
        "models": {"clip": {"name": "clip", "weights": "micro-clip"}},
        "run": {"device": "cpu", "out": str(tmp_path / "runs"), "name": "mine"},
    }
    asked = recipe.load(settings)
    api.execute(asked, quiet=True)
    gate = {**WIDE, "probe": world(test_per_class=4), "probe_margin": 1}
    found = updating.update(asked.folder(0), world(style="sketch", test_per_class=1), gate=gate, quiet=True)
    probe = next(rule for rule in found.about["gate"]["rules"] if rule["rule"] == "probe")
    assert probe["n"] == 160 and probe["before"] > 20 and probe["outcome"] != "passed"
    assert {row["target"] in found.classes for row in found.about["gate"]["turned_wrong"]} <= {True}
    with pytest.raises(RecipeError, match="er answers only for classes that it has learned"):
        probe_of(SimpleNamespace(gate=as_gate(gate), recipe=recipe.load("er/digits"), stream=tiny_stream()))
