"""The embedded micro-llava: through the code path of real ones, with a tokenizer that says all that is asked."""

import numpy as np
import pytest

from perdure.data.microworld import Config, coin, disk, scenes, styles
from perdure.families.instruction.settings import Tuning
from perdure.models import llava
from perdure.models.clip.source import EMBEDDED
from perdure.models.llava.conversation import IGNORE, question_text
from perdure.streams import instruction
from perdure.types import Example

FOLDER = EMBEDDED / "micro-llava"


@pytest.fixture(scope="module")
def model():
    return llava.load(llava.Config(weights="micro-llava", dtype="float32"))


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    root = tmp_path_factory.mktemp("world") / "coin"
    disk.write("coin", root, Config(train_questions=8, test_questions=4))
    return instruction.build(instruction.Config(root=root))


def test_it_is_small_and_plain_transformers_load_it():
    from transformers import AutoTokenizer, LlavaForConditionalGeneration

    assert (FOLDER / "model.safetensors").stat().st_size < 4_000_000
    found = LlavaForConditionalGeneration.from_pretrained(FOLDER)
    assert found.config.vision_feature_layer == -2
    assert found.config.image_token_id == AutoTokenizer.from_pretrained(FOLDER).vocab_size


def test_every_question_and_answer_is_made_of_whole_words(model, stream):
    tokens = model.tokenizer
    for task in stream:
        for example in task.train:
            for message in example.inputs["conversations"]:
                ids = tokens(message["value"].replace("<image>", "")).input_ids
                assert not any(token.startswith("##") for token in tokens.convert_ids_to_tokens(ids))


def test_answers_are_learned_whole_and_alone(model, stream):
    for task in stream:
        for example in task.train:
            item = model.preprocess(example, True)
            learned = item["labels"][item["labels"] != IGNORE].tolist()
            assert model.tokenizer.decode(learned, skip_special_tokens=True).strip() == example.target
            assert learned[-1] == model.tokenizer.eos_token_id


def test_unknown_words_are_spelled_and_come_back(model):
    tokens = model.tokenizer
    assert tokens.decode(tokens("A zebra, at [0.25, 0.10]?").input_ids, skip_special_tokens=True) == (
        "A zebra, at [0.25, 0.10]?"
    )
    assert len(tokens(question_text("What is it?")).input_ids) == 10


def test_it_sees_what_a_picture_shows(model):
    world = scenes.of_anything(9, "test", np.arange(100), pairs=scenes.SEEN, shares=(1.0, 0.0, 0.0))
    pictures = styles.pictures(world)
    items, truth = [], []
    for i in range(len(world)):
        (thing,) = world.objects(i)
        question = f"Tell me the color of the {thing.shape}."
        items.append(model.preprocess(Example(id="", inputs={"image": pictures[i], "text": question}), False))
        truth.append(f"The {thing.shape} is {thing.color}.")
    said = model.answerer(Tuning(max_new_tokens=12, generate_batch=50))(model.collate(items))
    # Chance is one in eight.
    assert sum(a == b for a, b in zip(said, truth)) > 60


def test_boxes_of_the_tasks_are_numbers_that_it_has_as_tokens(model):
    known = model.tokenizer.get_vocab()
    assert all(f"{n / 100:.2f}" in known for n in range(101))
    assert model.tokenizer.decode(model.tokenizer(coin.box_text([0, 0.1, 0.25, 1])).input_ids[1:]) == (
        "[0.00, 0.10, 0.25, 1.00]"
    )
