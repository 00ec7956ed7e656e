"""A run in use answers every kind of question: what `perdure.load` returns."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from perdure import prediction
from perdure.cli import main
from perdure.errors import DataError, RecipeError
from perdure.evaluate import predicting
from perdure.loading import ExampleBatches
from perdure.types import Example
from tests.av_files import clip
from tests.data.own_rows import sample, write_csv, write_tar
from tests.in_use import in_use, write_pictures


@pytest.fixture
def pictures(tmp_path):
    return write_pictures(tmp_path / "pictures")


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Two prepared clips of three seconds."""
    root = tmp_path_factory.mktemp("clips")
    for name in ("street", "yard"):
        clip(root, name, seconds=3)
    return root


def directly(loaded, examples):
    """The predictor's own output, without `Loaded`."""
    method, runtime = loaded.opened.method, loaded.opened.runtime
    collate = getattr(method, "collate", None)
    settings = {"batch_size": 8, "runtime": runtime, "stage": "x", "training": False, "collate": collate}
    (batch, _), *_ = ExampleBatches(examples, method.preprocess, **settings).epoch(0)
    with predicting(method, runtime):
        return method.predictor(loaded.opened.query)(batch)


def test_classes_come_with_probabilities_the_same_in_any_batch_and_for_any_form_of_image(tmp_path, pictures):
    loaded = in_use(tmp_path / "run", "finetune")
    rows = loaded.predict(pictures, top=2)
    scores = directly(loaded, [Example(id=str(p), inputs={"image": p}) for p in pictures])
    assert [row["answers"][0]["class"] for row in rows] == [loaded.classes[i] for i in scores.argmax(1).tolist()]
    assert rows[0]["answers"][0]["probability"] == pytest.approx(scores.softmax(1)[0].max().item(), abs=1e-4)
    assert (loaded.kind, loaded.version, loaded.device, len(loaded.tasks)) == ("classify", 1, "cpu", 2)
    same = [row["answers"] for row in rows]
    opened = [Image.open(p) for p in pictures]
    for given in (tmp_path / "pictures", opened, [np.array(i) for i in opened], [p.read_bytes() for p in pictures]):
        assert [row["answers"] for row in loaded.predict(given, top=2)] == same
    assert [row["answers"] for row in loaded.predict(pictures, top=2, batch_size=1)] == same


def test_rows_of_tables_and_shards_stand_for_files_with_or_without_classes(tmp_path, pictures):
    loaded = in_use(tmp_path / "run", "finetune")
    table = write_csv(tmp_path / "pictures" / "list.csv", [{"path": p.name} for p in pictures])
    shard = write_tar(tmp_path / "a.tar", [m for i, p in enumerate(pictures) for m in sample(f"k{i}", p)])
    expected = [row["answers"] for row in loaded.predict(pictures)]
    for source, names in ((table, ["0.png", "1.png", "2.png"]), (shard, ["k0", "k1", "k2"])):
        rows = loaded.predict(source)
        assert [row["file"] for row in rows] == names and [row["answers"] for row in rows] == expected


def test_captions_and_answers_to_questions(tmp_path, pictures):
    said = in_use(tmp_path / "captions", "clipcap").predict(pictures)
    assert [set(row) for row in said] == [{"file", "caption"}] * 3
    loaded = in_use(tmp_path / "questions", "sefe")
    rows = loaded.predict(pictures, ask="Color?")
    asked = [Example(id=str(p), inputs={"image": p, "text": "Color?"}) for p in pictures]
    assert [row["answer"] for row in rows] == directly(loaded, asked)
    assert rows[0]["question"] == "Color?" and rows[0]["file"] == str(pictures[0])
    mixed = loaded.predict([{"image": pictures[1], "text": "Color?"}, {"text": "Which?"}])
    assert mixed[0]["answer"] == rows[1]["answer"] and mixed[1]["file"] == "item 2"
    assert loaded.predict(ask="Which?")[0]["answer"] == mixed[1]["answer"]
    with pytest.raises(DataError, match=r"there is no question. Expected a question about each image"):
        loaded.predict(pictures)


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("localize-events", {"events"}),
        ("parse-video", {"audio", "visual"}),
        ("segment", {"size", "masks", "shares"}),
        ("answer", {"question", "answer", "answers"}),
        ("classify", {"answers"}),
    ],
)
def test_clips_are_answered_by_kind(tmp_path, clips, kind, keys):
    loaded = in_use(tmp_path / "run", "av_finetune", kind)
    rows = loaded.predict(clips, ask="is it Loud?" if kind == "answer" else "", task=kind)
    assert [row["file"] for row in rows] == ["street", "yard"] and all(set(row) == keys | {"file"} for row in rows)
    row = rows[0]
    if kind == "localize-events":
        assert row["events"][0]["from"] == 0 and row["events"][-1]["to"] == 3
        assert all(one["class"] in loaded.query(kind).candidates for one in row["events"])
    if kind == "segment":
        assert [sum(runs) for runs in row["masks"]] == [16 * 16] * 3
        on = [sum(runs[1::2]) / 256 for runs in row["masks"]]
        assert row["shares"] == pytest.approx(on, abs=1e-4)
    if kind == "answer":
        assert row["question"] == "is it loud?" and row["answer"] in ("yes", "no")


def test_a_task_is_asked_by_its_name_and_a_wrong_question_is_refused(tmp_path, clips):
    loaded = in_use(tmp_path / "run", "php")  # localize-events, then answer
    assert loaded.tasks == ("localize-events", "answer") and loaded.kind == "answer"
    assert "events" in loaded.predict(clips, task="localize-events")[0]
    with pytest.raises(DataError, match=r"the word 'lout' is none of its questions'. Did you mean 'loud'"):
        loaded.predict(clips, ask="is it lout")
    with pytest.raises(DataError, match="there is no question"):
        loaded.predict(clips)
    with pytest.raises(RecipeError, match=r"no task 'answr'. Expected one of localize-events, answer. Did you mean"):
        loaded.predict(clips, task="answr")
    with pytest.raises(DataError, match="there is no such file or folder"):
        loaded.predict(tmp_path / "nothing", task="localize-events")


