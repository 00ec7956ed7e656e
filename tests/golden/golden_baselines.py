"""One update of each rehearsal baseline against the published code (float64)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from golden_gates import check_after, close
from golden_runs import check_memory, restore
from recorded import Recorded, StoredOrder, load, prefixed, tensor_task
from torch import Tensor, nn
from torch.nn import functional as F

from perdure.families import rehearsal
from perdure.families.rehearsal import gradients
from perdure.methods import (
    agem_r as agem_r_method,
)
from perdure.methods import (
    cls_er as cls_er_method,
)
from perdure.methods import (
    der as der_method,
)
from perdure.methods import (
    derpp as derpp_method,
)
from perdure.methods import (
    er as er_method,
)
from perdure.methods import (
    er_ace as er_ace_method,
)
from perdure.methods import (
    ewc_online as ewc_method,
)
from perdure.methods import (
    gem as gem_method,
)
from perdure.methods import (
    icarl as icarl_method,
)
from perdure.methods import (
    lwf_net as lwf_method,
)
from perdure.methods import (
    si as si_method,
)
from perdure.models.mlp import Mlp
from perdure.types import Query


def er(file: Path) -> None:
    one_step(er_method, er_method.Er, file)


def der(file: Path) -> None:
    a = load(file)
    one_step(der_method, der_method.Der, file, alpha=float(a["hp.alpha"]))


def derpp(file: Path) -> None:
    a = load(file)
    one_step(derpp_method, derpp_method.Derpp, file, alpha=float(a["hp.alpha"]), beta=float(a["hp.beta"]))


def agem_r(file: Path) -> None:
    one_step(agem_r_method, agem_r_method.AgemR, file)
    a = load(file)
    net = mlp(a)
    parameters = list(net.parameters())
    drawn = a["buffer_choice0"]
    g = gradients.gradient(loss_of(net, a["x"], a["labels"]), parameters)
    reference = gradients.gradient(
        loss_of(net, a["buf_before.examples"][drawn], a["buf_before.labels"][drawn]), parameters
    )
    close(g, a["grad_current"])
    close(reference, a["grad_buffer"])
    close(g @ reference, a["dot"])
    followed = gradients.without_conflict(g, reference)
    assert torch.equal(followed, g) == (float(a["dot"]) >= 0)


def er_ace(file: Path) -> None:
    a = load(file)

    def prepare(method: Any) -> None:
        method.tasks = 1
        method.newest = torch.tensor(int(a["seen_so_far_before"].max()))

    one_step(er_ace_method, er_ace_method.ErAce, file, prepare=prepare, cosine_head=False)


def cls_er(file: Path) -> None:
    a = load(file)

    def prepare(method: Any) -> None:
        method.plastic.load_state_dict(prefixed(a, "plastic."))
        method.stable.load_state_dict(prefixed(a, "stable."))
        method.steps = torch.tensor(int(a["global_step_before"]))
        method.draws.queues = {"plastic": [a["ema_uniforms"][:1]], "stable": [a["ema_uniforms"][1:]]}

    method = one_step(
        cls_er_method,
        cls_er_method.ClsEr,
        file,
        prepare=prepare,
        reg_weight=float(a["reg_weight"]),
        plastic_frequency=float(a["plastic_freq"]),
        plastic_alpha=float(a["plastic_alpha"]),
        stable_frequency=float(a["stable_freq"]),
        stable_alpha=float(a["stable_alpha"]),
    )
    for name in ("plastic", "stable"):
        for key, value in prefixed(a, f"{name}_after.").items():
            close(getattr(method, name).state_dict()[key], value, f"{name} {key}")


def ewc_online(file: Path) -> None:
    for kind in ("running_statistics", "single_images"):
        a = load(file)
        settings = ewc_method.Config(
            lr=float(a["lr"]),
            batch_size=int(a["batch_size"]),
            e_lambda=float(a["e_lambda"]),
            gamma=float(a["gamma"]),
            fisher=kind,  # type: ignore[arg-type]
        )
        method = ewc_method.EwcOnline(settings, net=mlp(a))
        for t in (0, 1):
            # Each recorded task is one step on a batch of its own, then the Fisher pass over the task's images.
            runtime = StoredOrder()
            x = torch.tensor(a[f"task{t}.x"]), torch.tensor(a[f"task{t}.labels"])
            method.remember, seen = lambda data: None, method.remember
            method.learn(tensor_task(a[f"task{t}.step_x"], a[f"task{t}.step_labels"], classes=4), runtime)
            method.remember = seen
            values = runtime.values[0]
            close(values["loss"] - settings.e_lambda * values["penalty"], a[f"task{t}.loss"])
            close(values["penalty"], a[f"task{t}.penalty"])
            for name, value in prefixed(a, f"task{t}.after_step.").items():
                close(method.net.state_dict()[name], value, name)
            method.remember(rehearsal.Images(images=x[0], labels=x[1]))
            close(method.anchor["fisher"], a[f"task{t}.fisher"])
            close(method.anchor["parameters"], a[f"task{t}.checkpoint"])


def gem(file: Path) -> None:
    a = load(file)
    g, memories = torch.tensor(a["gradient"]), torch.tensor(a["memories"])
    found = gem_method.project(g, memories, margin=float(a["margin"]), eps=float(a["eps"]))
    close(found, a["gem_projected"], rtol=1e-6, atol=1e-8)  # the reference's solver is iterative
    close(gradients.without_conflict(g, torch.tensor(a["agem_reference"])), a["agem_projected"])


def si(file: Path) -> None:
    a = load(file)
    settings = si_method.Config(lr=float(a["lr"]), batch_size=len(a["t0s0.x"]), c=float(a["c"]), xi=float(a["xi"]))
    method = si_method.Si(settings, net=mlp(a))
    t = 0
    while f"t{t}s0.x" in a:
        names = sorted({n.split(".")[0] for n in a if n.startswith(f"t{t}s")})
        runtime = _Watching(method)
        x, labels = (np.concatenate([a[f"{n}.{what}"] for n in names]) for what in ("x", "labels"))
        method.learn(tensor_task(x, labels, classes=4), runtime)
        for n, values, (weights, _) in zip(names, runtime.values, runtime.seen, strict=True):
            close(values["loss"], a[f"{n}.loss"])
            for key, value in prefixed(a, f"{n}.after.").items():
                close(weights[key], value, f"{n} {key}")
        close(runtime.seen[-1][1], a[f"t{t}.small_omega"])
        close(method.path["importance"], a[f"t{t}.big_omega"])
        t += 1
    assert t > 1


class _Watching(StoredOrder):
    """Also keeps the weights and the path integral after each step."""

    def __init__(self, method: si_method.Si) -> None:
        super().__init__()
        self.method, self.seen = method, []

    def log(self, event: str, **values) -> None:
        super().log(event, **values)
        if event == "step":
            weights = rehearsal.network_state(self.method.net)
            self.seen.append((weights, self.method.path["gain"].clone()))


def lwf(file: Path) -> None:
    a = load(file)
    temperature = float(a["softmax_temp"])
    found = lwf_method.softened_cross_entropy(torch.tensor(a["kl_old"]), torch.tensor(a["kl_new"]), 2.0)
    close(found, a["kl_T2"])
    net = mlp(a)
    method = lwf_method.LwfNet(lwf_method.Config(alpha=float(a["alpha"]), temperature=temperature), net=net)
    net.train()
    values = method.losses(
        torch.tensor(a["x"]),
        torch.tensor(a["labels"]),
        torch.tensor(a["old_logits"]),
        past=int(a["n_past"]),
        seen=int(a["n_seen"]),
    )
    close(values["loss"], a["loss"])
    rehearsal.descend(values["loss"], rehearsal.sgd(net, float(a["lr"])), StoredOrder())
    check_after(net, a)


def icarl(file: Path) -> None:
    a = load(file)
    net = SmallLinear(a)
    labels = torch.tensor(a["loss_labels"])
    x, old = torch.tensor(a["loss_x"]), torch.tensor(a["old_sigmoid"])
    method = icarl_method.Icarl(icarl_method.Config(weight_decay=0.0), net=net)
    decayed = icarl_method.Icarl(icarl_method.Config(weight_decay=1.0), net=net)
    close(method.loss(x, labels, None, past=0), a["loss_task0"])
    close(method.loss(x, labels, old, past=int(a["n_past"])), a["loss_task1"])
    close(decayed.loss(x, labels, None, past=0) - method.loss(x, labels, None, past=0), a["wd_term"])
    kept = len(a["herd_buffer_labels"])
    method = icarl_method.Icarl(icarl_method.Config(buffer_size=kept), net=net)
    data = rehearsal.Images(images=torch.tensor(a["herd_x"]), labels=torch.tensor(a["herd_labels"]))
    method.choose_exemplars(data, seen=len(set(a["herd_labels"].tolist())))
    stored = method.memory.everything()
    assert stored is not None
    close(stored["label"], a["herd_buffer_labels"], exact=True)
    close(stored["image"], a["herd_x"][a["herd_index"]], exact=True)
    close(stored["image"], a["herd_buffer"])
    means = method.class_means()
    close(torch.stack([means[label] for label in sorted(means)]), a["class_means"])
    query = Query(kind="classify", candidates=tuple(map(str, range(a["ncm_scores"].shape[1]))))
    with torch.no_grad():
        scores = method.predictor(query)({"image": torch.tensor(a["ncm_x"])})
    close(scores, a["ncm_scores"])


class SmallLinear(nn.Module):
    """The recorded network: ``classifier(relu(l x) + 0.01)``."""

    classes = 6

    def __init__(self, a: dict) -> None:
        super().__init__()
        self.l = nn.Linear(*a["p.l.weight"].shape[::-1])
        self.classifier = nn.Linear(*a["p.classifier.weight"].shape[::-1])
        self.double().load_state_dict(prefixed(a, "p."))

    def features(self, x: Tensor) -> Tensor:
        return torch.relu(self.l(x.flatten(1))) + 0.01

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


def one_step(module: Any, cls: type, file: Path, *, prepare: Any = None, **settings: Any) -> Any:
    """Learn a task of one batch with the recorded draws; loss, weights and memory must be the recorded ones."""
    a = load(file)
    draws = sorted(name for name in a if name.startswith("buffer_choice"))
    config = module.Config(
        lr=float(a["lr"]),
        batch_size=len(a["x"]),
        minibatch_size=len(a[draws[0]]),
        buffer_size=len(a["buf_before.examples"]),
        **settings,
    )
    method = cls(config, net=mlp(a))
    restore(method.memory, a)
    method.draws = Recorded(
        choices={"replay": [a[name] for name in draws]}, reservoir=(a["reservoir_high"], a["reservoir_draw"])
    )
    if prepare is not None:
        prepare(method)
    runtime = StoredOrder()
    method.learn(tensor_task(a["x"], a["labels"], classes=a["p.head.bias"].shape[0]), runtime)
    close(runtime.values[0]["loss"], a["loss"])
    check_after(method.net, a)
    check_memory(method.memory, a)
    assert method.draws.left() == 0
    return method


def mlp(a: dict) -> Mlp:
    hidden, inputs = a["p.fc1.weight"].shape
    net = Mlp(inputs, hidden, a["p.head.bias"].shape[0]).double()
    net.load_state_dict(prefixed(a, "p."))
    return net


def loss_of(net: nn.Module, x: Any, labels: Any) -> Tensor:
    return F.cross_entropy(net(torch.tensor(x)), torch.tensor(labels))
