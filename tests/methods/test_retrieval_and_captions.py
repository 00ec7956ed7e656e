"""Retrieval and captions on tiny models: the house's rules, learning, adapting, options, and bad input."""

from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from clip_methods import fresh_clip
from tiny_captioner import tiny_llm

from perdure import registry
from perdure.errors import DataError, RecipeError, WeightsError
from perdure.evaluate import Evaluation
from perdure.models import captioner
from perdure.nn.captioning.adapting import CaptionTuner, Sampling
from perdure.nn.clip_reward import ClipReward
from perdure.nn.test_time.prompt_tuning import Steps
from perdure.nn.test_time.retrieval import NamedImage
from perdure.run import run
from perdure.runtime import Runtime
from perdure.testing import check_method
from perdure.types import NO_EXAMPLES, Example, Examples, Query, Stream, Task

SIZES = {"prefix": 3, "clip_prefix": 2, "layers": 1, "heads": 2, "dim": 24, "seed": 0}
QUICK = {"most_words": 6, "beams": 2}
LEARNERS = {
    "clipcap": {**QUICK, "lr": 1e-2, "epochs": 1, "warmup": 1, "batch_size": 4},
    "capdec": {**QUICK, "lr": 1e-2, "epochs": 1, "warmup": 1, "batch_size": 4},
}


@cache
def loaded(**settings):
    with TemporaryDirectory() as folder:
        return captioner.load(captioner.Config(llm=str(tiny_llm(Path(folder))), **{**SIZES, **settings}))


def tiny(**settings):
    return deepcopy(loaded(**settings))


