"""PHP as a method: the behaviour of every method, and what the specification asks of this one."""

from __future__ import annotations

import pytest
import tiny_audio_visual as tiny
import torch
from transformers import ClapModel

from perdure.errors import DataError, RecipeError
from perdure.evaluate import Evaluation
from perdure.families.audio_visual import front_ends, towers
from perdure.families.audio_visual.inputs import Problem, mel_of, pixels_of, preprocess
from perdure.families.audio_visual.towers import Insertions
from perdure.loop import run
from perdure.methods.php import Config, Php
from perdure.methods.php.generator import MidPrompts
from perdure.runtime import Runtime
from perdure.types import Query


def make(**settings) -> Php:
    return Php(Config(**(tiny.SETTINGS | settings)), clip=tiny.clip(), audio=tiny.clap())


def quiet() -> Runtime:
    return Runtime(device="cpu", quiet=True)


def batch_of(kind: str, n: int = 2) -> dict:
    items = [preprocess(e, size=tiny.SIZE, training=True) for e in tiny.task(kind, 0, train=n).train]
    return torch.utils.data.default_collate(items)


@pytest.mark.slow
@pytest.mark.parametrize("kinds", [("segment", "parse-video"), ("classify", "localize-events")])
def test_a_run_over_other_kinds_scores_every_task_and_resumes(kinds, tmp_path):
    whole = run(make(), tiny.stream(*kinds), evaluation=Evaluation(batch_size=2), runtime=quiet())
    assert [(r["after"], r["asked"]) for r in whole.rows] == [(0, 0), (1, 0), (1, 1)]
    assert all(0 <= r["values"][next(iter(r["values"]))] <= 100 for r in whole.rows)
    runtime = Runtime(device="cpu", quiet=True, out=tmp_path)
    first = tiny.stream(*kinds)
    run(make(), first, evaluation=Evaluation(batch_size=2), runtime=runtime)
    again = run(
        make(), first, evaluation=Evaluation(batch_size=2), runtime=Runtime(device="cpu", quiet=True, out=tmp_path)
    )
    assert again.rows == whole.rows


def test_without_any_insertion_the_towers_are_plain_clip_and_clap():
    clip, clap = tiny.clip(), tiny.clap()
    batch = batch_of("localize-events")
    pixels, mel = pixels_of(batch), mel_of(clap, batch, seconds=2.0)
    with torch.no_grad():
        x, y = towers.run(clip, clap, towers.embed_frames(clip, pixels), clap.patches(mel))
        plain = clip.image_features(pixels)
        model: ClapModel = clap.model
        heard = model.audio_projection(model.audio_model(mel, is_longer=None).pooler_output)
    assert torch.allclose(towers.frame_features(clip, x), plain, atol=1e-5)
    assert torch.allclose(clap.audio_features(y), heard, atol=1e-5)
    assert torch.allclose(clap.encode_audio(mel), heard, atol=1e-5)


def tokens_with(method: Php, parts, batch) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        frames, patches, n = front_ends.embed(method.system, problem(), batch)
        return towers.run(method.clip, method.audio, frames, patches, method.insert(parts, frames, patches, n))


def problem() -> Problem:
    return Problem(name="a", kind="localize-events", candidates=("cat", "dog"), segments=3, clip_seconds=2.0)


def test_fresh_adapters_change_nothing_and_never_the_sound():
    method, batch = make(mid=False, deep=False), batch_of("localize-events")
    parts = method.make_parts(problem()).eval()
    without = tokens_with(method, {}, batch)
    fresh = tokens_with(method, parts, batch)
    assert torch.equal(fresh[0], without[0]) and torch.equal(fresh[1], without[1])
    with torch.no_grad():
        for parameter in parts["adapters"].parameters():
            parameter.add_(0.3)
    changed = tokens_with(method, parts, batch)
    assert not torch.allclose(changed[0], without[0]) and torch.equal(changed[1], without[1])
    stays = make(mid=False, deep=False, shallow_audio_residual=True)
    assert not torch.allclose(tokens_with(stays, parts, batch)[1], without[1])


def test_official_pairing_depends_on_the_place_in_the_batch_and_ours_does_not():
    p = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1, 1)  # keys 0, values 1

    def pairs(n: int, layout: str) -> list[tuple[float, float]]:
        from perdure.layers.prompts import lay_out

        made = lay_out(p.expand(1, 2, n, 1, 1), layout)[0, :, :, 0, 0]
        return [tuple(row) for row in made.tolist()]

    assert pairs(10, "official") == [(0.0, 0.0)] * 5 + [(1.0, 1.0)] * 5
    assert pairs(5, "official")[2] == (0.0, 1.0)
    assert pairs(1, "official") == [(0.0, 1.0)]
    assert pairs(10, "paired") == [(0.0, 1.0)] * 10


