"""Tables of images: CSV, TSV, JSON lines, parquet; every convention and every pitfall that has a message."""

import json
from collections import Counter
from dataclasses import replace

import pytest

from perdure.data import table
from perdure.data.fitting import fitting
from perdure.data.table import Config, read
from perdure.errors import DataError
from perdure.images import open_image
from perdure.kept_examples import pack, unpack
from perdure.prepare.check_images import check_path
from perdure.settings.config import Named
from tests.data.own_rows import pictures, without, write_csv, write_jsonl


@pytest.fixture
def rows(tmp_path):
    return pictures(tmp_path)


def write(form, folder, rows):
    if form == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "list.parquet")
        return folder / "list.parquet"
    if form == "jsonl":
        return write_jsonl(folder / "list.jsonl", rows)
    separator, encoding = {"csv": (",", "utf-8-sig"), "semicolon": (";", "utf-8"), "tsv": ("\t", "utf-8")}[form]
    return write_csv(folder / f"list.{'tsv' if form == 'tsv' else 'csv'}", rows, separator=separator, encoding=encoding)


@pytest.mark.parametrize("form", ["csv", "semicolon", "tsv", "jsonl", "parquet"])
def test_every_form_gives_the_same_data_set(tmp_path, rows, form):
    path = write(form, tmp_path, rows)
    named = fitting(path)
    data = named.build()
    assert named.name == "table" and data.kind == "classify" and data.candidates == ("cat", "dog")
    assert data.facts["counts"] == {"train": 8, "validation": 2, "test": 2}
    assert data.train.targets == [0] * 4 + [1] * 4 and data.train[4].id == "images/dog0.png"
    assert open_image(data.test[1].inputs["image"]).getpixel((0, 0)) == (15, 0, 90)
    assert read(Config(path=write("csv", tmp_path, rows))).facts["fingerprint"] == data.facts["fingerprint"]
    assert (check_path(path).exit_code, check_path(path).images) == (0, 12)


def test_without_a_split_a_share_of_each_class_is_the_test_set(tmp_path, rows):
    config = Config(path=write("csv", tmp_path, without(rows, "split")), test_share=0.5)
    data = read(config)
    assert Counter(data.train.targets) == Counter(data.test.targets) == {0: 3, 1: 3}
    assert [e.id for e in read(config).test] == [e.id for e in data.test]
    assert [e.id for e in read(replace(config, split_seed=1)).test] != [e.id for e in data.test]
    assert len(read(replace(config, test_share=1)).test) == 12


def test_paths_start_at_the_table_or_at_root_and_may_be_absolute(tmp_path, rows):
    elsewhere = tmp_path / "lists"
    elsewhere.mkdir()
    path = write("csv", elsewhere, rows)
    with pytest.raises(DataError, match="there is no such image"):
        read(Config(path=path))
    assert len(read(Config(path=path, root=tmp_path)).train) == 8
    whole = [{**row, "file_name": str(tmp_path / row["file_name"])} for row in rows]
    assert len(read(Config(path=write("csv", elsewhere, whole))).train) == 8


def test_columns_may_be_called_otherwise(tmp_path, rows):
    renamed = [{"Bild": row["file_name"], "Art": row["label"]} for row in rows]
    path = write("csv", tmp_path, renamed)
    with pytest.raises(DataError, match=r"no column for the path: Bild, Art"):
        read(Config(path=path))
    assert read(Config(path=path, image_column="bild", label_column="Art")).candidates == ("cat", "dog")
    with pytest.raises(DataError, match=r"no column 'Klasse'. Expected one of Bild, Art"):
        read(Config(path=path, image_column="Bild", label_column="Klasse"))


def test_numbers_are_names_as_they_are_written_and_sorted_by_size(tmp_path):
    rows = without(pictures(tmp_path, ("010", "9", "007")), "split")
    assert read(Config(path=write("csv", tmp_path, rows))).candidates == ("007", "9", "010")
    assert "the classes are numbers: methods that read class names need `label_names`" in (
        check_path(write("csv", tmp_path, rows)).remarks
    )


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_label_names_stand_for_numbers(tmp_path, rows, form):
    numbered = [{**row, "label": int(row["label"] == "dog")} for row in rows]
    names = tmp_path / "names.txt"
    names.write_text("cat\ndog\n")
    data = read(Config(path=write(form, tmp_path, numbered), label_names=names))
    assert data.candidates == ("cat", "dog") and data.train.targets == [0] * 4 + [1] * 4
    names.write_text("cat\n")
    with pytest.raises(DataError, match="the label is '1'; expected a number below 1"):
        read(Config(path=write(form, tmp_path, numbered), label_names=names))


def test_classes_may_be_stated_and_an_unknown_one_is_named(tmp_path, rows):
    path = write("csv", tmp_path, rows)
    assert read(Config(path=path, classes=("dog", "cat"))).train.targets == [1] * 4 + [0] * 4
    with pytest.raises(DataError, match=r"line 8: 'dog' is no class of `classes` \(nearest: dogs\)"):
        read(Config(path=path, classes=("dogs", "cat")))


def test_captions_of_one_image_in_several_rows_or_in_a_list_are_joined(tmp_path, rows):
    said = [{"image": r["file_name"], "caption": f"a {r['label']}", "split": r["split"]} for r in rows]
    twice = [*said, *({**row, "caption": "once more"} for row in said)]
    listed = [{**row, "caption": [row["caption"], "once more"]} for row in said]
    first = read(Config(path=write("csv", tmp_path, twice)))
    assert first.kind == "caption" and first.train[0].target == ["a cat", "once more"] and len(first.train) == 8
    for form in ("jsonl", "parquet"):
        assert [e.target for e in read(Config(path=write(form, tmp_path, listed))).test] == first.test.targets