def reward():
    clip = fresh_clip()
    weight = clip.model.text_projection.weight
    with torch.no_grad():  # another model than the policy
        weight.add_(0.3 * weight.std() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    return clip


def picture(i):
    return np.random.default_rng(i).integers(0, 256, (16, 16, 3)).astype(np.uint8)


def images(first, count):
    words = ("cat", "dog", "photo", "a cat", "a dog")
    return Examples.of(
        [
            Example(
                id=f"{i}.png", inputs={"image": picture(i)}, target=[f"{words[i % 5]} {i}", f"a photo {words[i % 5]}"]
            )
            for i in range(first, first + count)
        ]
    )


def caption_stream(tasks=2):
    made = [
        Task(
            index=i,
            name=f"t{i}",
            kind="caption",
            train=images(10 * i, 3),
            test=images(100 + 10 * i, 3),
            metrics=("cider", "bleu_4", "rouge_l"),
        )
        for i in range(tasks)
    ]
    return Stream(name="captions", tasks=tuple(made), shared_candidates=False)


def retrieval_stream(tasks=("text", "image"), gallery=4):
    made = []
    for i, asked_with in enumerate(tasks):
        shown = images(10 * i, gallery)
        texts = tuple(e.target[0] for e in shown)
        if asked_with == "image":
            test, candidates = shown.relabel(lambda said, texts=texts: [texts.index(said[0])]), texts
        else:
            candidates = tuple(NamedImage(e.id, e.inputs["image"]) for e in shown)
            test = Examples.of([Example(id=f"q{j}", inputs={"text": text}, target=j) for j, text in enumerate(texts)])
        task = Task(index=i, name=asked_with, kind="retrieve", candidates=candidates, test=test, train=test[:1])
        made.append(replace(task, metrics=("recall_1", "recall_mean", "median_rank")))
    return Stream(name="retrieval", tasks=tuple(made), shared_candidates=False)


def retrieval(**settings):
    cls = registry.load("methods", "rlcf_retrieval")
    defaults = {"samples": 2, "steps": 2, "lr": 1e-2}
    return cls(cls.Config(**{**defaults, **settings}), policy=fresh_clip(), reward=reward())


def learner(name, **settings):
    cls = registry.load("methods", name)
    return cls(cls.Config(**{**LEARNERS[name], **settings}), clip=fresh_clip(), captioner=tiny())


def adapting(**settings):
    cls = registry.load("methods", "rlcf_caption")
    defaults = {**QUICK, "samples": 3, "steps": 2, "lr": 1e-2}
    made = tiny()
    return cls(cls.Config(**{**defaults, **settings}), clip=fresh_clip(), captioner=made, reward=reward())


def answers(method, stream, at=0, batch_size=4):
    """What the method says to the task's test examples, in order."""
    from perdure.loading import ExampleBatches

    task = stream.tasks[at]
    runtime = Runtime(device="cpu", quiet=True)
    method.learn(replace(task, train=NO_EXAMPLES), runtime)
    settings = {"batch_size": batch_size, "runtime": runtime, "stage": "test", "training": False}
    batches = ExampleBatches(task.test, method.preprocess, **settings)
    found = []
    with torch.set_grad_enabled(getattr(method, "adapts", False)):
        predict = method.predictor(stream.query(task, after=at))
        for batch, _ in batches.epoch(0):
            found += list(predict(batch))
    return found


# -- the rules of the house ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNERS)
def test_captioners_that_learn_keep_the_rules_of_the_house(name):
    assert len(check_method(lambda: learner(name), caption_stream())) >= 11


@pytest.mark.slow
def test_adapted_captions_keep_the_rules_of_the_house():
    check_method(adapting, caption_stream())


@pytest.mark.slow
def test_adapted_retrieval_keeps_the_rules_of_the_house():
    check_method(retrieval, retrieval_stream())


# -- retrieval ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize("settings", [{}, {"objective": "kd"}, {"tune": "gallery"}, {"sampling": "distribution"}])
def test_adapting_changes_scores_and_weights_come_back(at, settings):
    method, stream = retrieval(**settings), retrieval_stream()
    before = {n: t.clone() for n, t in method.policy.state_dict().items()}
    moved, still = answers(method, stream, at), answers(retrieval(steps=0), stream, at)
    assert (torch.stack(moved) - torch.stack(still)).abs().max() > 1e-4
    assert all(torch.equal(before[n], t) for n, t in method.policy.state_dict().items())


@pytest.mark.parametrize("settings", [{}, {"objective": "kd"}, {"sampling": "distribution"}, {"objective": "ensemble"}])
def test_queries_adapted_side_by_side_get_the_same_scores(settings):
    for at in (0, 1):
        alone = torch.stack(answers(retrieval(**settings, lr=1e-3), retrieval_stream(), at))
        together = torch.stack(answers(retrieval(**settings, lr=1e-3, at_once=3), retrieval_stream(), at))
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_answers_do_not_depend_on_what_came_before_unless_momentum_carries_it():
    stream = retrieval_stream()
    episodic = answers(retrieval(), stream)
    carried = retrieval(momentum=0.5, update_every=1)
    assert carried.carries_state
    slow = answers(carried, stream)
    torch.testing.assert_close(slow[0], episodic[0], rtol=1e-4, atol=1e-4)
    assert (slow[-1] - episodic[-1]).abs().max() > 1e-4


def test_the_ensemble_is_the_mean_cosine():
    stream = retrieval_stream()
    method = retrieval(objective="ensemble")
    found = torch.stack(answers(method, stream, 1))
    alone = torch.stack(answers(retrieval(steps=0), stream, 1)) / method.policy.scale
    other = registry.load("methods", "rlcf_retrieval")
    other = other(other.Config(steps=0, samples=1), policy=reward(), reward=reward())
    theirs = torch.stack(answers(other, stream, 1)) / method.policy.scale
    torch.testing.assert_close(found, (alone + theirs) / 2, rtol=1e-4, atol=1e-5)


def test_an_empty_gallery_and_more_samples_than_it_holds_are_refused():
    with pytest.raises(DataError, match="the gallery is empty"):
        retrieval().predictor(Query(kind="retrieve"))
    with pytest.raises(DataError, match=r"Set method\.samples=4"):
        answers(retrieval(samples=5), retrieval_stream())


def test_an_overlong_text_is_cut():
    method = retrieval()
    item = method.preprocess(Example(id="a", inputs={"text": "dog " * 200}), False)
    assert len(item["ids"]) == method.policy.context_length


# -- captions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LEARNERS)
def test_learning_lowers_the_loss_and_leaves_all_but_the_mapper_alone(name, tmp_path):
    method = learner(name, epochs=12)
    frozen = {n: t.clone() for n, t in method.captioner.llm.state_dict().items()}
    runtime = Runtime(device="cpu", quiet=True, out=tmp_path)
    run(method, caption_stream(1), evaluation=Evaluation(batch_size=2), runtime=runtime)
    import json

    losses = [e["loss"] for e in map(json.loads, (tmp_path / "events.jsonl").open()) if e["event"] == "step"]
    assert losses[-1] < 0.95 * losses[0]
    assert all(torch.equal(frozen[n], t) for n, t in method.captioner.llm.state_dict().items())
    file = method.captioner
    method.export(tmp_path / "mapper")
    again = tiny()
    from perdure.models.captioner.convert import load_mapper

    load_mapper(tmp_path / "mapper", again.mapper)
    assert all(torch.equal(t, file.mapper.state_dict()[n]) for n, t in again.mapper.state_dict().items())


def test_capdec_reads_no_image():
    method = learner("capdec")
    texts = Examples.of([Example(id=str(i), inputs={"text": "a cat"}, target=["a cat", "dog"]) for i in range(3)])
    method.learn(replace(caption_stream(1).tasks[0], train=texts), Runtime(device="cpu", quiet=True))


@pytest.mark.parametrize("decoding", ["official", "transformers", "nucleus"])
def test_every_decoding_says_the_same_for_any_batch(decoding):
    alone, together = (answers(learner("clipcap", decoding=decoding), caption_stream(), 0, n) for n in (1, 3))
    assert alone == together and all(isinstance(text, str) for text in alone)


@pytest.mark.parametrize("settings", [{}, {"nucleus": 0.9}, {"mask_padding": True}, {"amplify": True}])
def test_adapting_makes_what_the_reward_likes_more_probable_and_puts_the_mapper_back(settings):
    method = adapting(**settings)
    before = {n: t.clone() for n, t in method.captioner.state_dict().items()}
    assert len(answers(method, caption_stream())) == 3
    assert all(torch.equal(before[n], t) for n, t in method.captioner.state_dict().items())
    assert not any(p.requires_grad for p in method.captioner.llm.parameters())


def test_no_steps_are_the_captioner_as_it_is():
    stream = caption_stream()
    assert answers(adapting(steps=0), stream) == answers(learner("clipcap"), stream)


def test_a_long_caption_is_cut_to_the_context_and_counted():
    made = tiny()
    rows = made.words.ids(["a cat", "dog " * 100], most=made.room)
    assert len(rows[1]) == made.room == 64 - 3 and made.words.cut_captions == 1
    reward_model = ClipReward([fresh_clip()], [1.0], like=fresh_clip())
    steps = Steps(count=1, lr=1e-3, weight_decay=0.0)
    tuner = CaptionTuner(made, reward_model, steps, Sampling(samples=2, most=500, beams=2))
    unit = torch.nn.functional.normalize(torch.ones(1, 24), dim=-1)
    assert isinstance(tuner.caption(unit, [unit]), str)


# -- weights ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["transformer", "mlp"])
def test_published_checkpoints_are_read_by_name(tmp_path, kind):
    source, target = tiny(mapper=kind, seed=1), tiny(mapper=kind)
    state = {f"clip_project.{n}": t for n, t in source.mapper.state_dict().items()}
    state |= {f"llm.llm.{n}": t for n, t in source.llm.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 9}, tmp_path / "ckpt.pt")
    from perdure.models.captioner.convert import load_mapper

    load_mapper(tmp_path / "ckpt.pt", target.mapper, target.llm)
    assert all(torch.equal(t, target.mapper.state_dict()[n]) for n, t in source.mapper.state_dict().items())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"state_dict": {"clip_project.linear.weight": torch.zeros(2, 2)}}, "has shape"),
        ({"state_dict": {"clip_project.other": torch.zeros(2)}}, "another mapper"),
        ([1, 2], "no state dict"),
        (Path, "tensors only"),
    ],
)
def test_weights_of_another_kind_are_refused(tmp_path, content, said):
    torch.save(content, tmp_path / "bad.pt")
    from perdure.models.captioner.convert import load_mapper

    with pytest.raises(WeightsError, match=said):
        load_mapper(tmp_path / "bad.pt", tiny().mapper)


def test_a_clip_of_another_width_and_a_missing_language_model_are_refused(tmp_path):
    cls = registry.load("methods", "clipcap")
    with pytest.raises(RecipeError, match=r"Set models\.captioner\.dim=24"):
        cls(cls.Config(), clip=fresh_clip(), captioner=tiny(dim=32))
    with pytest.raises(WeightsError, match="language model"):
        captioner.load(captioner.Config(llm=str(tmp_path)))
