"""Test-time adaptation over streams of images, against the published code's arrays."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch
from torch import nn

from perdure.families.test_time import adapting, evidence, norms
from perdure.methods import adapt, cotta, dynaprompt, eata, sar, tda, tent, zero
from perdure.metrics import calibration, classification
from perdure.types import Example, Query


@pytest.fixture
def read(golden):
    """``read("tda")``: the arrays of a file by name; floats in float64, as tensors."""
    folder = golden("tta")

    def arrays(name: str) -> Arrays:
        with np.load(folder / f"{name}.npz") as file:
            return Arrays({key: _tensor(file[key]) for key in file.files})

    return arrays


class Arrays(dict):
    """The arrays of a file; `compared` notes which were looked at."""

    def __init__(self, found):
        super().__init__(found)
        self.used: set[str] = set()

    def __getitem__(self, key):
        self.used.add(key)
        return super().__getitem__(key)

    def runs(self) -> list[str]:
        """Names before the slash of ``<run>/settings``."""
        return [name.removesuffix("/settings") for name in self if name.endswith("/settings")]

    def compare(self, name: str, ours, *, within: float = 0.0) -> None:
        """Our values against an array, where the file has it."""
        if name not in self:
            return
        theirs = self[name]
        if not isinstance(theirs, torch.Tensor):
            assert list(ours) == list(theirs), name
            return
        ours = torch.from_numpy(np.asarray(ours)).to(theirs.dtype).reshape(theirs.shape)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=within, equal_nan=True, msg=lambda m: f"{name}: {m}")

    def all_used(self, *besides: str) -> None:
        """Every array was read or compared."""
        left = {name for name in set(self) - self.used if not name.startswith(besides or ("\0",))}
        assert not left, f"not compared: {sorted(left)}"


def _tensor(array: np.ndarray):
    if array.dtype.kind == "U":
        return [str(text) for text in array.ravel()]
    return torch.from_numpy(array.astype(np.float64) if array.dtype.kind == "f" else array)


# -- TDA ----------------------------------------------------------------------------------------------------


def _tda(settings=None) -> tda.Config:
    if settings is None:
        return tda.Config()
    on, capacity, alpha, beta, off_on, off_capacity, off_alpha, off_beta, low, high, mask_low, mask_high = (
        settings.tolist()
    )
    return tda.Config(
        positive=bool(on),
        positive_capacity=int(capacity),
        positive_alpha=alpha,
        positive_beta=beta,
        negative=bool(off_on),
        negative_capacity=int(off_capacity),
        negative_alpha=off_alpha,
        negative_beta=off_beta,
        entropy_window=(low, high),
        mask_window=(mask_low, mask_high),
    )


def _tda_run(a: Arrays, run: str, batch: int) -> None:
    config = _tda(a.get(f"{run}/settings"))
    a.used.add(f"{run}/settings")
    features = a[f"{run}/image_features"] if f"{run}/image_features" in a else a["image_features"]
    texts = a[f"{run}/class_features"] if f"{run}/class_features" in a else a["class_features"]
    features = features if features.ndim == 3 else features[:, None]
    kept = evidence.kept_of(features.shape[1], config.selection)
    state = tda.Votes(config, len(texts))
    seen = evidence.gather(features, texts, scale=config.logit_scale, kept=kept)
    parts = [
        state.votes(evidence.gather(part, texts, scale=config.logit_scale, kept=kept)) for part in features.split(batch)
    ]
    votes_for, votes_against = (torch.cat([part[i] for part in parts]) for i in (0, 1))
    final = seen.logits + votes_for - votes_against
    hn = evidence.normalized(seen.entropy, len(texts))
    low, high = config.entropy_window
    close = {
        "clip_logits": seen.logits,
        "entropy": seen.entropy,
        "entropy_normalized": hn,
        "final_logits": final,
        "positive_logits": votes_for,
        "negative_logits": votes_against,
        "mean_feature": seen.feature,
        "prob": seen.probabilities,
    }
    for name, ours in close.items():
        a.compare(f"{run}/{name}", ours, within=1e-9)
    a.compare(f"{run}/predicted", seen.label)
    a.compare(f"{run}/in_negative_window", (low < hn) & (hn < high))
    for name, cache in (("positive", state.positive), ("negative", state.negative)):
        if getattr(config, name):
            a.compare(f"{run}/{name}_cache", cache.numbers_by_class())
        elif f"{run}/{name}_cache" in a:
            assert bool((a[f"{run}/{name}_cache"] == -1).all())
    if f"{run}/accuracy" in a:
        targets = a[f"{run}/targets"] if f"{run}/targets" in a else a["targets"]
        a.compare(f"{run}/accuracy", 100.0 * (final.argmax(-1) == targets).double().mean(), within=1e-9)


@pytest.mark.parametrize("batch", [1, 3, 1000])
def test_tda_votes_as_published_in_batches_of_any_size(read, batch):
    a = read("tda")
    for run in dict.fromkeys([*a.runs(), "one_class"]):
        _tda_run(a, run, batch)
    a.all_used()


# -- ZERO ---------------------------------------------------------------------------------------------------


def _zero_runs(a: Arrays):
    """(run, features that filter, their classes, features that vote, their classes) of a file."""
    main, ties = a["main/view_features"], a["ties/view_features"]
    texts, tie_texts = a["main/class_features"], a["ties/class_features"]
    yield "main", main, texts, main, texts
    for run in ("ties", "last", "all"):
        yield run, ties, tie_texts, ties, tie_texts
    one = a["one_view/view_features"]
    yield "one_view", one, texts, one, texts
    yield "reward", main, texts, a["reward/view_features"], a["reward/class_features"]


def test_zero_votes_and_breaks_ties_as_published(read):
    a = read("zero")
    scale = float(a["scale"])
    for run, features, texts, voters, voter_texts in _zero_runs(a):
        filtering, voting = features @ texts.T, voters @ voter_texts.T
        kept = evidence.share_of(features.shape[1], float(a[f"{run}/gamma"]))
        given = {"scale": scale, "kept": kept}
        ours = zero.vote(scale * filtering, voting, **given)
        a.compare(f"{run}/votes", ours.votes)
        a.compare(f"{run}/kept", ours.kept)
        a.compare(f"{run}/tied", ours.tied.sum(-1))
        a.compare(f"{run}/predicted_greedy", ours.predicted)
        best = ours.log_share.argmax(-1)
        assert torch.equal(best, ours.predicted), "records rank as the vote does"
        for i, expected in enumerate(a[f"{run}/predicted"].tolist()):
            one = slice(i, i + 1)
            if expected == -1:
                with pytest.raises(zero.RecipeError, match="no view is left"):
                    zero.vote(scale * filtering[one], voting[one], tie_break="greedy_published", **given)
                continue
            published = zero.vote(scale * filtering[one], voting[one], tie_break="greedy_published", **given)
            assert int(published.predicted) == expected, run
            if f"{run}/scores" in a:
                torch.testing.assert_close(published.raised[0], a[f"{run}/scores"][i], rtol=0, atol=1e-9)
        if f"{run}/fallback" in a:
            a.compare(f"{run}/fallback", ~ours.decided)
        if f"{run}/votes_eps_half" in a:
            soft = zero.vote(scale * filtering, voting, temperature=2.0**-10, **given)
            a.compare(f"{run}/votes_eps_half", soft.votes, within=1e-9)
            a.compare(f"{run}/predicted_eps_half", soft.predicted)
    a.all_used()


# -- ADAPT --------------------------------------------------------------------------------------------------


def _same_classifier(a: Arrays, run: str, ours) -> None:
    for name in ("weight", "bias"):
        if f"{run}/{name}" in a:
            theirs, found = a[f"{run}/{name}"], getattr(ours.fitted, name)
            torch.testing.assert_close(found, theirs, rtol=1e-9, atol=1e-9 * float(theirs.abs().max()))
    a.compare(f"{run}/mean", ours.means, within=1e-9)


def _adapt_online(a: Arrays, run: str) -> None:
    size, alpha, scale = a[f"{run}/settings"].tolist()
    own = f"{run}/image_features" in a
    features = a[f"{run}/image_features"] if own else a["image_features"]
    texts = a[f"{run}/class_features"] if f"{run}/class_features" in a else a["class_features"]
    features = features if features.ndim == 3 else features[:, None]
    views = features.shape[1]
    kept = 1 if views == 1 else max(evidence.share_of(views, adapt.Config().selection), 1)
    seen = evidence.gather(features, texts, scale=adapt.Config().logit_scale, kept=kept)
    state = adapt.Gaussian(texts, int(size), alpha, scale, current=run.endswith("current"))
    half = len(features) // 2
    parts = [_rows(seen, slice(None, half)), _rows(seen, slice(half, None))]
    first = state.answers(parts[0])
    resumed = adapt.Gaussian(texts, int(size), alpha, scale, current=run.endswith("current"))
    resumed.load_state_dict(state.state_dict())
    second = resumed.answers(parts[1])
    a.compare(f"{run}/clip_logits", seen.logits, within=1e-9)
    a.compare(f"{run}/entropy", seen.entropy, within=1e-9)
    a.compare(f"{run}/predicted", seen.label)
    a.compare(f"{run}/updated", [*first.updated, *second.updated])
    a.compare(f"{run}/gaussian_logits", torch.cat([first.gaussian, second.gaussian]), within=1e-7)
    a.compare(f"{run}/final_logits", torch.cat([first.logits, second.logits]), within=1e-8)
    _same_classifier(a, run, resumed)
    a.compare(f"{run}/bank_index", resumed.numbers)
    a.compare(f"{run}/bank_entropy", resumed.entropy, within=1e-9)
    if f"{run}/bank_labels" in a:
        labels = torch.arange(len(texts))[:, None].expand_as(resumed.numbers)
        a.compare(f"{run}/bank_labels", labels.where(resumed.numbers >= 0, -1))


def _rows(seen: evidence.Evidence, rows: slice) -> evidence.Evidence:
    return evidence.Evidence(*(getattr(seen, f.name)[rows] for f in fields(seen)))


def _adapt_transductive(a: Arrays, run: str) -> None:
    size, alpha, scale = a[f"{run}/settings"].tolist()
    own = f"{run}/image_features" in a
    features = a[f"{run}/image_features"] if own else a["image_features"]
    texts = a[f"{run}/class_features"] if f"{run}/class_features" in a else a["class_features"]
    features = features if features.ndim == 3 else features[:, None]
    views = features.shape[1]
    kept = 1 if views == 1 else max(evidence.share_of(views, adapt.Config().selection), 1)
    seen = evidence.gather(features, texts, scale=adapt.Config().logit_scale, kept=kept, pool="logits")
    ours = adapt.transductive(seen, texts, int(size), alpha, scale)
    a.compare(f"{run}/predicted", seen.label)
    a.compare(f"{run}/gaussian_logits", ours.gaussian, within=1e-7)
    a.compare(f"{run}/final_logits", ours.logits, within=1e-8)
    _same_classifier(a, run, ours)


def test_adapt_answers_as_published_also_after_a_stop(read):
    a = read("adapt")
    for run in a.runs():
        (_adapt_transductive if run.startswith("transductive") else _adapt_online)(a, run)
    a.all_used("targets")


# -- TENT, EATA, SAR, CoTTA ---------------------------------------------------------------------------------


class ConvNet(nn.Module):
    """The toy network with batch norms: two convolutions, a mean over positions, a linear head."""

    def __init__(self, weights: dict[str, torch.Tensor]) -> None:
        super().__init__()
        stem, last, (classes, width) = (weights[n].shape for n in ("conv1.weight", "conv2.weight", "fc.weight"))
        self.conv1 = nn.Conv2d(stem[1], stem[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem[0])
        self.conv2 = nn.Conv2d(last[1], last[0], 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(last[0])
        self.fc = nn.Linear(width, classes)
        self.double().load_state_dict(weights, strict=False)

    def forward(self, x):
        x = self.bn1(self.conv1(x)).relu()
        return self.fc(self.bn2(self.conv2(x)).relu().mean((2, 3)))


class Tower(nn.Module):
    """The toy tower with layer norms, as a zero-shot CLIP sees it: cosines with fixed class features."""

    def __init__(self, weights: dict[str, torch.Tensor], scale: float) -> None:
        super().__init__()
        width, inputs = weights["embed.weight"].shape
        depth = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
        self.embed = nn.Linear(inputs, width)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"norm1": nn.LayerNorm(width), "fc": nn.Linear(width, width)}) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.scale, self.class_features = scale, weights["class_features"]
        self.double().load_state_dict({n: t for n, t in weights.items() if n != "class_features"})

    def forward(self, x):
        x = self.embed(x)
        for block in self.blocks:
            x = x + block["fc"](block["norm1"](x).relu())
        return self.scale * nn.functional.normalize(self.norm(x), dim=-1) @ self.class_features.T


class Toy:
    """A toy network of a file with a run's data, cut into batches."""

    def __init__(self, a: Arrays, run: str, *, model: str | None = None, scale: str = "ln_scale") -> None:
        self.kind = "ln" if "ln" in run.split("_") else "bn"
        model = model or f"{self.kind}_model"
        weights = {name.removeprefix(f"{model}/"): a[name] for name in a if name.startswith(f"{model}/")}
        self.net = ConvNet(weights) if self.kind == "bn" else Tower(weights, float(a[scale]))
        self.data = a["images"] if self.kind == "bn" else a["vectors"]
        if f"{run}/outputs" in a:
            self.data = self.data[: len(a[f"{run}/outputs"])]
        alone = "batch1" in run or len(a.get(f"{run}/after", ())) == len(self.data)
        sizes = [1] * len(self.data) if alone else a["sizes"].tolist()
        self.batches = self.data.split(_until(sizes, len(self.data)))

    def weights(self, names, descent) -> adapting.Weights:
        norms.follow(self.net, "batch")
        self.net.requires_grad_(False)
        found = dict(self.net.named_parameters())
        for name in names:
            found[name].requires_grad_()
        return adapting.Weights({name: found[name] for name in names}, descent)


