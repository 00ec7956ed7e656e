"""A tiny LLaVA: its parts, its batches, its loss and its answers."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_instruction import TUNING, byte_tokenizer, tiny_llava, tiny_parts, tiny_tasks

from perdure.errors import DataError, RecipeError, UnreadableExample, WeightsError
from perdure.families.instruction.tuning import conversation_batches, fit_settings
from perdure.models.llava import Config, Llava, load
from perdure.models.llava.assemble import PROJECTOR_NAMES, put_together
from perdure.models.llava.conversation import IGNORE, conversation_text, encode_conversation
from perdure.models.llava.images import MEAN
from perdure.runtime import Runtime
from perdure.training import lr_factor
from perdure.types import Example


@pytest.fixture(scope="module")
def llava():
    return tiny_llava()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A Llama, a CLIP and a projector on disk."""
    root = tmp_path_factory.mktemp("parts")
    decoder, tower = tiny_parts()
    decoder.save_pretrained(root / "llm")
    byte_tokenizer().save_pretrained(root / "llm")
    tower.save_pretrained(root / "clip")
    shapes = {"0.weight": (16, 8), "0.bias": (16,), "2.weight": (16, 16), "2.bias": (16,)}
    projector = {f"model.mm_projector.{n}": torch.randn(s) for n, s in shapes.items()}
    torch.save(projector, root / "mm_projector.bin")
    return root, projector


def conversation(question, answer, image=None):
    said = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return Example(id="e", inputs={"conversations": said, **({} if image is None else {"image": image})})


def batch_of(llava, examples, training=True):
    return llava.collate([llava.preprocess(e, training) for e in examples])


def test_parts_on_disk_become_a_llava_that_reads_its_projector(folders):
    root, projector = folders
    parts = {"llm": str(root / "llm"), "vision": str(root / "clip"), "dtype": "float32"}
    loaded = load(Config(projector=str(root / "mm_projector.bin"), **parts))
    for theirs, ours in PROJECTOR_NAMES.items():
        assert torch.equal(loaded.projector.state_dict()[ours], projector[theirs])
    assert (loaded.vocabulary, loaded.image_token, loaded.patches) == (260, 260, 4)
    batch = batch_of(loaded, [conversation("<image>\nWhat?", "red", np.zeros((3, 4, 3), np.uint8))])
    assert math.isfinite(loaded.answer_loss(batch).item())


