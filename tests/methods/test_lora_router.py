"""One update a task, chosen by the question: routing, grouping, and answers that later tasks leave alone."""

import numpy as np
import torch

from perdure.families.instruction import seen_by_clip
from perdure.loop import run, seed_everything
from perdure.methods.lora_router import Config, LoraRouter, nearest
from perdure.models.language_model import images_of
from perdure.runtime import Runtime
from perdure.types import Example, Examples, Stream, Task
from tests.methods import clip_methods
from tests.tiny_instruction import TUNING, tiny_llava


def told_apart(count=3):
    """Tasks that differ in their images and words."""
    made = []
    for t in range(count):
        rows, asked = [], []
        for i in range(3):
            image = np.zeros((8, 8, 3), np.uint8)
            image[..., t] = 200 + 10 * i
            text = ("a a a?", "dog dog?", "photo of bird?")[t]
            said = [{"from": "human", "value": f"<image>\n{text}"}, {"from": "gpt", "value": "xyz"[t] * 3}]
            rows.append(Example(id=f"{t}/{i}", inputs={"conversations": said, "image": image}, target="xyz"[t] * 3))
            target = {"answer": "xyz"[t] * 3, "scorer": "exact", "form": "any", "official": False}
            asked.append(Example(id=f"{t}/t{i}", inputs={"text": text, "image": image}, target=target))
        asked.append(Example(id=f"{t}/text", inputs={"text": text}, target=target))
        metrics = ("answer_accuracy",)
        made.append(
            Task(
                index=t,
                name=f"task {t}",
                kind="instruct",
                train=Examples.of(rows),
                test=Examples.of(asked),
                metrics=metrics,
            )
        )
    return Stream(name="told apart", tasks=tuple(made), shared_candidates=False)


def test_tasks_that_differ_are_told_apart_and_keep_their_answers_to_the_bit(tmp_path):
    method = LoraRouter(Config(tuning=TUNING), llm=tiny_llava(), clip=clip_methods.fresh_clip())
    seed_everything(0)
    scores = run(method, told_apart(), runtime=Runtime(device="cpu", quiet=True, out=tmp_path))
    assert [row["values"]["task_accuracy"] for row in scores.rows] == [100.0] * 6
    own = {row["asked"]: row for row in scores.rows if row["after"] == row["asked"]}
    for t in range(3):
        first, last = ((tmp_path / "predictions" / f"{after}_{t}.jsonl").read_text() for after in (t, 2))
        assert first == last
        assert scores.rows[-3 + t]["values"] == own[t]["values"]

    asked = [e for task in told_apart() for e in task.test]
    batch = method.collate([method.preprocess(e, False) for e in asked])
    answer = method.predictor(None)
    together = answer(batch)
    assert together.tasks == [f"task {i // 4}" for i in range(12)]
    alone = [answer(method.collate([method.preprocess(e, False)])) for e in asked]
    assert together.predictions == [one.predictions[0] for one in alone]
    assert all(images_of(e.inputs) == [] for e in asked[3::4])


def test_nearest_task_by_hand():
    image = torch.tensor([[1.0, 0], [0, 1], [0, 1], [1, 0]])
    text = torch.tensor([[1.0, 0], [0, 1], [1, 0], [0.6, 0.8]])
    images, texts = torch.tensor([[1.0, 0], [0, 1], [0, 1]]), torch.tensor([[1.0, 0], [0, 1], [0, 1]])
    has_image = torch.tensor([True, True, False, True])
    found = nearest(image, text, images=images, texts=texts, has_image=has_image)
    assert found.tolist() == [0, 1, 0, 0]  # tasks 1 and 2 are alike: the earlier; without an image the text decides
    found = nearest(image, text, images=images, texts=texts, has_image=has_image, threshold=0.9)
    assert found.tolist() == [0, 1, 0, -1]  # the last is similar by (1 + 0.6) / 2


def test_a_threshold_that_no_task_reaches_asks_the_model_as_it_was():
    config = Config(tuning=TUNING, threshold=1.0)
    method = LoraRouter(config, llm=tiny_llava(), clip=clip_methods.fresh_clip())
    batch = method.collate([method.preprocess(e, False) for e in told_apart().tasks[0].test])
    before = method.predictor(None)(batch)
    runtime = Runtime(device="cpu", quiet=True)
    seed_everything(0)
    for task in told_apart(1):
        runtime.task = task.index
        method.learn(task, runtime)
    method.images, method.texts = method.images.flip(1), -method.texts
    after = method.predictor(None)(batch)
    assert after.predictions == before
    assert set(after.tasks) == {""}


def test_a_video_is_seen_by_its_middle_frame():
    clip = clip_methods.fresh_clip()
    frames = [np.full((8, 8, 3), 50 * i, np.uint8) for i in range(5)]
    for training, inputs in (
        (False, {"text": "<video>\na?"}),
        (True, {"conversations": [{"from": "human", "value": "<video>\na?"}]}),
    ):
        film, still = (
            seen_by_clip.seen(clip, Example(id="e", inputs=inputs | shown), training)
            for shown in ({"video": frames}, {"image": frames[2]})
        )
        assert all(torch.equal(film[name], still[name]) for name in film)
        assert film["route_image"].any()
        assert torch.equal(film["route_ids"], clip.tokenize(["a?"], truncate="keep-eot")[0])