def _until(sizes: list[int], total: int) -> list[int]:
    """The first sizes that make up a total."""
    kept: list[int] = []
    for size in sizes:
        if sum(kept) < total:
            kept.append(min(size, total - sum(kept)))
    return kept


def flat(tensors) -> torch.Tensor:
    return torch.cat([t.detach().flatten() for t in tensors])


def _follow(a: Arrays, run: str, toy: Toy, stepper, *, within: float, noted) -> None:
    """All batches: what is answered, the weights after each, and other things noted after each; also from a state."""
    outputs, after, rows = [], [], {name: [] for name in noted}
    for batch in toy.batches:
        outputs.append(stepper.answer(batch, []))
        stepper.load_state_dict(_copied(stepper.state_dict()))
        after.append(flat(stepper.weights.tuned.values()))
        for name, look in noted.items():
            rows[name].append(look())
    a.compare(f"{run}/outputs", torch.cat(outputs), within=within)
    if f"{run}/after" in a:
        a.compare(f"{run}/after", torch.stack(after), within=within)
    for name, found in rows.items():
        if f"{run}/{name}" in a:
            values = torch.stack(found) if isinstance(found[0], torch.Tensor) else torch.tensor(found)
            a.compare(f"{run}/{name}", values, within=within)


def _copied(state):
    if isinstance(state, torch.Tensor):
        return state.detach().clone()
    return {key: _copied(value) for key, value in state.items()} if isinstance(state, dict) else state