def test_pixels_are_normalized_as_the_vision_tower_was_made(folders):
    root, _ = folders
    parts = {"llm": str(root / "llm"), "vision": str(root / "clip"), "dtype": "float32"}
    assert load(Config(**parts)).mean == MEAN
    file = root / "clip" / "preprocessor_config.json"
    file.write_text('{"image_mean": [0.5, 0.25, 0], "image_std": [0.5, 0.25, 1]}')
    black = {"conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "a"}]}
    black["image"] = np.zeros((4, 4, 3), np.uint8)
    try:
        pixels = load(Config(**parts)).preprocess(Example(id="e", inputs=black), True)["pixel_values"]
    finally:
        file.unlink()
    assert pixels.amin((1, 2)).tolist() == pixels.amax((1, 2)).tolist() == [-1, -1, 0]


def test_whole_llava_is_saved_and_loaded_by_transformers_and_by_us(folders, tmp_path):
    root, _ = folders
    first = load(Config(llm=str(root / "llm"), vision=str(root / "clip"), dtype="float32"))
    first.model.save_pretrained(tmp_path)
    first.tokenizer.save_pretrained(tmp_path)
    again = load(Config(weights=str(tmp_path), dtype="float32"))
    batch = batch_of(first, [conversation("<image>\nWhat?", "red", np.zeros((3, 4, 3), np.uint8))])
    with torch.no_grad():
        torch.testing.assert_close(again.answer_loss(batch), first.answer_loss(batch))


def test_wrong_parts_are_refused(folders, tmp_path):
    root, projector = folders
    parts = {"llm": str(root / "llm"), "vision": str(root / "clip"), "dtype": "float32"}
    with pytest.raises(RecipeError, match="give either `weights`"):
        load(Config())
    with pytest.raises(WeightsError, match="a language model cannot be read"):
        load(Config(llm=str(tmp_path), vision=str(root / "clip")))
    with pytest.raises(WeightsError, match="no such file"):
        load(Config(projector=str(tmp_path / "none.bin"), **parts))
    (tmp_path / "junk.bin").write_bytes(b"junk")
    with pytest.raises(WeightsError, match="a projector cannot be read"):
        load(Config(projector=str(tmp_path / "junk.bin"), **parts))
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.bin")
    with pytest.raises(WeightsError, match="are no projector"):
        load(Config(projector=str(tmp_path / "other.bin"), **parts))
    torch.save({n: t[..., :3] for n, t in projector.items()}, tmp_path / "small.bin")
    with pytest.raises(WeightsError, match="for these parts"):
        load(Config(projector=str(tmp_path / "small.bin"), **parts))


def test_every_linear_layer_but_the_head_is_adapted(llava):
    names = list(llava.linear_names().values())
    assert len(names) == 14 and not any("lm_head" in n or "vision" in n or "projector" in n for n in names)


def test_added_vocabulary_row_is_no_candidate(llava):
    batch = batch_of(llava, [conversation("What?", "red")])
    with torch.no_grad():
        before = llava.answer_loss(batch)
        llava.model.lm_head.weight[260] += 100
        assert torch.equal(llava.answer_loss(batch), before)
        texts = llava.answerer(TUNING)(batch_of(llava, [Example(id="q", inputs={"text": "What?"})], training=False))
        llava.model.lm_head.weight[260] -= 100
    assert isinstance(texts[0], str)


def test_only_the_answer_and_its_end_are_learned(llava):
    item = llava.preprocess(conversation("<image>\nWhat?", "red", np.zeros((3, 4, 3), np.uint8)), True)
    learned = item["labels"][item["labels"] != IGNORE]
    # The space before the answer is a token of its own in a byte tokenizer: it is learned with it.
    assert llava.tokenizer.decode(learned).strip() == "red</s>"
    assert (item["input_ids"] == llava.image_token).sum() == llava.patches


def test_rows_do_not_see_their_padding_or_their_mates(llava):
    image = np.full((6, 8, 3), 200, np.uint8)
    examples = [
        conversation("<image>\nWhat?", "red", image),
        conversation("A much longer question without an image?", "blue"),
    ]
    with torch.no_grad():
        alone = [llava.answer_loss(batch_of(llava, [e])) for e in examples]
        together = llava.answer_loss(batch_of(llava, examples), mean="conversation")
    torch.testing.assert_close(together, torch.stack(alone).mean())


def test_loss_is_that_of_the_whole_model(llava):
    batch = batch_of(llava, list(tiny_tasks().tasks[0].train))
    with torch.no_grad():
        out = llava.model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            pixel_values=batch["pixel_values"][batch["has_image"]],
        )
        logits = out.logits[:, :-1, :260].flatten(0, 1)
        expected = torch.nn.functional.cross_entropy(logits, batch["labels"][:, 1:].flatten())
        torch.testing.assert_close(llava.answer_loss(batch), expected)


def test_batch_without_images_gives_the_projector_zero_gradients_not_none(llava):
    llava.projector.requires_grad_(True)
    llava.answer_loss(batch_of(llava, [conversation("What?", "red")])).backward()
    grads = [p.grad for p in llava.projector.parameters()]
    llava.projector.requires_grad_(False)
    assert all(g is not None and not g.any() for g in grads)


def test_recomputing_activations_changes_no_gradient():
    def gradients(checkpointing):
        model = tiny_llava()
        model.language_model.train()
        model.projector.requires_grad_(True)
        model.checkpoint_activations(checkpointing)
        model.answer_loss(batch_of(model, list(tiny_tasks().tasks[0].train))).backward()
        return [p.grad for p in model.projector.parameters()]

    for plain, recomputed in zip(gradients(False), gradients(True)):
        torch.testing.assert_close(plain, recomputed)


@pytest.mark.filterwarnings("error::FutureWarning")
@pytest.mark.parametrize("size", [2, 5, 16])
def test_answers_are_those_of_one_question_at_a_time(llava, size):
    questions = [example for task in tiny_tasks(test=4) for example in task.test]
    questions += [Example(id=f"q{n}", inputs={"text": "Why " + "so " * n + "?"}) for n in (1, 20, 7)]
    batch = batch_of(llava, questions, training=False)
    settings = replace(TUNING, max_new_tokens=12)
    one = llava.answerer(replace(settings, generate_batch=1))(batch)
    assert llava.answerer(replace(settings, generate_batch=size))(batch) == one


