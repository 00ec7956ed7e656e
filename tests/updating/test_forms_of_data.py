"""An update learns from tables, shards and Hugging Face data sets as from folders; a server goes over to it."""

import json
import shutil
import time

import pytest

from perdure import api, prediction, updating
from perdure.errors import CheckpointError
from perdure.files.text_files import read_json
from perdure.run_folder import promoting, versions
from perdure.serving.app import Settings, make
from perdure.settings.config import Named
from perdure.streams import contents, one_task
from perdure.testing.running import assert_equal_state
from tests.data.own_rows import sample, write_csv, write_tar
from tests.served import serving
from tests.updating import pictures
from tests.updating.test_updating import WIDE, state

NAMES = "eel fox"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished run, and twenty pictures of two new classes in four forms."""
    root = tmp_path_factory.mktemp("made")
    pictures.folder(root / "base", "ant bee cat dog")
    api.execute(pictures.asked(root / "base", root / "runs"), quiet=True)
    folder = pictures.folder(root / "week", NAMES)
    files = sorted(folder.rglob("*.png"))
    rows = [{"path": file.relative_to(folder).as_posix(), "label": file.parent.name} for file in files]
    write_csv(folder / "week.csv", rows)
    members = [m for i, f in enumerate(files) for m in sample(f"{i:02d}", f, cls=f.parent.name)]
    write_tar(root / "week.tar", members)
    return root


@pytest.fixture
def run(made, tmp_path):
    shutil.copytree(made / "runs" / "mine" / "seed_0", tmp_path / "run")
    return tmp_path / "run"


def update(run, data):
    return updating.update(run, data, quiet=True, gate=WIDE)


def test_a_table_is_learned_from_as_its_folder_and_shards_and_hub_data_sets_are_learned_from(made, run, tmp_path):
    found = {}
    for form in ("week", "week/week.csv", "week.tar"):
        copy = tmp_path / form.replace("/", "_")
        shutil.copytree(run, copy)
        found[form] = update(copy, made / form)
        assert found[form].current and found[form].classes == ("ant", "bee", "cat", "dog", "eel", "fox")
    shutil.rmtree(tmp_path / "week.tar" / "kept", ignore_errors=True)
    again = update(
        tmp_path / "week.tar", pictures.folder(tmp_path / "later", "gnu", kind=1)
    )  # replays bytes of the tar
    assert again.number == 4 and again.classes[-1] == "gnu"
    ours, theirs = (state(found[form].folder)["method"] for form in ("week/week.csv", "week"))
    assert_equal_state(ours, theirs, "another state")
    assert held_out(found["week.tar"]) == held_out(found["week/week.csv"]) == held_out(found["week"])


def held_out(version):
    """Digests of what was held out for the test."""
    return {digest for _, digest in read_json(version.folder / "manifest.json")["test"]}


def test_a_saved_hugging_face_data_set_is_learned_from(made, run, tmp_path):
    datasets = pytest.importorskip("datasets")
    files = sorted((made / "week").rglob("*.png"))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES.split())})
    columns = {"image": list(map(str, files)), "label": [NAMES.split().index(f.parent.name) for f in files]}
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(str(tmp_path / "saved"))
    found = update(run, tmp_path / "saved")
    assert found.classes[-2:] == ("eel", "fox")
    folder = Named.of("data", {"name": "image_folder", "root": str(made / "week"), "test_share": 0})
    plain = one_task.build(one_task.Config(data=folder))
    assert held_out(found) == {contents.digest(example) for example in plain.tasks[0].test}


def test_corrections_from_a_server_become_its_next_version(made, run):
    files = sorted((made / "week").rglob("*.png"))
    with serving(make(run, Settings(inbox=True, every=0.05))) as client:
        before = client.form(("file", files[0].read_bytes()), ("top", "9"))[1]
        for file in files:
            said = client.form(("file", file.read_bytes()), ("label", file.parent.name), path="/feedback")
        assert said == (200, {"kept": True, "inbox": 20})
        version = update(run, run / "inbox")
        assert version.about["task"]["name"] == "inbox"
        until = time.monotonic() + 20
        while client.ask("GET", "/health")[1]["version"] != 3 and time.monotonic() < until:
            time.sleep(0.02)
        after = client.form(("file", files[0].read_bytes()), ("top", "9"))[1]
    assert (before["version"], after["version"], versions.current(run)) == (2, 3, 3)
    assert len(before["predictions"][0]["answers"]) == 4 and len(after["predictions"][0]["answers"]) == 6
    (own,) = prediction.load(run).predict(files[0], top=9)
    assert [a["class"] for a in after["predictions"][0]["answers"]] == [a["class"] for a in own["answers"]]


def test_a_version_that_answers_otherwise_than_when_it_was_tested_is_not_served(made, run):
    version = update(run, made / "week")
    file = version.folder / "predictions" / "2_2.jsonl"
    told = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps({**row, "predicted": (row["predicted"] + 1) % 6}) + "\n" for row in told))
    with pytest.raises(
        CheckpointError, match=rf"run@3: {len(told)} of {len(told)} answers to kept test examples differ"
    ):
        make(run, Settings())
    versions.point(run, 2, by="a test")
    with serving(make(run, Settings(every=0.05))) as client:
        versions.point(run, 3, by="a test")
        until = time.monotonic() + 20
        while not client.ask("GET", "/health")[1]["refused"] and time.monotonic() < until:
            time.sleep(0.02)
        health = client.ask("GET", "/health")[1]
    assert health["version"] == 2 and health["refused"]["version"] == 3


def test_three_weeks_of_updates_are_served_the_while_one_refused_and_one_rolled_back(made, run, tmp_path):
    def answers(number):
        until = time.monotonic() + 20
        while client.ask("GET", "/health")[1]["version"] != number and time.monotonic() < until:
            time.sleep(0.02)
        status, body = client.form(("file", picture), ("top", "9"))
        return status, body["version"], len(body["predictions"][0]["answers"])

    picture = next((made / "base" / "ant").glob("*.png")).read_bytes()
    wrong = pictures.folder(tmp_path / "wrong", "ant bee cat dog", colors="dog cat bee ant", n=12, kind=5)
    with serving(make(run, Settings(every=0.05, shadow="candidate"))) as client:
        assert answers(2) == (200, 2, 4)
        assert update(run, made / "week").current and answers(3) == (200, 3, 6)
        refused = updating.update(run, wrong, quiet=True, gate={"retention": 5}, overrides=["method.epochs=20"])
        assert not refused.current and answers(3) == (200, 3, 6)
        assert update(run, pictures.folder(tmp_path / "later", "gnu", kind=1)).number == 5 and answers(5) == (200, 5, 7)
        promoting.rollback(run, reason="complaints")
        assert answers(3) == (200, 3, 6)
        assert client.ask("GET", "/health")[1]["refused"] is None
    rows = [(v.number, v.parent, v.current) for v in versions.listed(run)]
    assert rows == [(1, None, False), (2, 1, False), (3, 2, True), (4, 3, False), (5, 3, False)]
