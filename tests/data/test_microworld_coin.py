"""Microworld's eight instruction tasks: what is asked is true, the real reader reads it, and styles can be made."""

import base64
import json
import random
import re
import threading
import urllib.request
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from perdure.data.microworld import Config, coin, disk, questions, scene_chat, scenes
from perdure.data.microworld.scenes import Object
from perdure.errors import DataError
from perdure.metrics.answer_format import split_errors
from perdure.metrics.vqa import SCORERS
from perdure.models.llava.images import pad_to_square
from perdure.prepare.asd import diversify_file
from perdure.prepare.chat import Endpoint
from perdure.prepare.styles import COIN_KINDS
from perdure.streams import instruction

SMALL = Config(train_questions=40, test_questions=12)
TASKS = [task.name for task in questions.TASKS]


def thing(shape="star", color="red", **more):
    given = {"fill": "solid", "size": "small", "place": "top left", "x": 0.2, "y": 0.2, **more}
    return Object(shape=shape, color=color, **given)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("coin")
    disk.write("coin", root / "coin", SMALL)
    return root / "coin"


def records(tree, task, split):
    return json.loads((tree / "annotations" / task / f"{split}.json").read_text())


def test_the_real_stream_reads_all_eight_tasks_in_order(tree):
    stream = instruction.build(instruction.Config(root=tree))
    assert [task.name for task in stream] == [name for name, *_ in instruction.BENCHMARKS["CoIN"]]
    assert {len(task.train) for task in stream} == {40}
    assert {len(task.test) for task in stream} == {12}


def test_true_answers_score_one_hundred_and_have_their_tasks_form(tree):
    for task in instruction.build(instruction.Config(root=tree)):
        said = {r["question_id"]: r for r in records(tree, task.name, "test")}
        rows = []
        for example in task.test:
            record = said[example.id.rsplit("/", 1)[1]]
            text = record.get("answer", record.get("answer_bbox"))
            rows.append({"id": example.id, "prediction": text, "target": example.target["answer"], "question": ""})
        scorer = task.facts["scorer"]
        assert SCORERS[scorer](rows, False)["accuracy"] >= 90  # nine of ten annotators need not agree
        assert split_errors(rows, scorer)["format_compliance"] == 100


def test_the_same_seed_writes_the_same_bytes_and_another_seed_other_ones(tree, tmp_path):
    disk.write("coin", tmp_path / "again", SMALL)
    disk.write("coin", tmp_path / "other", replace(SMALL, seed=1))
    names = sorted(p.relative_to(tree) for p in tree.rglob("*") if p.is_file() and "x20" not in p.name)
    names = [n for n in names if (tmp_path / "again" / n).is_file()]
    assert len(names) > 300
    assert all((tree / n).read_bytes() == (tmp_path / "again" / n).read_bytes() for n in names)
    train = "annotations/GQA/train.json"
    assert (tree / train).read_bytes() != (tmp_path / "other" / train).read_bytes()


def test_training_and_test_ask_about_different_pictures(tree):
    for task in TASKS:
        own = [{r.get("image") for r in records(tree, task, split)} - {None} for split in ("train", "test")]
        assert not own[0] & own[1]


def test_a_box_surrounds_its_object_in_the_padded_square(tree):
    shown = json.loads((tree / coin.SCENES_FILE).read_text())
    cut = 0
    for record in records(tree, "Grounding", "train"):
        with Image.open(tree / record["image"]) as image:
            width, height = image.size
            square = np.asarray(pad_to_square(image.convert("RGB"))).astype(int)
        assert shown[record["image"]]["size"] == [width, height]
        cut += width != height
        seen = shown[record["image"]]["objects"]
        box = next(o["box"] for o in seen if coin.box_text(o["box"]) == record["conversations"][1]["value"])
        x1, y1, x2, y2 = (round(v * 32) for v in box)
        # Objects are brighter than the ground; the padding is gray all over.
        bright = square.max(axis=2) > 90
        padded = (square == (122, 116, 104)).all(axis=2)
        inside = np.zeros_like(bright)
        for other in seen:
            a, b, c, d = (round(v * 32) for v in other["box"])
            inside[b:d, a:c] = True
        assert bright[y1:y2, x1:x2].sum() > 5
        assert (bright & ~inside & ~padded).sum() <= 12
    assert cut > 0


