"""UCIT, MLLM-DCL and MLLM-ACL from small trees in their repositories' layouts."""

import json

import pytest

from perdure import metrics
from perdure.errors import DataError, RecipeError
from perdure.streams import instruction
from perdure.streams.instruction import BENCHMARKS, Config

ANSWERS = {"ArxivQA": "A", "Fin": "B", "OCR": ["stop", "halt"]}


def tree(root, benchmark):
    """Two records a task; images are empty files, for nobody opens them."""
    for name, scorer, _ in BENCHMARKS[benchmark]:
        folder = root / name
        tested = root / f"{name}_test" if benchmark == "MLLM-ACL" else folder
        images = root / "datasets" if benchmark == "UCIT" else folder
        for place in (folder, tested, images):
            place.mkdir(parents=True, exist_ok=True)
        answer = ANSWERS.get(name, f"a {name}")
        train, test = [], []
        for i in range(2):
            for place in {images, tested if benchmark == "MLLM-ACL" else images}:
                (place / f"{name}_{i}.jpg").touch()
            shown = {"image": f"{name}_{i}.jpg"}
            said = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "it"}]
            train.append({"id": i, **shown, "conversations": said})
            test.append({"question_id": i + 1, **shown, "text": "What?", "answer": answer})
        if scorer == "caption":
            for row in test:
                del row["answer"]
            told = [{"image_id": i, "caption": f"a picture number {i}"} for i in (1, 2)]
            (folder / "val_coco_type_3000.json").write_text(json.dumps({"images": [], "annotations": told}))
        standard = name in ("ArxivQA", "CLEVR-Math", "Flickr30k")
        own = "train_brief_4w.json" if name == "Flickr30k" else "train_4w.json"
        (folder / (own if standard else "train.json")).write_text(json.dumps(train))
        (tested / ("test_3000.json" if benchmark == "UCIT" else "test.json")).write_text(json.dumps(test))


@pytest.mark.parametrize("benchmark", ["UCIT", "MLLM-DCL", "MLLM-ACL"])
def test_tasks_come_in_their_order_and_right_answers_score_full(tmp_path, benchmark):
    tree(tmp_path, benchmark)
    stream = instruction.build(Config(root=tmp_path, benchmark=benchmark))
    assert [task.name for task in stream] == [name for name, *_ in BENCHMARKS[benchmark]]
    assert stream.manifest["benchmark"] == benchmark
    for task in stream:
        assert len(task.train) == len(task.test) == 2
        query = stream.query(task, after=len(stream) - 1)
        target = task.test[0].target
        answers = [example.target["answer"] for example in task.test]
        if target["scorer"] == "caption":
            said = [references[0] for references in answers]
        else:
            said = [a.get("answer") or a["answers"][1] if isinstance(a, dict) else a for a in answers]
        records = metrics.records("instruct", said, list(task.test), query)
        score = metrics.compute("answer_accuracy", records)
        assert score > 100 if target["scorer"] == "caption" else score == 100
        assert metrics.compute("superficial", records) == 0
    assert all(example.inputs["image"].is_file() for task in stream for example in [*task.train, *task.test])


def test_what_is_missing_is_named_and_an_order_takes_some(tmp_path):
    tree(tmp_path, "UCIT")
    (tmp_path / "IconQA" / "test_3000.json").unlink()
    with pytest.raises(DataError) as fault:
        instruction.build(Config(root=tmp_path, benchmark="UCIT"))
    assert str(tmp_path / "IconQA" / "test.json") in str(fault.value)
    (tmp_path / "datasets" / "ArxivQA_0.jpg").unlink()
    with pytest.raises(DataError, match=r"'image' names ArxivQA_0\.jpg"):
        instruction.build(Config(root=tmp_path, benchmark="UCIT", order=("ArxivQA",)))
    stream = instruction.build(Config(root=tmp_path, benchmark="UCIT", order=("Flickr30k", "ImageNet-R")))
    assert [task.name for task in stream] == ["Flickr30k", "ImageNet-R"]
    with pytest.raises(RecipeError, match="unknown task `ScienceQA`"):
        instruction.build(Config(root=tmp_path, benchmark="UCIT", order=("ScienceQA",)))


def test_several_images_keep_their_places_in_a_question(tmp_path):
    tree(tmp_path, "MLLM-DCL")
    file = tmp_path / "Fin" / "test.json"
    shown = ["Fin_0.jpg", "Fin_1.jpg"]
    rows = [{"question_id": 1, "image": shown, "text": "Is <image> above <image>?", "answer": "A"}]
    file.write_text(json.dumps(rows))
    (task,) = instruction.build(Config(root=tmp_path, benchmark="MLLM-DCL", order=("Fin",)))
    assert task.test[0].inputs["text"] == "Is <image> above <image>?"
    assert [path.name for path in task.test[0].inputs["image"]] == shown
    file.write_text(json.dumps([{**rows[0], "image": [3]}]))
    with pytest.raises(DataError, match=r"'image' is \[3\], expected a path or a list of paths"):
        instruction.build(Config(root=tmp_path, benchmark="MLLM-DCL", order=("Fin",)))
