"""Nine families of image-text-to-text models, tiny and random, through one path: tokens, batches, losses, answers."""

import pytest
import torch
from torch.nn import functional as F

from perdure.errors import MissingExtra, RecipeError, UnreadableExample, WeightsError
from perdure.models import vlm
from perdure.models.language_model import IGNORE
from perdure.models.vlm.batches import joined_along_first
from perdure.types import Example
from tests import tiny_vlm
from tests.tiny_vlm import TUNING, conversation, picture, question

END = {
    "llava_next": "</s>",
    "gemma3": "<end_of_turn>",
    "smolvlm": "<end_of_utterance>",
    "idefics3": "<end_of_utterance>",
}
SPACED = ("llava_next", "smolvlm", "idefics3")
"""Families whose template writes a space before an answer, which is part of it."""
_LOADED: dict[str, vlm.Vlm] = {}


def loaded(root, family, **settings):
    """One model of each family for the tests that change none; their own for others."""
    config = vlm.Config(weights=str(tiny_vlm.folder(root, family)), dtype="float32", **settings)
    if settings:
        return vlm.load(config)
    if family not in _LOADED:
        _LOADED[family] = vlm.load(config)
    return _LOADED[family]


def learned_text(model, item):
    return model.tokenizer.decode(item["labels"][item["labels"] != IGNORE].tolist())


@pytest.mark.parametrize("family", tiny_vlm.FAMILIES)
def test_answers_and_their_ends_are_learned_and_batches_equal_single_examples(vlm_root, family):
    model = loaded(vlm_root, family)
    items = [model.preprocess(e, True) for e in tiny_vlm.examples()]
    end, space = END.get(family, "<|im_end|>"), " " if family in SPACED else ""
    answers = [("red",), ("blue", "a round ball"), ("no",), ("four",)]
    assert [learned_text(model, item) for item in items] == ["".join(space + a + end for a in told) for told in answers]
    assert [item["has_image"] for item in items] == [True, True, True, False]

    with torch.no_grad():
        logits, labels, rows = model.answer_logits(model.collate(items))
        for i, item in enumerate(items):
            alone, same, _ = model.answer_logits(model.collate([item]))
            assert torch.equal(labels[rows == i], same)
            torch.testing.assert_close(logits[rows == i], alone, rtol=1e-4, atol=1e-5)
    assert len(model.linear_names()) == 14
    inside = ("model.language_model.", "model.text_model.")
    assert all(name.startswith(inside) for name in model.linear_names().values())


@pytest.mark.parametrize("family", tiny_vlm.FAMILIES)
def test_a_question_after_earlier_turns_is_read_as_in_training(vlm_root, family):
    model = loaded(vlm_root, family)
    turns = tiny_vlm.examples()[1]
    whole = model.preprocess(turns, True)
    *said, asked, _ = turns.inputs["conversations"]
    inputs = {"said": said, "text": asked["value"], "image": turns.inputs["image"]}
    item = model.preprocess(Example(id="q", inputs=inputs), False)
    learned = (whole["labels"] != IGNORE).nonzero()[:, 0]
    second = int(learned[(learned.diff() > 1).nonzero()[0, 0] + 1])
    assert torch.equal(item["input_ids"], whole["input_ids"][:second])
    first = model.preprocess(question("q", asked["value"], "", *turns.inputs["image"]), False)
    assert len(first["input_ids"]) < len(item["input_ids"])


@pytest.mark.parametrize("family", tiny_vlm.FAMILIES)
def test_answers_in_a_batch_are_those_of_each_question_alone(vlm_root, family):
    model = loaded(vlm_root, family)
    answer = model.answerer(TUNING)
    asked = [model.preprocess(e, False) for e in tiny_vlm.questions()]
    assert answer(model.collate(asked)) == [answer(model.collate([one]))[0] for one in asked]