def test_a_name_fits_one_object_only():
    red, blue = thing(), thing(color="blue")
    assert questions.named(red, [red, thing("ring")]) == "the star"
    assert questions.named(red, [red, blue]) == "the red star"
    assert questions.named(red, [red, replace(blue, fill="dotted")], "color") == "the solid star"


def test_a_title_goes_from_left_to_right():
    pair = [thing("ring", "blue", x=0.8), thing()]
    assert questions.title(pair) == "The Red Star and the Blue Ring"


def test_relations_that_are_asserted_hold():
    draw = random.Random(0)
    pair = [thing(), thing("ring", "blue", x=0.8)]
    asked = [questions.gqa(pair, draw) for _ in range(200)]
    said = {q.text.split("\n")[0]: q.answer for q in asked}
    assert said["What is left of the ring?"] == "star"
    assert said["Is the star right of the ring?"] == "no"
    assert said["Is the ring right of the star?"] == "yes"


def test_a_letter_stands_before_the_right_option():
    draw = random.Random(1)
    for _ in range(50):
        asked = questions.science_qa([thing()], draw)
        options = dict(re.findall(r"^([A-D])\. (.*)$", asked.text, re.M))
        if "Which shape" in asked.text:
            assert options[asked.answer] == "star"
        if "Which color" in asked.text:
            assert options[asked.answer] == "red"


def test_textvqa_has_ten_answers_that_mostly_agree():
    draw = random.Random(2)
    asked = questions.text_vqa([thing()], draw)
    assert len(asked.facts["answers"]) == 10
    assert asked.facts["answers"].count("star") >= 7
    assert "star" in asked.text.split("Reference OCR token: ")[1].split("\n")[0].split(", ")


def test_scene_chat_lets_the_real_preparation_write_every_style(tree, tmp_path):
    server = scene_chat.serve(tree)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    chat = Endpoint(base_url=f"http://127.0.0.1:{server.server_port}/v1", name="microworld", patience=0.0)
    try:
        for task in TASKS:
            source = tree / "annotations" / task / "train.json"
            out = tmp_path / task / "train_x20.json"
            made = diversify_file(source, out, task=task, kind=COIN_KINDS[task], share=20, chat=chat, images=tree)
            assert made["failed"] == []
            assert sorted(made["styles"].values()) == [2, 2, 2, 2, 32]
    finally:
        server.shutdown()
        server.server_close()


def test_wrong_answers_of_words_that_are_listed_twice_are_three():
    asked = "Which word names the object?\nReference OCR token: diamond, ring, diamond, heart\nAnswer."
    assert len(set(scene_chat.wrong_answers(asked, "ring", None, random.Random(0))) - {"ring"}) == 3


def test_scene_chat_knows_a_picture_by_its_bytes(tree):
    record = next(r for r in records(tree, "ImageNet", "train"))
    answer = record["conversations"][1]["value"]
    chat = scene_chat.SceneChat(tree)
    user = f'category: {answer}\n\nin about 20 words: {{"gt_category": "...", "explanation": "..."}}'
    said = json.loads(chat.reply(user, (tree / record["image"]).read_bytes()))
    assert answer.split()[0] in said["explanation"].split(", so")[0]
    assert "All that is needed" in json.loads(chat.reply(user, None))["explanation"]


def test_scene_chat_answers_over_http_as_chat_endpoints_do(tree):
    server = scene_chat.serve(tree)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    image = base64.b64encode((tree / records(tree, "VQAv2", "train")[0]["image"]).read_bytes()).decode()
    text = 'Question: What color?\nCorrect answer: red\n\nReply: {"distractor_options": ["...", "...", "..."]}'
    content = [
        {"type": "text", "text": text},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}},
    ]
    body = json.dumps({"messages": [{"role": "user", "content": content}]}).encode()
    try:
        with urllib.request.urlopen(
            urllib.request.Request(f"http://127.0.0.1:{server.server_port}/v1/chat/completions", body)
        ) as reply:
            said = json.loads(json.loads(reply.read())["choices"][0]["message"]["content"])
    finally:
        server.shutdown()
        server.server_close()
    assert len(set(said["distractor_options"])) == 3
    assert set(said["distractor_options"]) <= set(scenes.COLORS) - {"red"}


def test_a_folder_that_is_no_microworld_tree_is_refused(tmp_path):
    with pytest.raises(DataError, match="perdure data make microworld --as coin"):
        scene_chat.SceneChat(tmp_path)
