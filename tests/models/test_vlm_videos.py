"""Videos in conversations: families whose processors take them, and what is said where one does not."""

import pytest
import torch

from perdure.errors import RecipeError, UnreadableExample
from perdure.models import vlm
from perdure.models.language_model import IGNORE
from perdure.models.vlm import batches
from perdure.types import Example
from tests import tiny_vlm
from tests.tiny_instruction import tiny_llava
from tests.tiny_vlm import TUNING, picture

TAKE = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "llava_onevision", "smolvlm")
"""Families that take videos."""


def loaded(root, family, **settings):
    config = vlm.Config(weights=str(tiny_vlm.folder(root, family)), **{"dtype": "float32", "frames": 4, **settings})
    return vlm.load(config)


def frames(seed, count=6, height=24, width=40):
    return [picture(100 * seed + i, height, width) for i in range(count)]


def told(name, video, first="<video>\nWhat happens?"):
    said = [("human", first), ("gpt", "it turns"), ("human", "And then?"), ("gpt", "it falls")]
    return Example(
        id=name, inputs={"conversations": [{"from": w, "value": t} for w, t in said], "video": video}, target=""
    )


def asked(name, video):
    target = {"answer": "", "scorer": "exact", "form": "any", "official": False}
    return Example(id=name, inputs={"text": "What happens?", "video": video}, target=target)


@pytest.mark.parametrize("family", TAKE)
def test_videos_are_learned_from_and_answered_about_in_batches_as_one_by_one(vlm_root, family):
    model = loaded(vlm_root, family)
    rows = [told("long", frames(0)), told("short", frames(1, 3, 40, 24), first="What happens?"), *tiny_vlm.examples()]
    items = [model.preprocess(e, True) for e in rows]
    for item in items[:2]:
        text = model.tokenizer.decode(item["labels"][item["labels"] != IGNORE])
        assert (
            "".join(text.replace("<|im_end|>", "|").replace("<end_of_utterance>", "|").split(" ")) == "itturns|itfalls|"
        )
        assert item["media"]
    with torch.no_grad():
        logits, _, of = model.answer_logits(model.collate(items))
        for i, item in enumerate(items):
            torch.testing.assert_close(
                logits[of == i], model.answer_logits(model.collate([item]))[0], rtol=1e-4, atol=1e-5
            )
        moved = dict(items[0]["media"])
        pixels = next(name for name in moved if name.startswith("pixel_values"))
        moved[pixels] = moved[pixels].flip(0 if moved[pixels].shape[0] > 1 else 1)  # the same frames, backwards
        other = model.answer_logits(model.collate([{**items[0], "media": moved}]))[0]
        assert not torch.allclose(logits[of == 0], other, atol=1e-5)
    questions = [asked(str(i), frames(i)) for i in range(3)] + tiny_vlm.questions()
    made = [model.preprocess(e, False) for e in questions]
    answer = model.answerer(TUNING)
    assert answer(model.collate(made)) == [answer(model.collate([one]))[0] for one in made]


@pytest.mark.parametrize("family", [f for f in tiny_vlm.FAMILIES if f not in TAKE])
def test_families_without_videos_say_so(vlm_root, family):
    with pytest.raises(
        RecipeError, match=r"clip: .* takes no videos, by its processor or by its chat template"
    ) as fault:
        loaded(vlm_root, family).preprocess(told("clip", frames(0)), True)
    assert fault.value.where == "models.llm"


def test_llava_says_so_too():
    with pytest.raises(RecipeError, match=r"clip: LLaVA-1\.5 takes no videos"):
        tiny_llava().preprocess(asked("clip", frames(0)), False)


def test_processor_takes_videos_but_the_template_does_not(vlm_root, tmp_path):
    file = tmp_path / "template.jinja"
    file.write_text(tiny_vlm.QWEN.replace("<|vision_start|><|video_pad|><|vision_end|>", ""))
    with pytest.raises(RecipeError, match="takes no videos"):
        loaded(vlm_root, "qwen2_vl", chat_template=file).preprocess(asked("clip", frames(0)), False)


def test_images_and_a_video_or_several_marks_are_refused(vlm_root):
    model = loaded(vlm_root, "qwen2_vl")
    both = told("both", frames(0))
    both.inputs["image"] = picture(0, 20, 20)
    with pytest.raises(UnreadableExample, match="images and a video"):
        model.preprocess(both, True)
    with pytest.raises(UnreadableExample, match="2 marks <video> for a video"):
        model.preprocess(told("two", frames(0), first="<video><video>?"), True)


def test_times_of_frames_reach_the_network_unrounded(vlm_root):
    """They move positions in Qwen2.5-VL, and are written into the text in Qwen3-VL and SmolVLM."""
    slow, fast = (loaded(vlm_root, "qwen2_5_vl", frame_rate=rate, dtype="bfloat16") for rate in (0.3, 3.0))
    items = [m.preprocess(asked("q", frames(0)), False) for m in (slow, fast)]
    times = [batches.inputs(slow.collate([i]), dtype=torch.bfloat16)["second_per_grid_ts"] for i in items]
    assert [t.dtype for t in times] == [torch.float32] * 2
    torch.testing.assert_close(torch.cat(times), torch.tensor([2 * 6 / 4 / 0.3, 2 * 6 / 4 / 3.0]))
    text = loaded(vlm_root, "qwen3_vl", frame_rate=2.0)
    shown = text.tokenizer.decode(text.preprocess(asked("q", frames(0, 8)), False)["input_ids"])
    assert "<1.0 seconds>" in shown and "<3.0 seconds>" in shown


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl"])
def test_frames_and_pixels_of_a_video_are_limited(vlm_root, family):
    def count(**limits):
        model = loaded(vlm_root, family, **limits)
        ids = model.preprocess(asked("q", frames(0, 8, 64, 64)), False)["input_ids"]
        return int(sum((ids == i).sum() for i in model.image_tokens))

    assert count(max_pixels=256, frames=8) == 2 * count(max_pixels=256) == 2 * 2 * 256 // 64
    with pytest.raises(UnreadableExample, match=r"images beyond the first 12") as fault:
        model = loaded(vlm_root, family)
        model.max_length = 12
        model.preprocess(told("q", frames(0)), True)
    assert "frames" in str(fault.value)
