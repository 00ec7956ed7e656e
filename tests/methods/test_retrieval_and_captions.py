"""Retrieval and captions on tiny models: learning, adapting, options, and bad input."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from clip_methods import fresh_clip, other_clip
from tiny_captioner import caption_stream, captioner, retrieval_stream

from perdure.errors import DataError, RecipeError, WeightsError
from perdure.evaluate import Evaluation
from perdure.families.captioning.adapting import CaptionTuner, Sampling
from perdure.families.clip.clipscore import ClipReward
from perdure.families.test_time.prompt_tuning import Steps
from perdure.loop import run
from perdure.models.captioner import Config, load
from perdure.runtime import Runtime
from perdure.settings import registry
from perdure.types import NO_EXAMPLES, Example, Examples, Query
from tests.every_method import METHODS

LEARNERS = ("clipcap", "capdec")


def retrieval(**settings):
    return METHODS["rlcf_retrieval"].make(**settings)


def learner(name, **settings):
    return METHODS[name].make(**settings)


def adapting(**settings):
    return METHODS["rlcf_caption"].make(**settings)


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
    other = other(other.Config(steps=0, samples=1), policy=other_clip(), reward=other_clip())
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
    again = captioner()
    from perdure.models.captioner.convert import load_mapper

    load_mapper(tmp_path / "mapper", again.mapper)
    assert all(torch.equal(t, file.mapper.state_dict()[n]) for n, t in again.mapper.state_dict().items())


def test_capdec_reads_no_image():
    method = learner("capdec")
    texts = Examples.of([Example(id=str(i), inputs={"text": "a cat"}, target=["a cat", "dog"]) for i in range(3)])
    method.learn(replace(caption_stream(1).tasks[0], train=texts), Runtime(device="cpu", quiet=True))


@pytest.mark.filterwarnings("error::FutureWarning")
@pytest.mark.parametrize("decoding", ["official", "transformers", "nucleus"])
def test_every_decoding_says_the_same_for_any_batch(decoding):
    alone, together = (answers(learner("clipcap", decoding=decoding), caption_stream(), 0, n) for n in (1, 3))
    assert alone == together and all(isinstance(text, str) for text in alone)


@pytest.mark.filterwarnings("error::FutureWarning")
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
    made = captioner()
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
    source, target = captioner(mapper=kind, seed=1), captioner(mapper=kind)
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
        load_mapper(tmp_path / "bad.pt", captioner().mapper)


def test_a_clip_of_another_width_and_a_missing_language_model_are_refused(tmp_path):
    cls = registry.load("methods", "clipcap")
    with pytest.raises(RecipeError, match=r"Set models\.captioner\.dim=24"):
        cls(cls.Config(), clip=fresh_clip(), captioner=captioner(dim=32))
    with pytest.raises(WeightsError, match="language model"):
        load(Config(llm=str(tmp_path)))