def test_tent_and_its_baselines_move_as_published(read):
    a = read("tent")
    for kind in ("bn", "ln"):
        toy = Toy(a, kind)
        norms.follow(toy.net, "stored")
        a.compare(f"{kind}_source_outputs", toy.net(toy.data).detach(), within=1e-9)
    toy = Toy(a, "bn")
    norms.follow(toy.net, "batch")
    a.compare("norm_outputs", torch.cat([toy.net(x) for x in toy.batches]).detach(), within=1e-9)
    assert torch.equal(toy.net.bn1.running_mean, a["bn_model/bn1.running_mean"]), "stored statistics stay"
    toy.net.train()
    for layer in (toy.net.bn1, toy.net.bn2):
        layer.track_running_stats = True
    for x in toy.batches:
        toy.net(x)
    a.compare("norm_running_mean_after", toy.net.bn1.running_mean, within=1e-9)
    a.compare("norm_running_var_after", toy.net.bn1.running_var, within=1e-9)
    for run in (name.removesuffix("/lr") for name in list(a) if name.endswith("/lr")):
        _tent(a, run)
    a.all_used()


def _tent(a: Arrays, run: str) -> None:
    toy, lr = Toy(a, run), float(a[f"{run}/lr"])
    adam = "adam" in run
    names = a[f"{run}/names"]
    assert list(norms.norm_parameters(toy.net)) == names
    steps = 2 if run.endswith("2steps") else int(run.rpartition("_")[2]) if "episodic" in run else 1
    descent = adapting.Descent(optimizer="adam" if adam else "sgd", lr=lr, nesterov="nesterov" in run)
    stepper = tent.Entropy(toy.net, toy.weights(names, descent), steps=steps, episodic="episodic" in run)
    _follow(a, run, toy, stepper, within=1e-7 if adam else 1e-9, noted={})


