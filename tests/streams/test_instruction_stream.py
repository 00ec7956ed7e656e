"""Instruction tasks in order: CoIN's eight, and one's own files."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from perdure.errors import DataError, RecipeError
from perdure.prepare import asd
from perdure.settings.config import Named
from perdure.streams import instruction
from perdure.streams.instruction import Config, TaskFiles

PACK = Path("../shared/data/coin_mini")


def task_files(root, name, *, train=4, test=2, file="train.json", answer="A"):
    folder = root / "annotations" / name
    folder.mkdir(parents=True, exist_ok=True)
    box = name == "Grounding"
    told = "[0.1, 0.1, 0.5, 0.5]" if box else answer
    said = [{"from": "human", "value": f"{name}?"}, {"from": "gpt", "value": told}]
    (folder / file).write_text(json.dumps([{"id": i, "conversations": said} for i in range(train)]))
    target = {"answer_bbox": told, "size": [4, 4]} if box else {"answer": answer}
    questions = [{"question_id": i, "text": f"{name} {i}?", **target} for i in range(test)]
    (folder / "test.json").write_text(json.dumps(questions))


@pytest.fixture
def coin(tmp_path):
    """All eight tasks, each with the few files that the reader wants."""
    for name, *_ in instruction.BENCHMARKS["CoIN"]:
        task_files(tmp_path, name)
    (tmp_path / "TextVQA").mkdir()
    (tmp_path / "TextVQA" / "TextVQA_0.5.1_val.json").write_text(
        json.dumps({"data": [{"question_id": i, "answers": ["A"] * 10} for i in range(2)]})
    )
    return tmp_path


def test_coin_has_its_eight_tasks_in_order_each_with_its_scorer(coin):
    stream = instruction.build(Config(root=coin))
    assert [task.name for task in stream] == [name for name, *_ in instruction.BENCHMARKS["CoIN"]]
    assert [task.test[0].target["scorer"] for task in stream] == [
        scorer for _, scorer, _ in instruction.BENCHMARKS["CoIN"]
    ]
    assert stream.tasks[1].test[0].target["answer"] == ["A"] * 10
    assert all(stream.query(t, after=7).task is None and t.kind == "instruct" for t in stream)


def test_plan_of_coin_needs_no_torch(coin):
    code = "import sys; from perdure.cli import main\ntry: main()\nfinally: print('torch' in sys.modules)"
    command = [sys.executable, "-c", code, "check", "sefe/coin_reglora", f"stream.root={coin}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "OCRVQA" in done.stdout and done.stdout.endswith("False\n")


def test_textvqa_without_its_reference_answers_is_refused(tmp_path):
    task_files(tmp_path, "TextVQA")
    with pytest.raises(DataError, match=r"TextVQA_0\.5\.1_val\.json: TextVQA's reference answers are missing"):
        instruction.build(Config(root=tmp_path, order=("TextVQA",)))


def test_order_takes_a_part_and_unknown_names_are_refused(tmp_path):
    for name in ("VizWiz", "OCRVQA"):
        task_files(tmp_path, name)
    stream = instruction.build(Config(root=tmp_path, order=("OCRVQA", "VizWiz")))
    assert [task.name for task in stream] == ["OCRVQA", "VizWiz"]
    with pytest.raises(RecipeError, match="unknown task `OCR`; expected one of"):
        instruction.build(Config(root=tmp_path, order=("OCR",)))


def test_training_file_may_be_a_diversified_one(tmp_path):
    task_files(tmp_path, "VizWiz")
    task_files(tmp_path, "VizWiz", file="train_x20.json", train=3)
    assert len(instruction.build(Config(root=tmp_path, order=("VizWiz",), train="train_x20.json")).tasks[0].train) == 3


def test_own_tasks_and_a_limit_that_depends_on_the_seed_alone(tmp_path):
    task_files(tmp_path, "mine", train=30, test=10)
    config = Config(root=tmp_path, tasks=(TaskFiles(name="mine"),), train_per_task=5, test_per_task=3)
    first, again = instruction.build(config), instruction.build(config)
    ids = [e.id for e in first.tasks[0].train]
    assert len(ids) == 5 and ids == [e.id for e in again.tasks[0].train] and len(first.tasks[0].test) == 3
    other = instruction.build(Config(root=tmp_path, tasks=config.tasks, train_per_task=5, seed=1))
    assert ids != [e.id for e in other.tasks[0].train]


def told(name, image, question, answer="A"):
    shown = {} if image is None else {"image": image}
    mark = "" if image is None else "<image>\n"
    said = [{"from": "human", "value": mark + question}, {"from": "gpt", "value": answer}]
    return {**({} if name is None else {"id": name}), **shown, "conversations": said}


def chosen(records, root, limit):
    task_files(root, "mine")
    (root / "annotations" / "mine" / "train.json").write_text(json.dumps(records))
    config = Config(root=root, tasks=(TaskFiles(name="mine"),), train_per_task=limit, check_images=False)
    return instruction.build(config).tasks[0].train


@pytest.mark.parametrize("repeated", ["nothing", "ids", "ids and images", "all"])
def test_a_limit_chooses_the_same_records_whatever_their_place_and_style(tmp_path, repeated):
    same = repeated != "nothing"
    records = [
        told(
            None if same else f"r{i}",
            f"{i if repeated in ('nothing', 'ids') else 0}.png",
            "What is it?" if repeated == "all" else f"What is {i}?",
        )
        for i in range(40)
    ]
    # as `prepare asd` does: shuffled, and every second one asked for in another style
    other = [
        told(r.get("id"), r["image"], r["conversations"][0]["value"][8:] + "\nIs the answer A?", "Yes") if i % 2 else r
        for i, r in enumerate(records)
    ]
    other = other[::-1]

    def what(examples):
        return sorted((e.inputs["image"].name, e.inputs["conversations"][0]["value"].split("\n")[1]) for e in examples)

    first, again = chosen(records, tmp_path, 10), chosen(other, tmp_path, 10)
    assert len(first) == 10 and len({e.id for e in first}) == 10
    assert what(first) == what(again)
    assert sorted(e.id for e in first) == sorted(e.id for e in again)
    assert any("Is the answer" in e.inputs["conversations"][0]["value"] for e in again)


def test_the_real_asd_file_brings_the_same_records_as_its_source(tmp_path):
    """By rules alone: boxes become choices and yes/no questions, and the file is shuffled."""
    records = [
        told(f"b{i}", f"{i}.png", f"Where is {i}?", f"[0.{i % 4}0, 0.10, 0.{i % 4 + 5}0, 0.50]") for i in range(80)
    ]
    made = asd.diversify(records, task="mine", kind="box", share=40).records
    first, again = chosen(records, tmp_path, 20), chosen(made, tmp_path, 20)
    assert sorted(e.id for e in first) == sorted(e.id for e in again)
    assert [e.id for e in first] != [e.id for e in again]
    assert 0 < sum(e.inputs["conversations"] not in [f.inputs["conversations"] for f in first] for e in again) < 20


def test_multitask_puts_all_training_data_first(tmp_path):
    for name in ("VizWiz", "OCRVQA"):
        task_files(tmp_path, name)
    stream = instruction.build(Config(root=tmp_path, order=("VizWiz", "OCRVQA"), multitask=True))
    assert [len(t.train) for t in stream] == [8, 0] and [len(t.test) for t in stream] == [2, 2]


def test_the_real_small_coin_is_read():
    if not PACK.is_dir():
        pytest.skip(f"the data pack coin_mini is not in {PACK.parent}")
    scorers = {"ScienceQA": "scienceqa", "ImageNet": "imagenet", "Grounding": "grounding", "VQA": "vqav2"}
    tasks = tuple(
        TaskFiles(name=n, train=PACK / n / "train.json", test=PACK / n / "test.json", scorer=s)
        for n, s in scorers.items()
    )
    stream = instruction.build(Config(root=PACK, tasks=tasks, check_images=False, on_fault="skip"))
    assert [len(t.train) for t in stream] == [1200, 2000, 179, 1293]
    assert [len(t.test) for t in stream] == [600, 1000, 66, 412 - 5]  # five question ids occur twice


def test_a_table_of_questions_is_a_task_beside_files(tmp_path):
    task_files(tmp_path, "First")
    rows = [("what?", "a cat", "train"), ("who?", "a dog", "train"), ("where?", "there", "test")]
    lines = ["question,answer,split", *map(",".join, rows)]
    (tmp_path / "asked.csv").write_text("\n".join(lines) + "\n")
    named = Named(place="data", name="table", settings={"path": str(tmp_path / "asked.csv")})
    stream = instruction.build(
        Config(root=tmp_path, tasks=(TaskFiles(name="First"), TaskFiles(name="own", data=named)))
    )
    own = stream.tasks[1]
    assert (own.name, len(own.train), own.test[0].inputs["text"]) == ("own", 2, "where?")
    assert stream.manifest["tasks"][1]["fingerprint"]
    (tmp_path / "said.csv").write_text("path,label\nsaid.csv,x\nasked.csv,x\n")
    wrong = Named(place="data", name="table", settings={"path": str(tmp_path / "said.csv")})
    with pytest.raises(RecipeError, match=r"task own: table is of kind classify. Expected kind instruct"):
        instruction.build(Config(root=tmp_path, tasks=(TaskFiles(name="own", data=wrong),)))
