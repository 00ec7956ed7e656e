"""Test-time methods on a tiny CLIP: the house's rules, equal answers by every road, files of contexts, bad input."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from clip_methods import fresh_clip, small_stream
from PIL import Image

from perdure.errors import DataError, RecipeError, WeightsError
from perdure.evaluate import Evaluation, evaluate, read_records
from perdure.loop import run, seed_everything
from perdure.models.clip import Clip
from perdure.models.clip.context import read_context
from perdure.models.clip.prompts import MetaNet
from perdure.runtime import Runtime
from perdure.settings import registry
from perdure.types import NO_EXAMPLES, Example, Query
from tests import rlcf_run
from tests.every_method import METHODS

NAMES = ("rlcf_prompt", "rlcf_encoder", "tpt_prompt", "tpt_encoder", "kd", "zero_shot")


def fresh(name, *, built_under=0, **settings):
    seed_everything(built_under)
    return METHODS[name].make(**settings)


def shifted(**sizes):
    """One test set, nothing to train on, three classes."""
    stream = small_stream(**{"tasks": 1, "classes": 3, "test": 2, **sizes})
    return replace(stream, tasks=tuple(replace(t, train=NO_EXAMPLES) for t in stream), shared_candidates=False)


def answers(method, stream=None, batch_size=4, workers=0, seed=0):
    """Scores of every example of the first task, by id."""
    from perdure.loading import ExampleBatches

    task = (stream or shifted()).tasks[0]
    runtime = Runtime(device="cpu", quiet=True, workers=workers, seed=seed)
    method.learn(task, runtime)
    batches = ExampleBatches(
        task.test, method.preprocess, batch_size=batch_size, runtime=runtime, stage="test", training=False
    )
    predict = method.predictor(Query(kind="classify", candidates=task.candidates))
    rows = {}
    with torch.set_grad_enabled(getattr(method, "adapts", False)):
        for batch, _ in batches.epoch(0):
            for position, row in zip(batch["position"].tolist(), predict(batch)):
                rows[task.test[position].id] = row.detach()
    return rows


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_the_same_for_any_batch_size_number_of_workers_and_images_at_once(name):
    method = fresh(name)
    expected = answers(method, batch_size=1)
    assert len(expected) == 6
    others = [answers(method, batch_size=5), answers(method, batch_size=3, workers=2)]
    if name in ("rlcf_encoder", "tpt_encoder", "kd"):  # to the bit
        assert all(torch.equal(other[i], expected[i]) for other in others for i in expected)
    if "prompt" in name:
        others.append(answers(fresh(name, at_once=3, chunk=5), batch_size=6))
    for other in others:
        for identity, row in expected.items():
            torch.testing.assert_close(other[identity], row, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "zero_shot"])
def test_adapting_changes_answers_and_no_step_is_zero_shot(name):
    zero_shot = answers(fresh("zero_shot", template="a photo a {}."))
    same = {"template": "a photo a {}."} if "encoder" in name or name == "kd" else {}
    still = answers(fresh(name, steps=0, **same))
    moved = answers(fresh(name, steps=2, lr=1e-2, **same))
    assert all(torch.allclose(still[i], zero_shot[i], atol=1e-4) for i in zero_shot)
    assert any((moved[i] - still[i]).abs().max() > 1e-3 for i in still)


@pytest.mark.parametrize("settings", [{}, {"momentum": 0.5}, {"tune": "norm"}, {"answer": "confident"}])
@pytest.mark.parametrize("name", ["rlcf_encoder", "tpt_encoder", "kd"])
def test_images_at_once_change_no_answer_of_encoders_whatever_the_settings(name, settings):
    """In float64: AdamW divides by gradients, and those of random networks are small enough for rounding to show."""
    methods = [fresh(name, lr=1e-2, **settings), fresh(name, lr=1e-2, at_once=4, **settings)]
    for method in methods:
        judge = getattr(method, "reward", None) or getattr(method, "teacher", None)
        for model in (method.policy, *(judge.models if judge else ())):
            model.double()
    alone, together = (answers(method, batch_size=6) for method in methods)
    assert all(torch.allclose(alone[i], together[i], rtol=0, atol=1e-8) for i in alone)
    single = answers(fresh(name, at_once=4, lr=1e-5), batch_size=6)
    assert all(torch.allclose(single[i], row, rtol=0, atol=1e-4) for i, row in answers(fresh(name, lr=1e-5)).items())


@pytest.mark.parametrize("name", ["rlcf_prompt", "rlcf_encoder", "kd"])
def test_lower_precision_adapts_and_leaves_the_full_weights_as_they_were(name):
    method = fresh(name)
    before = {n: t.clone() for n, t in method.policy.state_dict().items()}
    with torch.autocast("cpu", torch.bfloat16):
        found = answers(method)
    assert all(row.isfinite().all() for row in found.values())
    after = method.policy.state_dict()
    assert all(after[n].dtype == torch.float32 and torch.equal(before[n], after[n]) for n in before)


def test_slow_weights_make_answers_depend_on_what_came_before_and_start_anew_with_each_query():
    method = fresh("rlcf_encoder", momentum=0.5, update_every=1, lr=1e-2)
    assert method.carries_state and not fresh("rlcf_encoder").carries_state
    before = {n: t.clone() for n, t in method.policy.state_dict().items()}
    first, episodic = answers(method), answers(fresh("rlcf_encoder", lr=1e-2))
    assert all(torch.equal(before[n], t) for n, t in method.policy.state_dict().items())
    ids = list(first)
    torch.testing.assert_close(first[ids[0]], episodic[ids[0]], rtol=1e-4, atol=1e-4)
    assert (first[ids[-1]] - episodic[ids[-1]]).abs().max() > 1e-4
    again = answers(method)
    assert all(torch.equal(first[i], again[i]) for i in ids)


def test_a_test_pass_that_was_stopped_goes_on_with_equal_records(tmp_path):
    stream = shifted()
    whole, part = fresh("rlcf_prompt"), fresh("rlcf_prompt")
    run(
        whole,
        stream,
        evaluation=Evaluation(plan="current"),
        runtime=Runtime(device="cpu", quiet=True, out=tmp_path / "whole"),
    )
    expected = read_records(tmp_path / "whole/predictions/0_0.jsonl")
    half = tmp_path / "part/predictions"
    half.mkdir(parents=True)
    lines = (tmp_path / "whole/predictions/0_0.jsonl").read_text().splitlines(keepends=True)
    (half / "0_0.part0").write_text("".join(lines[:3]))
    runtime = Runtime(device="cpu", quiet=True, out=tmp_path / "part")
    query = stream.query(stream.tasks[0], after=0)
    part.learn(stream.tasks[0], runtime)
    evaluate(part, part.predictor(query), stream.tasks[0], query, Evaluation(batch_size=2), runtime=runtime, after=0)
    found = read_records(half / "0_0.jsonl")
    for ours, theirs in zip(found, expected, strict=True):
        assert ours["id"] == theirs["id"] and ours["predicted"] == theirs["predicted"]
        assert ours["confidence"] == pytest.approx(theirs["confidence"], abs=1e-4)


@pytest.mark.parametrize("settings", [{"sampling": "distribution"}, {"baseline": "batch"}, {"baseline": "none"}])
@pytest.mark.parametrize("name", ["rlcf_prompt", "rlcf_encoder"])
def test_other_settings_of_the_policy_gradient_run_and_matter(name, settings):
    plain, other = answers(fresh(name, lr=1e-2)), answers(fresh(name, lr=1e-2, **settings))
    assert any((plain[i] - other[i]).abs().max() > 1e-4 for i in plain)


def test_reward_models_are_combined_and_the_reward_alone_is_zero_shot():
    cls = registry.load("methods", "rlcf_prompt")
    settings = dict(METHODS["rlcf_prompt"].settings) | {"ensemble": "weighted", "reward_confidences": (3.0, 1.0)}
    both = cls(cls.Config(**settings), policy=fresh_clip(), reward=fresh_clip(), reward2=fresh_clip())
    assert both.reward.weights == [0.75, 0.25]
    zero_shot = registry.load("methods", "zero_shot")
    one = answers(zero_shot(zero_shot.Config(), policy=fresh_clip()))
    two = answers(zero_shot(zero_shot.Config(), policy=fresh_clip(), policy2=fresh_clip()))
    assert all(torch.allclose(one[i], two[i], atol=1e-4) for i in one)


def test_eighty_templates_are_averaged():
    from perdure.families.clip.templates import IMAGENET_80 as TEMPLATES

    assert len(set(TEMPLATES)) == 80 and all(t.count("{}") == 1 for t in TEMPLATES)


@pytest.mark.parametrize("name", ["rlcf_prompt", "tpt_prompt"])
def test_learned_class_vectors_answer_by_chance_before_and_by_the_seed(name):
    named, first = answers(fresh(name, steps=0)), answers(fresh(name, steps=0, learned_names=True))
    again, other = (answers(fresh(name, steps=0, learned_names=True, built_under=seed)) for seed in (0, 1))
    assert all(torch.equal(first[i], again[i]) for i in first)
    assert any((first[i] - other[i]).abs().max() > 1e-3 for i in first)
    assert any((first[i] - named[i]).abs().max() > 1e-3 for i in first)
    tuned = answers(fresh(name, lr=1e-2, learned_names=True))
    assert any((first[i] - tuned[i]).abs().max() > 1e-3 for i in first)


NAMED = ("brown_cat", "dog")


@pytest.fixture
def read(monkeypatch):
    """The prompts that any CLIP tokenizes from now on."""
    texts, tokenize = [], Clip.tokenize
    monkeypatch.setattr(
        Clip, "tokenize", lambda clip, given, **how: texts.extend(given) or tokenize(clip, given, **how)
    )
    return texts


@pytest.mark.parametrize("name", ["rlcf_encoder", "tpt_encoder", "kd", "zero_shot"])
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"template": "a photo of a {}."}, "a photo of a brown cat."),
        ({"template": "a photo of a {}.", "clean_names": False}, "a photo of a brown_cat."),
        ({"template": "a_photo_of_a {}."}, "a_photo_of_a brown cat."),
    ],
)
def test_underscores_of_names_become_spaces_unless_asked_otherwise_and_those_of_the_template_stay(
    name, settings, said, read
):
    more = {"samples": 2} if name == "rlcf_encoder" else {}
    fresh(name, **settings, **more).predictor(Query(kind="classify", candidates=NAMED))
    assert set(read) == {said, said.replace("brown cat", "dog").replace("brown_cat", "dog")}


@pytest.mark.parametrize("name", ["rlcf_prompt", "tpt_prompt"])
def test_a_prompt_learner_reads_names_and_contexts_with_spaces(name, read):
    more = {"samples": 2} if name == "rlcf_prompt" else {}
    fresh(name, context="a_photo", **more).predictor(Query(kind="classify", candidates=NAMED))
    assert read and not [text for text in read if "_" in text]


def test_a_learned_context_reads_no_underscores_and_says_so():
    settings = registry.load("methods", "zero_shot").Config(context_file=Path("ctx.pth.tar"), clean_names=False)
    assert [where for where, _ in settings.faults()] == ["clean_names"]


# -- contexts from files ------------------------------------------------------------------------------------


def saved(path, vectors, **more):
    torch.save({"state_dict": {"ctx": vectors, "token_prefix": torch.zeros(2, 1, 32), **more}, "epoch": 50}, path)
    return path


def test_a_coop_file_is_where_prompts_begin(tmp_path):
    words = fresh("tpt_prompt", steps=0)
    from perdure.models.clip.prompts import ContextPrompts

    start = ContextPrompts.of(words.policy, ["x"], words.context.wording).initial()
    file = saved(tmp_path / "model.pth.tar-50", start)
    from_words, from_file = answers(words), answers(fresh("tpt_prompt", steps=0, context_file=file))
    assert all(torch.allclose(from_words[i], from_file[i], atol=1e-4) for i in from_words)
    zero_shot = answers(fresh("zero_shot", context_file=file))
    assert all(torch.allclose(zero_shot[i], from_file[i], atol=1e-4) for i in zero_shot)
    other = answers(fresh("rlcf_prompt", context_file=saved(tmp_path / "other.pth.tar", start + 1)))
    assert any(not torch.allclose(other[i], from_file[i], atol=1e-2) for i in other)


def test_a_cocoop_file_brings_a_net(tmp_path):
    torch.manual_seed(0)
    net = {f"meta_net.{n}": t for n, t in MetaNet(24, 32).state_dict().items()}
    file = saved(tmp_path / "cocoop.pth.tar", 0.1 * torch.randn(2, 32), **net)
    vectors, loaded = read_context(file, fresh_clip())
    assert vectors.shape == (2, 32) and loaded is not None
    method = fresh("tpt_prompt", context_file=file)
    found = [answers(method, batch_size=n) for n in (1, 4)]
    assert all(torch.allclose(found[0][i], found[1][i], atol=1e-4) for i in found[0])
    assert len(answers(fresh("zero_shot", context_file=file))) == 6


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"state_dict": {"other": torch.zeros(2)}}, "no context shared by all classes"),
        ({"state_dict": {"ctx": torch.zeros(3, 4, 32)}}, r"'ctx' has shape \[3, 4, 32\]"),
        ({"state_dict": {"ctx": torch.zeros(4, 512)}}, "the context is 512 wide"),
        ({"state_dict": {"ctx": torch.zeros(4, 32), "meta_net.linear1.weight": torch.zeros(2, 2)}}, "other shapes"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path, content, said):
    torch.save(content, tmp_path / "bad.pth.tar")
    with pytest.raises(WeightsError, match=said):
        fresh("tpt_prompt", context_file=tmp_path / "bad.pth.tar")


def test_a_pickle_with_code_is_refused(tmp_path):
    torch.save({"state_dict": {"ctx": torch.zeros(4, 32)}, "hook": Image.open}, tmp_path / "evil.pth.tar")
    with pytest.raises(WeightsError, match="tensors only"):
        fresh("tpt_prompt", context_file=tmp_path / "evil.pth.tar")


# -- bad input ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rlcf_prompt", "rlcf_encoder"])
@pytest.mark.parametrize(("classes", "said"), [(1, "leaves nothing to adapt to"), (2, "Set method.samples=2")])
def test_more_samples_than_classes_are_refused(name, classes, said):
    with pytest.raises(DataError, match=said):
        answers(fresh(name, samples=3), shifted(classes=classes))


@pytest.mark.parametrize("name", NAMES)
def test_no_candidates_are_refused(name):
    with pytest.raises(DataError, match="there are no candidates"):
        fresh(name).predictor(Query(kind="classify"))


@pytest.mark.parametrize("name", ["tpt_prompt", "tpt_encoder", "kd"])
def test_one_class_is_answered_where_nothing_needs_to_be_sampled(name):
    assert all(row.shape == (1,) for row in answers(fresh(name), shifted(classes=1)).values())


def test_another_seed_of_the_run_draws_other_views():
    """Replicates of a method that draws at test time differ."""
    one, same, other = (answers(fresh("tpt_encoder", lr=1e-2), seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(one[i], same[i]) for i in one)
    assert not any(torch.equal(one[i], other[i]) for i in one)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "zero_shot"])
def test_one_view_is_enough_if_it_is_kept_and_an_error_if_not(name):
    config = registry.load("methods", name).Config
    assert [field for field, _ in config(views=1).faults()] == ["selection"]
    assert not list(config(views=1, selection=1.0).faults())
    assert len(answers(fresh(name, views=1, selection=1.0))) == 6


def test_names_with_commas_or_unknown_words_are_answered_and_broken_images_named(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 cut")
    method = fresh("rlcf_prompt")
    predict = method.predictor(Query(kind="classify", candidates=("crane, bird", "zzqx", "Ünïcode_name")))
    pixels = np.zeros((20, 20, 3), np.uint8)
    item = method.preprocess(Example(id="a", inputs={"image": pixels}), False)
    assert predict({"views": item["views"][None], "seed": torch.tensor([0])}).shape == (1, 3)
    with pytest.raises(DataError, match=r"broken\.jpg"):
        method.preprocess(Example(id="b", inputs={"image": tmp_path / "broken.jpg"}), False)


def test_a_reward_model_of_another_resolution_is_fed_resized_views(tmp_path):
    from tiny_clip import tiny_clip

    from perdure.models import clip

    large = clip.load(clip.Config(weights=str(tiny_clip(tmp_path / "large", image_size=24, context=32))))
    cls = registry.load("methods", "rlcf_encoder")
    method = cls(cls.Config(**METHODS["rlcf_encoder"].settings), policy=fresh_clip(), reward=large)
    assert len(answers(method)) == 6


def test_template_and_context_without_words_are_refused():
    with pytest.raises(RecipeError, match=r"one \{\} where the class name goes"):
        fresh("rlcf_encoder", template="a photo")
    with pytest.raises(RecipeError, match="words, and"):
        fresh("tpt_prompt", context="[CLS]")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run by one process, this one, that was never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    rlcf_run.main(folder)
    return folder


def launch(folder, *arguments, processes=1):
    """`tests.rlcf_run` in processes of its own, which can be killed."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), "-m", "tests.rlcf_run", str(folder), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    root = Path(__file__).parents[2]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=600)