def test_eata_chooses_and_moves_as_published(read):
    a = read("eata")
    for run in a.runs():
        lr, momentum, e_margin, d_margin, alpha, steps, episodic = a[f"{run}/settings"].tolist()
        toy, names = Toy(a, run), a[f"{run}/names"]
        weights = toy.weights(names, adapting.Descent(optimizer="sgd", lr=lr, momentum=momentum))
        found = None
        if f"{run}/fisher" in a:
            clean = a["clean_images"] if toy.kind == "bn" else a["clean_vectors"]
            batches = clean.split(_until(a["clean_sizes"].tolist(), len(clean)))
            found = eata.fisher(toy.net, weights.tuned, batches)
            a.compare(f"{run}/fisher", flat(found.values()), within=1e-9)
            a.compare(f"{run}/anchor", flat(weights.first.values()), within=1e-9)
        stepper = eata.Reliable(
            toy.net,
            weights,
            e_margin=e_margin,
            d_margin=d_margin,
            alpha=alpha,
            fisher=found,
            steps=int(steps),
            episodic=bool(episodic),
        )
        classes = a[f"{run}/outputs"].shape[1]
        nothing = torch.full((classes,), torch.nan, dtype=torch.float64)
        counts = {"reliable": 0, "used": 0}

        def more(name, stepper=stepper, counts=counts):
            before, counts[name] = counts[name], getattr(stepper, name)
            return counts[name] - before

        noted = {
            "reliable": lambda more=more: more("reliable"),
            "used": lambda more=more: more("used"),
            "mean_probs": lambda s=stepper, nothing=nothing: nothing if s.mean is None else s.mean,
        }
        _follow(a, run, toy, stepper, within=1e-9, noted=noted)
    a.all_used()