@pytest.fixture
def gallery(tmp_path):
    return write_pictures(tmp_path / "gallery", 5)


def test_images_are_found_by_a_text_and_by_an_image_and_texts_by_an_image(tmp_path, gallery):
    loaded = in_use(tmp_path / "run", "rlcf_retrieval")
    (row,) = loaded.predict(ask="a dog", gallery=tmp_path / "gallery", top=5)
    assert {one["file"] for one in row["found"]} == {str(p) for p in gallery} and row["file"] == "a dog"
    assert [one["score"] for one in row["found"]] == sorted((one["score"] for one in row["found"]), reverse=True)
    (alike,) = loaded.predict(gallery[3], gallery=gallery, top=2)
    assert alike["found"][0]["file"] == str(gallery[3])
    (tmp_path / "words.txt").write_text("a cat\na dog\na photo\n")
    (said,) = loaded.predict(gallery[3], gallery=tmp_path / "words.txt", top=1)
    assert said["found"][0]["file"] in ("a cat", "a dog", "a photo")
    with pytest.raises(DataError, match="nothing to search in"):
        loaded.predict(ask="a dog", gallery=tmp_path / "run")
    with pytest.raises(DataError, match="nothing to search with"):
        loaded.predict(gallery=gallery)


def test_an_index_is_made_once_and_only_what_changed_is_encoded_again(tmp_path, gallery, monkeypatch):
    loaded, index = in_use(tmp_path / "run", "rlcf_retrieval"), tmp_path / "photos.index"
    encoded = []
    make = type(loaded.opened.method).index
    monkeypatch.setattr(
        type(loaded.opened.method),
        "index",
        lambda self, query: encoded.append(len(query.candidates)) or make(self, query),
    )
    plain = loaded.predict(ask="a dog", gallery=gallery)
    assert loaded.predict(ask="a dog", gallery=gallery, index=index) == plain and encoded == [5]
    again = in_use(tmp_path / "run", "rlcf_retrieval")
    assert again.predict(ask="a dog", gallery=gallery, index=index) == plain and encoded == [5]
    Image.new("RGB", (20, 20), (9, 200, 9)).save(gallery[2])
    changed = loaded.predict(ask="a dog", gallery=gallery, index=index)
    assert encoded == [5, 1] and changed == loaded.predict(ask="a dog", gallery=gallery) != plain
    (tmp_path / "run" / "recipe.yaml").write_text("another: model\n")
    loaded.predict(ask="a dog", gallery=gallery, index=index)
    assert encoded == [5, 1, 5]
    tuned = in_use(tmp_path / "tuned", "rlcf_retrieval", tune="gallery")
    with pytest.raises(DataError, match="has no features to keep"):
        tuned.predict(ask="a dog", gallery=gallery, index=tmp_path / "other.index")


def test_what_cannot_be_read_stops_or_is_left_out(tmp_path, pictures):
    loaded = in_use(tmp_path / "run", "finetune")
    pictures[1].write_bytes(b"no image")
    with pytest.raises(DataError, match=r"1.png: this is not an image"):
        loaded.predict(pictures)
    rows = loaded.predict(pictures, unreadable="skip")
    assert [row["file"] for row in rows] == [str(pictures[0]), str(pictures[2])]
    assert list(loaded.skipped) == [str(pictures[1])]


def test_a_query_of_a_run_that_is_not_over_asks_among_what_it_has_learned(tmp_path):
    loaded = in_use(tmp_path / "run", "finetune")
    half = prediction.Loaded(replace(loaded.opened, done=1), 1)
    assert half.tasks == loaded.tasks[:1]
    assert len(half.query(half.tasks[0]).candidates) < len(loaded.query(loaded.tasks[0]).candidates)


def perdure(capsys, *arguments):
    with pytest.raises(SystemExit) as leaving:
        main([str(argument) for argument in arguments])
    return leaving.value.code, *capsys.readouterr()


def test_the_command_asks_reads_questions_and_writes_masks(tmp_path, pictures, clips, capsys, monkeypatch):
    made = {"run": in_use(tmp_path / "run", "sefe"), "clips": in_use(tmp_path / "clips", "av_finetune", "segment")}
    monkeypatch.setattr(prediction, "load", lambda run, device: made[run.name])
    code, out, _ = perdure(capsys, "predict", "run", pictures[0], "--ask", "Color?", "--json")
    assert code == 0 and json.loads(out)["question"] == "Color?"
    monkeypatch.setattr("sys.stdin", io.StringIO("Color?\nWhich?\n\nnever\n"))
    code, typed, _ = perdure(capsys, "predict", "run", pictures[0], "--csv")
    assert code == 0 and [line.split(",")[1] for line in typed.splitlines()] == ["question", "Color?", "Which?"]
    code, out, _ = perdure(capsys, "predict", "clips", clips, "--masks", tmp_path / "masks")
    assert code == 0 and out.splitlines()[0].startswith("street  masked: ")
    written = np.array(Image.open(tmp_path / "masks" / "yard" / "00000003.png"))
    (_, row) = made["clips"].predict(clips)
    assert written.shape == (16, 16) and (written > 0).mean() == pytest.approx(row["shares"][2], abs=1e-4)
    assert perdure(capsys, "predict", "run")[0] == 2
    assert torch.is_grad_enabled()