def test_answers_are_those_of_transformers_alone(llava):
    """What all questions begin with is read once here, and keys and values lie in buffers: the same texts."""
    questions = [example for task in tiny_tasks(test=4) for example in task.test]
    found = llava.answerer(replace(TUNING, max_new_tokens=40, generate_batch=3))(batch_of(llava, questions, False))
    for question, text in zip(questions, found):
        one = batch_of(llava, [question], training=False)
        image = {"pixel_values": one["pixel_values"]} if one["has_image"][0] else {}
        asked = {n: one[n] for n in ("input_ids", "attention_mask")}
        out = llava.model.generate(**asked, **image, max_new_tokens=40, do_sample=False, suppress_tokens=[260])
        new = out[0, one["input_ids"].shape[1] :]
        assert llava.tokenizer.decode(new, skip_special_tokens=True).strip() == text


def test_question_that_begins_otherwise_is_answered_without_the_shared_start(llava):
    batch = batch_of(llava, [Example(id="q", inputs={"text": "What?"})], training=False)
    batch["input_ids"][0, 3] = 70
    text = llava.answerer(replace(TUNING, max_new_tokens=12))(batch)[0]
    asked = {n: batch[n] for n in ("input_ids", "attention_mask")}
    out = llava.model.generate(**asked, max_new_tokens=12, do_sample=False, suppress_tokens=[260])
    new = out[0, batch["input_ids"].shape[1] :]
    assert llava.tokenizer.decode(new, skip_special_tokens=True).strip() == text


def test_long_conversation_without_a_visible_answer_is_refused():
    model = tiny_llava()
    model.max_length = 100
    with pytest.raises(UnreadableExample, match="no answer lies within the first 100 tokens"):
        model.preprocess(conversation("What? " * 40, "red"), True)


@pytest.mark.parametrize("answer", ["", "no ASSISTANT: yes", "yes</s>no"])
def test_answer_that_the_template_cannot_hold_is_refused(llava, answer):
    with pytest.raises(UnreadableExample, match="the answers' tokens cannot be placed"):
        llava.preprocess(conversation("What?", answer), True)


def test_roles_must_alternate():
    with pytest.raises(DataError, match="message 1 is from 'human'"):
        conversation_text([{"from": "human", "value": "a"}, {"from": "human", "value": "b"}])


def test_mask_counts_each_round_of_a_conversation():
    said = [{"from": r, "value": v} for r, v in zip(("human", "gpt") * 2, ("a?", "b", "c?", "d"))]
    encoded = encode_conversation(said, tiny_llava()._encode, has_image=False)
    learned = [i for i in encoded.labels if i != IGNORE]
    assert not encoded.mismatch and learned.count(2) == 2 and len(learned) == 6


def test_rate_rises_over_three_percent_of_the_steps_and_falls_to_zero():
    settings = fit_settings(replace(TUNING, warmup=0.03), steps=100)
    factors = [lr_factor(settings, step, 100) for step in range(101)]
    assert factors[:4] == [0, 1 / 3, 2 / 3, 1] and factors[100] == pytest.approx(0)
    assert factors[51] == pytest.approx(0.5 * (1 + math.cos(math.pi * 48 / 97)))


def test_grouped_batches_hold_every_example_once_and_depend_on_the_epoch(llava):
    runtime = Runtime(device="cpu", quiet=True)
    runtime.task = 0
    train = tiny_tasks(train=20).tasks[0].train
    batches = conversation_batches(llava, train, TUNING, runtime=runtime, stage="tune")
    orders = []
    for epoch in range(2):
        rows = [batch["input_ids"] for batch, _ in batches.epoch(epoch)]
        assert sum(map(len, rows)) == 20 and len(rows) == len(batches)
        orders.append([tuple(r.shape) for r in rows])
    resumed = [batch["input_ids"] for batch, _ in batches.epoch(1, start=3)]
    whole = [batch["input_ids"] for batch, _ in batches.epoch(1)]
    assert all(torch.equal(a, b) for a, b in zip(resumed, whole[3:]))


def test_real_tiny_llama_speaks_through_a_llava(tmp_path):
    from pathlib import Path

    pack = Path("../shared/data/weights_stories260k")
    if not pack.is_dir():
        pytest.skip(f"the data pack weights_stories260k is not in {pack.parent}")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    decoder = AutoModelForCausalLM.from_pretrained(pack, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(pack)
    ids = tokenizer("Once upon a time", return_tensors="pt").input_ids
    with torch.no_grad():
        expected = decoder.generate(ids, max_new_tokens=12, do_sample=False)
    llava = Llava(put_together(decoder, tiny_parts()[1]), tokenizer)
    with torch.no_grad():
        found = llava.model.generate(ids, max_new_tokens=12, do_sample=False)
    assert torch.equal(found, expected) and "there was" in tokenizer.decode(found[0])
