"""Episodes: what they leave behind, what they cost, and where slow weights go."""

from dataclasses import replace

import pytest
import torch
from tiny_clip import tiny_model, tiny_tokenizer
from torch import nn

from perdure.errors import RecipeError
from perdure.families.clip import classifier
from perdure.families.test_time import losses, objectives
from perdure.families.test_time.encoder_tuning import EncoderTuner, encoder_tuner, tunable
from perdure.families.test_time.episodes import SlowStart
from perdure.families.test_time.prompt_tuning import PromptTuner, Steps, Trace
from perdure.methods.tpt_encoder import Config as TptEncoderConfig
from perdure.models.clip import Clip, Tokenizer, prompts
from perdure.models.clip.prompts import Context, ContextPrompts, wording

NAMES = ["cat", "dog", "dog cat", "a t", "o g"]


def clip():
    return Clip(tiny_model(context=16), tokenizer=Tokenizer(tiny_tokenizer(), context_length=16)).double()


def pixels(images=2, views=6):
    return torch.randn(images, views, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def rewards(images, views=3, classes=5, same=False):
    table = torch.rand(images, views, classes, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return torch.ones_like(table) if same else table


def prompt_tuner(model, **more):
    steps = Steps(**{"count": 2, "lr": 7e-3, "weight_decay": 5e-4} | more)
    return PromptTuner(model, NAMES, Context(wording=wording("photo cat")), steps, selection=0.5)


def reinforced(**settings):
    return lambda index: objectives.reinforce(rewards(len(index)), objectives.Reinforce(samples=2, **settings))


# -- prompts ------------------------------------------------------------------------------------------------


def test_learned_prompts_give_the_features_of_their_text_whatever_the_chunk():
    model = clip()
    expected = classifier.encode_prompts(model, [f"photo cat {name}." for name in NAMES])
    for chunk in (1, 2, 256):
        made = ContextPrompts.of(model, NAMES, wording("photo_cat"), chunk=chunk)
        context = made.initial()[None]
        torch.testing.assert_close(made.features(context)[0], expected, rtol=0, atol=1e-12)
        twice = made.features(torch.cat([context, 2 * context]))
        torch.testing.assert_close(twice[0], expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(twice[1], made.features(2 * context)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("words", "text"), [("[CLS] photo cat", "{} photo cat"), ("photo [CLS] cat", "photo {} cat")])
def test_the_class_name_may_stand_anywhere(words, text):
    model = clip()
    made = ContextPrompts.of(model, NAMES, wording(words))
    expected = classifier.encode_prompts(model, [text.format(name) + "." for name in NAMES])
    torch.testing.assert_close(made.features(made.initial()[None])[0], expected, rtol=0, atol=1e-12)


def test_a_context_needs_words_of_one_token_each():
    with pytest.raises(RecipeError, match="4 tokens in 1 words"):
        ContextPrompts.of(clip(), NAMES, wording("zebr"))
    for text in ("", "[CLS]", "[CLS] a [CLS]"):
        with pytest.raises(RecipeError, match="words, and"):
            wording(text)


@pytest.mark.parametrize("words", ["photo cat", "[CLS] photo cat"])
def test_learned_class_vectors_stand_where_the_name_would_and_are_tuned(words):
    model = clip()
    made = ContextPrompts.of(model, NAMES, made_wording(words))
    plain = ContextPrompts.of(model, ["x"], wording(words))
    x = model.token_embeddings(model.tokenize(["x"]))[0, 1]
    vectors = prompts.name_vectors(NAMES, 32, seed=0).double()
    assert torch.equal(vectors, prompts.name_vectors(NAMES[::-1], 32, seed=0).double().flip(0))
    assert not torch.equal(vectors, prompts.name_vectors(NAMES, 32, seed=1).double())
    vectors[1] = x
    found = made.features(torch.cat([made.initial(), vectors])[None])[0]
    torch.testing.assert_close(found[1], plain.features(plain.initial()[None])[0, 0], rtol=0, atol=1e-12)
    assert (found[0] - found[2]).abs().max() > 1e-6

    steps = Steps(count=1, lr=7e-3, weight_decay=0.0)
    context = Context(wording=made_wording(words), seed=0)
    tuner, trace = PromptTuner(model, NAMES, context, steps, selection=0.5), Trace(keep_gradients=True)
    tuner.logits(pixels(1), lambda index: losses.average_entropy, trace=trace)
    assert trace.gradients[0].shape == (1, 2 + len(NAMES), 32)
    assert all(row.any() for row in trace.gradients[0][0]), "context and every class move"


def made_wording(words):
    return replace(wording(words), learned_names=True)


def test_only_sampled_classes_are_run_with_gradients():
    tuner, ran = prompt_tuner(clip(), count=1), []
    original = tuner.prompts.encode
    tuner.prompts.encode = lambda c, owner, rows: (
        ran.append(sorted(set(rows.tolist()))) if torch.is_grad_enabled() else None,
        original(c, owner, rows),
    )[1]
    sampled = {}

    def prepare(index):
        inner = objectives.reinforce(rewards(len(index), views=2, classes=5), objectives.Reinforce(samples=2))

        def objective(logits):
            sampled["classes"] = sorted(set(logits.topk(2, dim=-1).indices.flatten().tolist()))
            return inner(logits)

        return objective

    tuner.selection = 0.34
    tuner.logits(pixels(1), prepare)
    assert ran == [sampled["classes"]] and len(sampled["classes"]) < len(NAMES)


@pytest.mark.parametrize("settings", [{}, {"baseline": "none"}, {"baseline": "batch"}, {"min_entropy": 0.2}])
def test_gradients_by_way_of_text_features_are_those_of_autograd(settings):
    model = clip()
    tuner, trace = prompt_tuner(model, count=1), Trace(keep_gradients=True)
    chosen = {}

    def prepare(index):
        chosen["index"] = index
        return reinforced(**settings)(index)

    tuner.logits(pixels(), prepare, trace=trace)
    context = tuner.start.expand(2, -1, -1).clone().requires_grad_()
    every = torch.arange(len(NAMES))
    features = torch.stack([tuner.prompts.encode(context, torch.full_like(every, i), every) for i in range(2)])
    images = torch.nn.functional.normalize(model.image_features(pixels().flatten(0, 1)), dim=-1).view(2, 6, -1)
    kept = losses.take_views(images, chosen["index"])
    logits = model.scale * kept @ features.transpose(-1, -2)
    (expected,) = torch.autograd.grad(reinforced(**settings)(chosen["index"])(logits).sum(), context)
    torch.testing.assert_close(trace.gradients[0], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("still", [{"count": 0}, {"lr": 0.0}])
def test_no_step_or_no_rate_is_zero_shot(still):
    model = clip()
    tuner = prompt_tuner(model, **still)
    images = torch.nn.functional.normalize(model.image_features(pixels()[:, 0]), dim=-1)
    expected = model.scale * images @ tuner.first[0].T
    torch.testing.assert_close(tuner.logits(pixels(), reinforced()), expected, rtol=0, atol=1e-12)


def test_equal_rewards_leave_the_context_to_weight_decay():
    tuner, trace = prompt_tuner(clip(), count=3), Trace(keep_gradients=True)
    same = objectives.reinforce(rewards(2, same=True), objectives.Reinforce(samples=2))
    tuner.logits(pixels(), lambda index: same, trace=trace)
    assert all(not g.any() for g in trace.gradients)
    from perdure.families.test_time.prompt_tuning import tune_prompts

    images = torch.nn.functional.normalize(torch.ones(1, 3, 24, dtype=torch.float64), dim=-1)
    context, _ = tune_prompts(
        tuner.prompts,
        tuner.start[None],
        images,
        objectives.reinforce(rewards(1, same=True), objectives.Reinforce(samples=2)),
        tuner.steps,
        scale=torch.tensor(10.0),
    )
    torch.testing.assert_close(context[0], tuner.start * (1 - 7e-3 * 5e-4) ** 3, rtol=1e-12, atol=0)


# -- encoder ------------------------------------------------------------------------------------------------


def tuner_of(model, *, count=2, lr=1e-3, which="all", **more):
    texts = classifier.encode_prompts(model, NAMES)
    settings = TptEncoderConfig(steps=count, lr=lr, weight_decay=5e-4, selection=0.5, **more)
    return encoder_tuner(model, texts, tunable(model, which), settings)


def moments(tuner):
    """The optimizers' state of every parameter."""
    return [entry for optimizer in tuner.episodes.parts for entry in optimizer.state.values()]


def each(index):
    table = rewards(len(index))
    return [objectives.reinforce(row[None], objectives.Reinforce(samples=2)) for row in table]


@pytest.mark.parametrize("which", ["all", "norm"])
def test_an_episode_moves_weights_and_puts_everything_back_bit_for_bit(which):
    model = clip()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    tuner, trace = tuner_of(model, which=which), Trace(keep_gradients=True)
    answers = tuner.logits(pixels(), each, trace=trace)
    plain = tuner_of(model, count=0).logits(pixels(), each)
    assert (answers - plain).abs().max() > 1e-6
    after = model.state_dict()
    assert all(torch.equal(before[n], after[n]) for n in before)
    for entry in moments(tuner):
        assert not any(bool(t.any()) for t in entry.values())
    assert all(p.grad is None for p in model.parameters())
    torch.testing.assert_close(tuner.logits(pixels(), each), answers, rtol=0, atol=0)


def test_answers_do_not_depend_on_order_or_company():
    model = clip()
    tuner, images = tuner_of(model), pixels(3)
    constant = [objectives.reinforce(rewards(1), objectives.Reinforce(samples=2)) for _ in range(3)]
    together = tuner.logits(images, lambda index: constant[: len(index)])
    turned = tuner.logits(images.flip(0), lambda index: constant[: len(index)])
    torch.testing.assert_close(together, turned.flip(0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("more", [{}, {"which": "norm"}, {"count": 0}, {"answer": "confident"}])
def test_images_with_weights_of_their_own_are_answered_as_one_by_one(more):
    model, images = clip(), pixels(3)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    alone = tuner_of(model, **more).logits(images, each)
    tuner = tuner_of(model, at_once=3, **more)
    torch.testing.assert_close(tuner.logits(images, each), alone, rtol=0, atol=1e-10)
    others = torch.cat([images[:1], 3 * images[1:]])
    torch.testing.assert_close(tuner.logits(others, each)[0], alone[0], rtol=0, atol=1e-10)
    assert not moments(tuner), "the weights that all share were not moved"
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


def test_images_run_one_by_one_where_they_must():
    assert tuner_of(clip(), at_once=3).at_once == 3
    assert tuner_of(clip(), at_once=3, momentum=0.9).at_once == 1
    assert batch_norm_tuner(BatchNormNet().double(), None, at_once=3).at_once == 1


def test_an_error_in_an_episode_puts_the_weights_back():
    model = clip()
    tuner, before = tuner_of(model), {n: t.clone() for n, t in model.state_dict().items()}

    def fails(index):
        def objective(logits):
            if moments(tuner):
                raise RuntimeError("in the second step")
            return logits.sum((-2, -1))

        return [objective] * len(index)

    with pytest.raises(RuntimeError, match="second step"):
        tuner.logits(pixels(1), fails)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


def test_slow_weights_move_after_every_second_sample():
    # m = .9, u = .7: after two samples .3 t0 + .7 (.81 t0 + .09 t1 + .1 t2)
    t0, t1, t2 = torch.tensor([[1.0, 2.0], [3.0, 5.0], [7.0, 11.0]], dtype=torch.float64)
    slow = SlowStart({"w": t0}, momentum=0.9, every=2, share=0.7)
    slow.update({"w": t1})
    assert torch.equal(slow.start["w"], t0)
    slow.update({"w": t2})
    torch.testing.assert_close(slow.start["w"], 0.3 * t0 + 0.7 * (0.81 * t0 + 0.09 * t1 + 0.1 * t2))


class BatchNormNet(nn.Module):
    """Pixels to six numbers by way of batch norm."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 6, 4, 4), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1))

    def forward(self, x):
        return self.layers(x).flatten(1)


def batch_norm_tuner(net, prior, **more):
    texts = torch.nn.functional.normalize(torch.randn(5, 6, dtype=torch.float64), dim=-1)
    return EncoderTuner(
        dict(net.state_dict(keep_vars=True)),
        net,
        dict(net.named_parameters()),
        texts,
        Steps(count=2, lr=1e-2, weight_decay=0),
        scale=torch.tensor(10.0),
        selection=0.5,
        norms=[net.layers[1]],
        prior_strength=prior,
        **more,
    )


@pytest.mark.parametrize("prior", [None, 16.0])
def test_batch_norm_adapts_and_is_put_back(prior):
    torch.manual_seed(0)
    net = BatchNormNet().double().eval()
    before = {n: t.clone() for n, t in net.state_dict().items()}
    tuner = batch_norm_tuner(net, prior)
    one_by_one = torch.cat([tuner.logits(part, lambda index: each(index)[:1]) for part in pixels(2)[:1].split(1)])
    together = tuner.logits(pixels(2)[:1], each)
    torch.testing.assert_close(one_by_one, together, rtol=0, atol=0)
    assert all(torch.equal(before[n], t) for n, t in net.state_dict().items())
    assert not net.layers[1].training and "forward" not in vars(net.layers[1])


def test_the_first_step_with_batch_norm_sees_all_views():
    """What the published code does: one forward pass over all views, in training mode, and a step."""
    torch.manual_seed(0)
    net = BatchNormNet().double().eval()
    tuner, views = batch_norm_tuner(net, None), pixels(1)
    tuner.episodes.steps = Steps(count=1, lr=1e-2, weight_decay=0)
    ours = tuner.logits(views, each)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=0)
    net.train()
    logits = 10 * torch.nn.functional.normalize(net(views[0]), dim=-1) @ tuner.texts.T
    index = losses.select_views(logits, 0.5)
    each(index[None])[0](logits[index][None])[0].backward()
    optimizer.step()
    net.eval()
    expected = 10 * torch.nn.functional.normalize(net(views[0, :1]), dim=-1) @ tuner.texts.T
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


def test_samples_from_the_distribution_depend_on_an_images_seed_alone():
    logits, table = torch.randn(2, 3, 5), rewards(2)
    settings = objectives.Reinforce(samples=2, sampling="distribution")
    both = objectives.reinforce(table, settings, seeds=[7, 8])(logits)
    alone = objectives.reinforce(table[1:], settings, seeds=[8])(logits[1:])
    torch.testing.assert_close(both[1:], alone)


def test_meta_nets_shift_all_vectors_of_a_context_alike():
    net = prompts.MetaNet(32, 8)
    with torch.no_grad():
        moved = prompts.shifted(torch.zeros(4, 8), net, torch.randn(3, 32))
    assert moved.shape == (3, 4, 8) and (moved == moved[:, :1]).all()


def test_stepping_part_by_part_in_the_backward_pass_moves_no_bit(monkeypatch):
    from perdure.families.test_time import episodes

    def answer(least):
        monkeypatch.setattr(episodes, "LEAST", least)
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
        unused = torch.nn.Parameter(torch.ones(2))
        tuned = {**dict(net.named_parameters()), "unused": unused}
        x, y = torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])
        made = episodes.Episodes(tuned, tuned, Steps(count=4, lr=1e-2, weight_decay=0.1))
        first = {n: t.detach().clone() for n, t in tuned.items()}
        for parameter in tuned.values():
            parameter.grad = torch.full_like(parameter, float(least == 1))  # left behind; counts for nothing
        found = [made.run(lambda: nn.functional.cross_entropy(net(x), y), lambda: net(x)) for _ in range(2)]
        assert torch.equal(*found) and all(torch.equal(first[n], t) for n, t in tuned.items())
        assert len(made.parts) == (1 if least > 1000 else 5)
        return found[0]

    together, apart = answer(1 << 20), answer(1)
    assert torch.equal(together, apart)