def test_sar_moves_and_recovers_as_published(read):
    a = read("sar")
    clean = sorted({name.split("/")[0] for name in a if name.split("/")[0].endswith("_clean")})
    for run in [*a.runs(), *clean]:
        own = run.removesuffix("_clean")
        lr, momentum, e_margin, rho, steps, episodic = a[f"{own}/settings"].tolist()
        toy = Toy(a, run, scale="ln_sharp_scale" if own == "ln_reset" else "ln_scale")
        names = a[f"{own}/names"]
        assert list(norms.norm_parameters(toy.net, skip=norms.PUBLISHED_TOP)) == names
        assert list(norms.norm_parameters(toy.net, skip=None)) == names
        stepper = sar.Sharpness(
            toy.net,
            toy.weights(names, adapting.Descent(optimizer="sgd", lr=lr, momentum=momentum)),
            e_margin=e_margin,
            rho=rho,
            recovery="clean" if run != own else "published",
            steps=int(steps),
            episodic=bool(episodic),
        )
        count = {"restored": 0}

        def resets(stepper=stepper, count=count):
            before, count["restored"] = count["restored"], stepper.restored
            return count["restored"] - before

        noted = {
            "ema": lambda s=stepper: torch.tensor(torch.nan if s.average is None else s.average, dtype=torch.float64),
            "resets": resets,
            "momentum_buffer": lambda s=stepper: _momentum(s.weights),
        }
        _follow(a, run, toy, stepper, within=1e-9, noted=noted)
    a.all_used()