def same_records(ours, theirs):
    for method in ("rlcf_prompt", "rlcf_encoder"):
        for task in (0, 1):
            one, two = (read_records(f / method / "predictions" / f"{task}_{task}.jsonl") for f in (ours, theirs))
            assert len(one) == 7 and [r["id"] for r in one] == [r["id"] for r in two]
            for a, b in zip(one, two):
                assert a["predicted"] == b["predicted"] and a["confidence"] == pytest.approx(b["confidence"], abs=1e-4)


@pytest.mark.slow
def test_two_processes_give_the_records_of_one(tmp_path, whole):
    done = launch(tmp_path, processes=2)
    assert done.returncode == 0, done.stderr[-2000:]
    same_records(tmp_path, whole)


@pytest.mark.slow
def test_a_run_killed_in_the_middle_of_two_test_sets_goes_on_to_the_same_records(tmp_path, whole):
    for method in ("rlcf_prompt", "rlcf_encoder"):  # the second process ends the first method's tests
        assert launch(tmp_path, method, "2").returncode == -signal.SIGKILL
        left = read_records(tmp_path / method / "predictions/0_0.part0")
        assert len(left) == 6 and not (tmp_path / method / "predictions/0_0.jsonl").exists()
    rlcf_run.main(tmp_path)
    same_records(tmp_path, whole)