def test_questions_with_answers_are_conversations_and_tests(tmp_path, rows):
    said = [{"image": r["file_name"], "question": "What?", "answer": r["label"], "split": r["split"]} for r in rows]
    data = read(Config(path=write("csv", tmp_path, said)))
    assert data.kind == "instruct" and data.train[0].inputs["conversations"] == [
        {"from": "human", "value": "<image>\nWhat?"},
        {"from": "gpt", "value": "cat"},
    ]
    assert data.test[0].inputs["text"] == "What?" and data.test[0].target["answer"] == "cat"
    spoken = read(Config(path=write("csv", tmp_path, without(said, "image"))))
    assert "image" not in spoken.train[0].inputs


def test_a_parquet_may_hold_the_images_and_the_names_of_classes(tmp_path, rows):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    columns = {
        "image": [{"bytes": (tmp_path / row["file_name"]).read_bytes(), "path": None} for row in rows],
        "label": [int(row["label"] == "dog") for row in rows],
    }
    datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "data.parquet")
    data = read(Config(path=tmp_path / "data.parquet"))
    assert data.candidates == ("cat", "dog") and isinstance(data.train[0].inputs["image"], bytes)
    assert open_image(data.train[0].inputs["image"]).size == (6, 4)
    (again,) = unpack(pack([data.train[0]]))  # as a replay buffer keeps it
    assert again == data.train[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"label": ""}, "line 3: no label"),
        ({"file_name": ""}, "line 3: no image"),
        ({"file_name": "images/gone.png"}, "line 3: there is no such image"),
        ({"file_name": "https://x.org/a.png"}, "is an address; images are not fetched"),
        ({"split": "holdout"}, "the split is 'holdout'; expected train, validation or test"),
        ({"file_name": "images/cat0.png"}, r"images/cat0.png stands there twice \(first: .*line 2\)"),
        ({"file_name": "images/cat0.png", "label": "dog"}, "twice as 'dog' and as 'cat'"),
        ({"file_name": "images/cat0.png", "split": "test"}, "twice in train and in test"),
    ],
)
def test_a_faulty_row_is_named_by_its_line(tmp_path, rows, change, said):
    rows[1] |= change
    path = write("csv", tmp_path, rows)
    with pytest.raises(DataError, match=said):
        read(Config(path=path))


def test_all_faults_come_at_once_up_to_twenty(tmp_path, rows):
    faulty = [{**rows[0], "file_name": f"{i}.png"} for i in range(23)]
    with pytest.raises(DataError) as told:
        read(Config(path=write("csv", tmp_path, faulty)))
    assert str(told.value).count("no such image") == 20 and str(told.value).endswith("... and 3 more")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "", "it is empty"),
        ("a.csv", "path,label\n", "there are no rows"),
        ("a.csv", "path,label,label\nx,y,z\n", "the column 'label' stands there twice"),
        ("a.csv", "path,label\na.png,a cat, small\n", "more cells than the head has"),
        ("a.csv", "path,label\na.png\n", "fewer cells than the head has"),
        ("a.csv", 'path,label\n"a.png,cat\n', "is not CSV"),
        ("a.csv", "path\na.png\n", "has no column for the label"),
        ("a.jsonl", "[1]\n", "is no JSON object"),
        ("a.parquet", "PAR1", "is no parquet that can be read"),
        ("a.xlsx", "x", "there is no reader for it"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, name, content, said):
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=said):
        fitting(tmp_path / name).build()


def test_cells_of_other_types_are_text():
    assert [table.text(v) for v in (None, float("nan"), 3.0, 3.5, 7, " a ", True)] == [
        "", "", "3", "3.5", "7", "a", "True",
    ]  # fmt: skip


def test_an_imagefolder_with_metadata_is_its_table(tmp_path, rows):
    write_csv(tmp_path / "metadata.csv", rows)
    named = fitting(tmp_path)
    assert named.plain() == {"name": "table", "path": str(tmp_path / "metadata.csv")}
    assert json.dumps(named.build().facts["counts"]) == '{"train": 8, "validation": 2, "test": 2}'


def test_streams_of_classes_domains_captions_and_retrieval_are_made_of_tables(tmp_path, rows):
    classes = {"name": "table", "path": str(write("csv", tmp_path, rows))}
    said = [{"image": r["file_name"], "caption": f"a {r['label']}", "split": r["split"]} for r in rows]
    captions = {"name": "table", "path": str(write("jsonl", tmp_path, said))}
    made = {
        name: Named(place="streams", name=name, settings=settings).build()
        for name, settings in {
            "class_incremental": {"data": classes, "step": 1},
            "domain": {"domains": [classes, {**classes, "split_seed": 1}]},
            "captions": {"train": captions, "tests": [captions], "metrics": ["bleu_4"]},
            "retrieval": {"data": [captions]},
        }.items()
    }
    assert [task.candidates for task in made["class_incremental"]] == [("cat",), ("dog",)]
    assert [task.name for task in made["domain"]] == ["list-0", "list-1"]
    assert made["captions"].tasks[0].train[0].target == ["a cat"]
    assert [len(task.candidates) for task in made["retrieval"]] == [2, 2]