def _momentum(weights: adapting.Weights) -> torch.Tensor:
    states = [weights.optimizer.state[p] for p in weights.tuned.values()]
    return flat(
        s["momentum_buffer"] if "momentum_buffer" in s else torch.full_like(p, torch.nan)
        for s, p in zip(states, weights.tuned.values())
    )


def test_cotta_teaches_and_restores_as_published(read):
    a = read("cotta")
    for run in a.runs():
        _cotta(a, run)
    a.all_used()


def _cotta(a: Arrays, run: str) -> None:
    lr, probability, momentum, threshold, steps, episodic = a[f"{run}/settings"].tolist()
    steps, symmetric = int(steps), run.startswith("imagenet")
    model = "bn_unsure_model" if run.endswith("unsure") else None
    toy, names = Toy(a, run, model=model), a[f"{run}/names"]
    assert list(cotta.weights_and_biases(toy.net)) == names
    sgd = symmetric or run.endswith("noaug")
    weights = toy.weights(names, adapting.Descent(optimizer="sgd" if sgd else "adam", lr=lr, nesterov=sgd))
    stepper = cotta.Taught(
        toy.net,
        toy.net,
        weights,
        loss="symmetric" if symmetric else "teacher",
        teacher_momentum=momentum,
        restore_probability=probability,
        threshold=threshold,
        steps=steps,
        episodic=bool(episodic),
    )
    within = 1e-6 if run == "cifar_ln" else 1e-9
    size = sum(t.numel() for t in weights.tuned.values())
    rows = {name: [] for name in ("outputs", "student", "teacher", "anchor_confidence", "augmented")}
    for x, bits in zip(toy.batches, a[f"{run}/restored_bits"].numpy()):
        masks = torch.from_numpy(np.unpackbits(bits)[: size * steps].astype(bool)).view(steps, size)
        before = stepper.augmented
        given = [dict(zip(names, _cut(one, weights.tuned.values()))) for one in masks]
        rows["outputs"].append(stepper.adapt(x, lambda step: _shift, lambda step, given=given: _given(given[step])))
        stepper.load_state_dict(_copied(stepper.state_dict()))
        rows["student"].append(flat(weights.tuned.values()))
        rows["teacher"].append(flat(stepper.teacher.values()))
        rows["anchor_confidence"].append(torch.tensor(stepper.confidence, dtype=torch.float64))
        made = 32 * steps if not symmetric else stepper.augmented - before  # the code for CIFAR throws some away
        rows["augmented"].append(torch.tensor(made))
        assert stepper.augmented - before == (32 * steps if stepper.confidence < threshold else 0)
    a.compare(f"{run}/outputs", torch.cat(rows.pop("outputs")), within=within)
    for name, found in rows.items():
        kept = len(a[f"{run}/{name}"])
        a.compare(f"{run}/{name}", torch.stack(found)[-kept:], within=within)


def _shift(x: torch.Tensor, k: int) -> torch.Tensor:
    """The vectors' augmentation number k."""
    return x * (1 + 0.02 * (k - 16)) + 0.01 * k


def _cut(bits: torch.Tensor, like) -> list[torch.Tensor]:
    like = list(like)
    return [part.view(t.shape) for part, t in zip(bits.split([t.numel() for t in like]), like)]


def _given(masks: dict[str, torch.Tensor]):
    return lambda name, weight: masks[name]


# -- DynaPrompt ---------------------------------------------------------------------------------------------


class ToyPrompts:
    """The toy text side: class features under contexts."""

    def __init__(self, a: Arrays) -> None:
        self.a, self.b, self.e, self.pos = a["A"], a["B"], a["E"], a["pos"]

    def _made(self, contexts):
        u = (contexts * self.pos[:, None]).mean(1) @ self.a
        return nn.functional.normalize((u[:, None] + self.e @ self.b).tanh(), dim=-1)

    def features(self, contexts):
        return self._made(contexts).detach()

    def backward(self, contexts, gradient):
        self._made(contexts).backward(gradient)