def test_a_prompt_is_added_to_the_first_channels_row_by_row():
    prompt = torch.arange(24576.0).view(1, 32, 768)
    for n, channels, width in ((1024, 24, 192), (256, 96, 384)):
        out = towers.add_prompt(torch.zeros(1, n, width), prompt)
        assert torch.equal(out[0, 3, :channels], torch.arange(24576.0)[channels * 3 : channels * 4])
        assert not out[0, :, channels:].any()
    with pytest.raises(RecipeError, match="does not fit 7 tokens"):
        towers.add_prompt(torch.zeros(1, 7, 96), prompt)


def test_a_prefix_that_nothing_attends_to_changes_nothing():
    clip = tiny.clip()
    attention = clip.model.vision_model.encoder.layers[0].self_attn
    with torch.no_grad():
        attention.q_proj.weight.zero_()
        attention.q_proj.bias.fill_(1.0)
        attention.k_proj.weight.copy_(torch.eye(32))
        hidden = torch.randn(2, 5, 32)
        far = torch.full((2, 3, 32), -1e4)
        plain = towers.prefix_attention(attention, hidden)
        assert torch.allclose(
            towers.prefix_attention(attention, hidden, (far, torch.randn(2, 3, 32))), plain, atol=1e-5
        )
        empty = torch.zeros(2, 0, 32)
        assert torch.equal(towers.prefix_attention(attention, hidden, (empty, empty)), plain)


def test_equal_codebook_rows_give_that_row_weighted_by_the_gate():
    torch.manual_seed(0)
    module = MidPrompts(layers=1, dim=8, length=2, codes=4, heads=2, head_dim=4)
    row, anchor = torch.randn(8), torch.randn(8)
    with torch.no_grad():
        module.codebook.copy_(row.expand(4, -1))
        seen, _ = module(torch.randn(3, 5, 8), torch.randn(3, 2, 8), anchor)
        gate = torch.sigmoid(module.query(row) @ module.key(anchor) / 8**0.5)
    assert torch.allclose(seen, (gate * row).expand(1, 3, 2, 2, 8), atol=1e-6)


def test_old_tasks_keep_their_own_parts_and_follow_the_shared_ones():
    method, stream = make(), tiny.stream("localize-events", "parse-video")
    first, second = stream.tasks
    runtime = quiet()
    runtime.task = 0
    method.learn(first, runtime)
    query = stream.query(first, after=0)
    batch = batch_of("localize-events")
    before = method.tasks.of(query)[1].state_dict()
    with torch.no_grad():
        scores = method.predictor(query)(batch)
    runtime.task = 1
    method.learn(second, runtime)
    after = method.tasks.of(query)[1].state_dict()
    own = [name for name in before if name.split(".")[0] not in method.config.shared]
    assert {name.split(".")[0] for name in own} == {"context", "mid", "deep"}
    assert all(torch.equal(before[name], after[name]) for name in own)
    assert any(not torch.equal(before[name], after[name]) for name in before if name not in own)
    with torch.no_grad():
        moved = method.predictor(query)(batch)
    assert not torch.equal(scores, moved)


def test_with_no_shared_part_old_answers_stay_bit_for_bit():
    method, stream = make(shared=()), tiny.stream("localize-events", "parse-video", "answer")
    runtime, batch = quiet(), batch_of("localize-events")
    answers = []
    for task in stream:
        runtime.task = task.index
        method.learn(task, runtime)
        with torch.no_grad():
            answers.append(method.predictor(stream.query(stream.tasks[0], after=task.index))(batch))
    assert torch.equal(answers[0], answers[1]) and torch.equal(answers[0], answers[2])


def test_a_context_that_is_shared_is_missing_after_a_task_of_answers():
    """The published rule: the class prompts of old tasks then fall back to the context that they were learned with."""
    method = make(shared=("adapters", "clip_adapters", "contrast", "context"))
    stream, runtime = tiny.stream("localize-events", "answer", "parse-video"), quiet()
    contexts = []
    for task in stream:
        runtime.task = task.index
        method.learn(task, runtime)
        parts = method.tasks.of(stream.query(stream.tasks[0], after=task.index))[1]
        contexts.append(parts["context"].vectors.detach().clone())
    assert torch.equal(contexts[0], contexts[1])
    assert not torch.allclose(contexts[0], contexts[2], atol=1e-3)


def test_two_tasks_with_as_many_classes_keep_their_own_names():
    stream = tiny.stream("localize-events", "parse-video")
    method, runtime = make(), quiet()
    for task in stream:
        runtime.task = task.index
        method.learn(task, runtime)
    batch = batch_of("localize-events")
    with torch.no_grad():
        asked = Query(kind="localize-events", candidates=("cat", "dog", "photo"), task="localize-events")
        swapped = Query(kind="localize-events", candidates=("dog", "cat", "photo"), task="other")
        scores = method.predictor(asked)(batch), method.predictor(swapped)(batch)
    assert not torch.allclose(*scores)