@pytest.mark.parametrize("family", ["qwen2_5_vl", "smolvlm", "gemma3"])
def test_loss_is_that_of_the_whole_network_on_the_processors_own_tensors(vlm_root, family):
    """Nothing that the processor gives is lost on the way, nor moved."""
    model = loaded(vlm_root, family)
    said = [
        {
            "role": "user",
            "content": [{"type": "image", "image": picture(0, 40, 70)}, {"type": "text", "text": "Color?"}],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
    ]
    taken = model.processor.apply_chat_template(said, tokenize=True, return_dict=True, return_tensors="pt")
    item = model.preprocess(tiny_vlm.examples()[0], True)
    assert torch.equal(taken["input_ids"][0], item["input_ids"])
    with torch.no_grad():
        logits = model.model(**taken).logits[0, :-1]
        whole = F.cross_entropy(logits, item["labels"][1:], ignore_index=IGNORE)
        torch.testing.assert_close(model.answer_loss(model.collate([item])), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", tiny_vlm.FAMILIES)
def test_recomputing_activations_changes_no_gradient(vlm_root, family):
    model = loaded(vlm_root, family, tune="language+projector")

    def gradients(on):
        model.language_model.train()
        weight = model.language_model.layers[0].mlp.up_proj.weight.requires_grad_(True)
        projector = next(iter(model.projector_parameters().values())).requires_grad_(True)
        model.checkpoint_activations(on)
        batch = model.collate([model.preprocess(e, True) for e in tiny_vlm.examples()])
        found = torch.autograd.grad(model.answer_loss(batch), [weight, projector])
        model.checkpoint_activations(False)
        return found

    for one, other in zip(gradients(False), gradients(True)):
        assert one.abs().sum() > 0
        assert torch.equal(one, other)


def test_batch_without_images_gives_a_trained_projector_zero_gradients_not_none(vlm_root):
    model = loaded(vlm_root, "internvl", tune="language+projector")
    model.projector.requires_grad_(True)
    model.answer_loss(model.collate([model.preprocess(tiny_vlm.examples()[3], True)])).backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.projector_parameters().values())


def test_projector_is_frozen_by_default_and_the_vision_tower_is_adapted_if_asked_for(vlm_root):
    assert loaded(vlm_root, "qwen3_vl").projector_state() == {}
    model = loaded(vlm_root, "qwen3_vl", tune="language+projector+vision")
    assert set(model.projector_parts) == {"model.visual.merger", "model.visual.deepstack_merger_list"}
    vision = [name for name in model.linear_names() if name.startswith("visual.")]
    assert len(vision) == 8
    assert not any("merger" in name for name in vision)


def test_updates_are_on_the_named_layers_alone(vlm_root):
    model = loaded(vlm_root, "smolvlm", targets=("q_proj", "v_proj"))
    assert {name.rpartition(".")[2] for name in model.linear_names()} == {"q_proj", "v_proj"}
    assert len(model.linear_names()) == 4
    with pytest.raises(RecipeError, match=r"no layer is called 'query'.*q_proj, k_proj") as fault:
        loaded(vlm_root, "smolvlm", targets=("query",)).linear_names()
    assert fault.value.where == "models.llm.targets"


def test_an_image_stands_where_the_text_says_so_or_first(vlm_root):
    model = loaded(vlm_root, "qwen2_vl")
    shown = picture(0, 30, 30)
    marked = question("q", "Is <image> like <image>?", "", shown, picture(1, 60, 30))
    text = model.tokenizer.decode(model.preprocess(marked, False)["input_ids"]).replace("<|image_pad|>", "")
    assert "Is<|vision_start|><|vision_end|>like<|vision_start|><|vision_end|>?" in text
    plain = model.preprocess(question("q", "What?", "", shown), False)["input_ids"]
    assert "user\n<|vision_start|>" in model.tokenizer.decode(plain)
    with pytest.raises(UnreadableExample, match="1 marks <image> for 2 images"):
        model.preprocess(question("q", "<image>?", "", shown, shown), False)


def test_control_tokens_in_a_question_are_text_and_in_an_answer_refused(vlm_root):
    model = loaded(vlm_root, "qwen2_vl")
    asked = question("q", "What does <|im_end|> or <|image_pad|> mean?", "", picture(0, 30, 30))
    ids = model.preprocess(asked, False)["input_ids"].tolist()
    plain = model.preprocess(question("q", "What?", "", picture(0, 30, 30)), False)["input_ids"].tolist()
    for token in ("<|im_end|>", "<|image_pad|>"):
        i = model.tokenizer.convert_tokens_to_ids(token)
        assert ids.count(i) == plain.count(i)
    with pytest.raises(UnreadableExample, match=r"an answer holds '<\|im_end\|>', a control token"):
        model.preprocess(conversation("e", ("Say it.", "It is <|im_end|>.")), True)
    # its processor looks for images in the text and cannot escape
    with pytest.raises(UnreadableExample, match=r"a question holds '<image>'|a question holds '<end_of_utterance>'"):
        loaded(vlm_root, "idefics3").preprocess(question("q", "Why <end_of_utterance>?", ""), False)


def test_the_word_for_a_video_is_a_word_where_there_is_none(vlm_root):
    model = loaded(vlm_root, "qwen2_vl")
    ids = model.preprocess(question("q", "What does <video> do in HTML?", ""), False)["input_ids"]
    assert "What does <video> do in HTML?" in model.tokenizer.decode(ids)


def test_conversation_is_cut_behind_its_images_or_refused(vlm_root):
    model = loaded(vlm_root, "qwen2_vl", system="Be brief.")
    example = tiny_vlm.examples()[1]
    whole = model.preprocess(example, True)
    learned = (whole["labels"] != IGNORE).nonzero()[:, 0]
    assert "Be brief." in model.tokenizer.decode(whole["input_ids"])
    for length, count in [(len(whole["labels"]), len(learned)), (int(learned[0]) + 1, 1)]:
        model.max_length = length
        cut = model.preprocess(example, True)
        assert (len(cut["input_ids"]), int((cut["labels"] != IGNORE).sum())) == (length, count)
    model.max_length = int(learned[0])
    with pytest.raises(UnreadableExample, match="no answer lies within the first"):
        model.preprocess(example, True)
    model.max_length = 12
    with pytest.raises(UnreadableExample, match="images beyond the first 12"):
        model.preprocess(example, True)


def test_images_are_limited_in_pixels_or_in_tiles(vlm_root):
    large = question("q", "?", "", picture(0, 64, 64))

    def images_tokens(family, **limits):
        model = loaded(vlm_root, family, **limits)
        ids = model.preprocess(large, False)["input_ids"]
        return int(sum((ids == i).sum() for i in model.image_tokens))

    assert images_tokens("qwen2_vl") == 1024 // 64
    assert images_tokens("qwen2_vl", max_pixels=256) == 256 // 64
    for family in ("internvl", "llava_onevision", "smolvlm"):
        assert images_tokens(family, max_tiles=2 if family == "llava_onevision" else 1) < images_tokens(family)
    with pytest.raises(RecipeError, match="has no such limit"):
        loaded(vlm_root, "gemma3", max_tiles=2)
    with pytest.raises(RecipeError, match="has no such limit"):
        loaded(vlm_root, "internvl", max_pixels=2)


def test_template_that_changes_a_turn_when_others_follow_is_refused(vlm_root, tmp_path):
    file = tmp_path / "template.jinja"
    thoughts = tiny_vlm.QWEN.replace(
        "{{ '<|im_start|>assistant\n' }}{%", "{{ '<|im_start|>assistant\n<think></think>' }}{%"
    )
    file.write_text(thoughts)
    with pytest.raises(RecipeError, match="writes a turn otherwise when others follow it") as fault:
        loaded(vlm_root, "qwen2_vl", chat_template=file)
    assert fault.value.where == "models.llm.chat_template"

    switched = thoughts.replace("<think></think>' }}{%", "' + ('' if enable_thinking is false else '<think>') }}{%")
    file.write_text(switched)
    model = loaded(vlm_root, "qwen2_vl", chat_template=file)
    assert model.conversations.variables == {"enable_thinking": False}
    assert learned_text(model, model.preprocess(tiny_vlm.examples()[0], True)) == "red<|im_end|>"

    file.write_text(tiny_vlm.QWEN.replace("<|im_end|>", ""))
    with pytest.raises(RecipeError, match="writes no mark at the end of an answer"):
        loaded(vlm_root, "qwen2_vl", chat_template=file)


def test_learned_part_is_that_of_a_template_with_tags(vlm_root, tmp_path):
    """transformers marks what lies between tags; ours needs none."""
    tagged = tiny_vlm.QWEN.replace(
        "{% for c in m['content'] %}", "{% generation %}{% for c in m['content'] %}"
    ).replace("{{ '<|im_end|>\n' }}", "{{ '<|im_end|>' }}{% endgeneration %}{{ '\n' }}")
    model = loaded(vlm_root, "qwen2_vl")
    said = [
        {
            "role": "user",
            "content": [{"type": "image", "image": picture(0, 40, 70)}, {"type": "text", "text": "Color?"}],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
    ]
    # tags around every message: the mask of the last is compared
    told = model.processor.apply_chat_template(
        said,
        chat_template=tagged,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        return_assistant_tokens_mask=True,
    )
    item = model.preprocess(tiny_vlm.examples()[0], True)
    assert torch.equal(told["input_ids"][0], item["input_ids"])
    mask = torch.as_tensor(told["assistant_masks"])[0].bool()
    last = (item["labels"] != IGNORE).nonzero()[:, 0]
    assert mask[last].all()
    assert not mask[last[0] - 1]


def test_what_cannot_be_taken_is_said_in_a_sentence_before_weights(tmp_path, vlm_root, monkeypatch):
    import transformers as hf

    with pytest.raises(WeightsError, match="an image-text-to-text model cannot be read"):
        vlm.load(vlm.Config(weights=str(tmp_path / "nothing")))
    for config, why in [
        (hf.MllamaConfig(), "cross-attention masks"),
        (hf.PaliGemmaConfig(), "no chat model"),
        (hf.BertConfig(), "no image-text-to-text model of that type"),
    ]:
        config.save_pretrained(tmp_path / config.model_type)
        with pytest.raises(WeightsError, match=why):
            vlm.load(vlm.Config(weights=str(tmp_path / config.model_type)))
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in tiny_vlm.folder(vlm_root, "qwen2_vl").iterdir():
        if file.name not in ("chat_template.jinja", "model.safetensors"):
            (bare / file.name).write_bytes(file.read_bytes())
    with pytest.raises(WeightsError, match="there is no chat template"):
        vlm.load(vlm.Config(weights=str(bare)))

    def lacks(*_, **__):
        raise ImportError("Package `num2words` is required")

    monkeypatch.setattr(hf.AutoProcessor, "from_pretrained", lacks)
    with pytest.raises(MissingExtra, match="num2words"):
        vlm.load(vlm.Config(weights=str(tiny_vlm.folder(vlm_root, "smolvlm"))))


def test_tensors_of_unequal_shapes_are_joined_along_their_first_dimension():
    joined = joined_along_first([torch.ones(2, 1, 3), torch.ones(1, 2, 2)])
    assert joined.shape == (3, 2, 3)
    assert joined[0, 0].tolist() == [1, 1, 1]
    assert joined[2].tolist() == [[1, 1, 0], [1, 1, 0]]
    assert not joined[:2, 1].any()


def test_answers_stop_at_the_templates_end_mark_and_hold_no_images_token(vlm_root):
    model = loaded(vlm_root, "gemma3")
    assert set(model.ends) == {model.tokenizer.convert_tokens_to_ids(t) for t in ("<eos>", "<end_of_turn>")}
    qwen = loaded(vlm_root, "qwen2_vl")
    assert {*qwen.image_tokens, len(qwen.tokenizer), len(qwen.tokenizer) + 2} <= set(qwen.suppressed)


def test_first_message_of_the_assistant_is_left_out(vlm_root):
    model = loaded(vlm_root, "internvl")
    said = [{"from": "gpt", "value": "Hello."}, *tiny_vlm.examples()[3].inputs["conversations"]]
    item = model.preprocess(Example(id="e", inputs={"conversations": said}), True)
    assert learned_text(model, item) == "four<|im_end|>"


def test_weights_are_counted_from_their_files_heads_before_they_are_read(vlm_root, tmp_path):
    weights = str(tiny_vlm.folder(vlm_root, "gemma3"))
    model = loaded(vlm_root, "gemma3")
    whole = sum(p.numel() for p in model.model.parameters())
    assert vlm.Config(weights=weights, dtype="float32").bytes_needed() == 4 * whole
    assert vlm.Config(weights=weights).bytes_needed() == 2 * whole
    inside = sum(model.language_model.get_submodule(n).weight.numel() for n in model.linear_names())
    packed = vlm.Config(weights=weights, quantize="nf4").bytes_needed()
    assert packed == pytest.approx(2 * whole - 1.48 * inside, abs=1)
    assert vlm.Config(weights="nobody/nothing").bytes_needed() == 0
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    assert vlm.Config(weights=str(tmp_path)).bytes_needed() == 0