def test_dynaprompt_chooses_and_tunes_as_published_also_after_a_stop(read):
    a = read("dynaprompt")
    for run in a.runs():
        lr, decay, share, prompts, append = a[f"{run}/settings"].tolist()
        views, start = a["view_features"], a["init_ctx"]
        own = a["start_ctx"] if run.startswith("own_start") else torch.zeros(int(prompts), *start.shape).double()

        def pool(own=own, start=start, lr=lr, decay=decay, append=append, share=share, views=views):
            return dynaprompt.Pool(
                ToyPrompts(a),
                start,
                own,
                scale=float(a["scale"]),
                kept=evidence.share_of(views.shape[1], share),
                lr=lr,
                weight_decay=decay,
                append=bool(append),
            )

        state = pool()
        rows = {name: [] for name in ("ctx", "order", "use", "entropy", "gap", "chosen", "output")}
        for i, one in enumerate(views):
            if i == len(views) // 2:
                saved = _copied(state.state_dict())
                state = pool()
                state.load_state_dict(saved)
            seen = state.answer(one)
            padded = [*seen.chosen, *[-1] * int(prompts + 1 - len(seen.chosen))]
            made = {"ctx": state.residuals.clone(), "order": torch.tensor(state.order), "use": torch.tensor(state.use)}
            made |= {"entropy": seen.entropy, "gap": seen.gap, "chosen": torch.tensor(padded), "output": seen.logits}
            for name, value in made.items():
                rows[name].append(value)
        within = {"entropy": 1e-6, "gap": 1e-6, "ctx": 1e-5, "output": 1e-5}
        for name, found in rows.items():
            a.compare(f"{run}/{name}", torch.stack(found), within=within.get(name, 0.0))
    a.all_used()


# -- calibration --------------------------------------------------------------------------------------------


def _records(logits: torch.Tensor, targets: torch.Tensor) -> list[dict]:
    examples = [Example(id=str(i), inputs={}, target=int(t)) for i, t in enumerate(targets)]
    names = tuple(f"class {c}" for c in range(logits.shape[1]))
    return classification.records(logits, examples, Query(kind="classify", candidates=names))


def test_calibration_is_measured_as_published_from_records(read):
    a = read("calibration")
    for case in (name.removesuffix("/logits") for name in list(a) if name.endswith("/logits")):
        rows = _records(a[f"{case}/logits"], a[f"{case}/targets"])
        sure = np.array([r["confidence"] for r in rows])
        right = np.array([r["predicted"] == r["target"] for r in rows])
        measured = {
            "confidence": sure,
            "correct": right,
            "accuracy": classification.accuracy(rows),
            "ece_10": calibration.expected_error(sure, right, bins=10),
            "ece_15": calibration.ece(rows) / 100,
            "ece_20": calibration.ece_20(rows) / 100,
            "mce_15": calibration.mce(rows) / 100,
            "ada_ece_15_split": calibration.adaptive_ece(rows) / 100,
            "ada_ece_15_interpolated": calibration.interpolated_error(sure, right),
            "brier": calibration.brier(rows),
            "nll": calibration.nll(rows),
            "mean_confidence": sure.mean(),
            "overconfidence": calibration.overconfidence(rows) / 100,
            "aurc": calibration.aurc(rows) / 100,
        }
        for name, ours in measured.items():
            a.compare(f"{case}/{name}", ours, within=1e-9)
        a.compare(f"{case}/bin_counts_15", np.bincount(calibration.bin_of(sure), minlength=15))
        for name, ours in (("auroc", calibration.auroc_wrong(rows)), ("fpr95", calibration.fpr95_wrong(rows))):
            assert (ours is None) == (f"{case}/{name}_misclassification" not in a)
            if ours is not None:
                a.compare(f"{case}/{name}_misclassification", ours / 100, within=1e-9)
    inside, outside = (a[f"ood/confidence_{side}"].numpy() for side in ("in", "out"))
    a.compare("ood/auroc", calibration.auroc(inside, outside), within=1e-9)
    a.compare("ood/fpr95", calibration.false_positives(inside, outside), within=1e-9)
    a.compare("ood/aupr_in", calibration.average_precision(inside, outside), within=1e-9)
    a.compare("ood/aupr_out", calibration.average_precision(-outside, -inside), within=1e-9)
    a.all_used()


def test_every_file_is_covered(golden):
    covered = {"tda", "zero", "tent", "eata", "sar", "cotta", "adapt", "dynaprompt", "calibration"}
    assert {path.stem for path in golden("tta").glob("*.npz")} <= covered