def test_the_state_holds_shared_parts_once():
    method, stream = make(), tiny.stream("localize-events", "parse-video")
    runtime = quiet()
    for task in stream:
        runtime.task = task.index
        method.learn(task, runtime)
    state = method.state_dict()["tasks"]
    assert set(state["shared"]) == {"adapters", "clip_adapters", "contrast"}
    for kept in state["kept"].values():
        assert set(kept) == {"context", "mid", "deep"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"shallow_blocks": (9,)}, "block 9"), ({"deep_blocks": (4,)}, "blocks 0 to 3")],
)
def test_blocks_that_the_towers_lack_are_refused(settings, message):
    with pytest.raises(RecipeError, match=message):
        make(**settings)


def test_towers_of_different_depth_are_refused():
    with pytest.raises(RecipeError, match="4 vision blocks, CLAP 3 audio blocks"):
        Php(Config(**tiny.SETTINGS), clip=tiny.clip(), audio=tiny.clap(depths=[2, 1]))


def test_a_name_twice_and_a_label_beyond_the_classes_are_refused():
    from dataclasses import replace

    task = tiny.task("localize-events", 0)
    with pytest.raises(DataError, match="'cat' is there twice"):
        make().learn(replace(task, candidates=("cat", "cat", "dog")), quiet())
    with pytest.raises(DataError, match="a target has label 2"):
        make().learn(replace(task, candidates=("cat", "dog")), quiet())


def test_a_task_that_needs_a_head_and_was_never_learned_is_refused():
    with pytest.raises(RecipeError, match="has not been learned"):
        make().predictor(Query(kind="answer", candidates=("yes", "no"), task="unseen"))


def test_trimmed_texts_give_the_same_scores_as_whole_ones(monkeypatch):
    method, batch = make(), batch_of("localize-events")
    method.learn(tiny.task("localize-events", 0), quiet())
    query = Query(kind="localize-events", candidates=("cat", "dog"), task="a")
    with torch.no_grad():
        cut = method.predictor(query)(batch)
        monkeypatch.setattr(type(method.clip), "cut", lambda self, ids: ids)
        whole = method.predictor(query)(batch)
    assert torch.allclose(cut, whole, rtol=1e-4)


def test_class_names_may_stand_before_and_amid_the_context():
    from perdure.families.audio_visual.events import prompt_embeddings, read_texts

    clip, clap = tiny.clip(), tiny.clap()
    texts = read_texts(clip, clap, ["cat", "a dog"], tokens=4)
    context = torch.arange(4.0)[:, None].expand(4, texts.embeddings.shape[2]) + 100
    begin, end = texts.embeddings[1, 0], texts.embeddings[1, 5:]
    n = texts.name_lengths[1]
    rows = {p: prompt_embeddings(texts, context, p)[1] for p in ("end", "middle", "front")}
    assert torch.equal(rows["end"], torch.cat([begin[None], context, end]))
    assert torch.equal(rows["front"], torch.cat([begin[None], end[:n], context, end[n:]]))
    assert torch.equal(rows["middle"], torch.cat([begin[None], context[:2], end[:n], context[2:], end[n:]]))


def test_insertions_default_to_none():
    assert Insertions() == Insertions(prefix={}, audio_prompt={}, adapters={})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mid_length": 3}, "does not fit 256 audio tokens of 8 channels"),
        ({"adapter_reduction": 8}, "tokens of width 8 reduced 8 times are not 2 equal groups"),
    ],
)
def test_prompts_and_adapters_that_do_not_fit_the_towers_are_refused(settings, message):
    with pytest.raises(RecipeError, match=message):
        make(**settings)


def test_the_published_modes_are_random_by_key_and_leave_the_towers_as_they_are():
    method, batch = make(official_modes=True), batch_of("localize-events")
    task, runtime = tiny.task("localize-events", 0), quiet()
    before = method.audio.tower.batch_norm.running_mean.clone()
    method.learn(task, runtime)
    learned = method.audio.tower.batch_norm.running_mean.clone()
    assert not torch.equal(before, learned)
    predict = method.predictor(Query(kind="localize-events", candidates=task.candidates, task=task.name))
    answers = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        with torch.no_grad():
            answers.append(predict(batch))
    assert torch.equal(answers[0], answers[1]) and not torch.allclose(answers[0], answers[2])
    assert torch.equal(method.audio.tower.batch_norm.running_mean, learned)
    assert method.state_dict()["mel_statistics"]["mean"].equal(learned)
    assert not any(layer.layer.output._forward_hooks for layer in method.audio.blocks)


def test_dropped_branches_keep_their_mean():
    torch.manual_seed(0)
    kept = towers._dropped(torch.ones(20000, 1, 1), 0.25)
    assert kept.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert kept.mean().item() == pytest.approx(1.0, abs=0.02)
