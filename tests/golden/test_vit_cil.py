"""Class-incremental methods on a ViT or a CLIP against the published code, one golden file after another."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.data import default_collate

from perdure.families.class_incremental import first_session
from perdure.families.clip import classifier
from perdure.layers import merging, ridge
from perdure.layers.prompts import orthogonal_rows
from perdure.methods.bofa import Bofa
from perdure.methods.bofa.moments import free_directions
from perdure.methods.coda_prompt import CodaPrompt
from perdure.methods.dualprompt import Dualprompt
from perdure.methods.dualprompt_coda import DualpromptCoda
from perdure.methods.l2p import L2p
from perdure.methods.l2p_prefix import L2pPrefix
from perdure.methods.rail import Rail
from perdure.methods.ranpac import RIDGES, Ranpac
from perdure.metrics import classification, continual
from perdure.models import vit
from perdure.models.clip import ClipTransform
from perdure.models.vit import weights
from perdure.runtime import Runtime
from perdure.types import Example, Examples, Query, Task


@pytest.fixture
def vectors(golden):
    return lambda name: arrays(golden("vit_cil") / f"{name}.npz")


def arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def close(found, wanted, tolerance: float = 1e-9) -> None:
    """Within `tolerance` of the largest number of the reference."""
    found = found.detach().double().numpy() if isinstance(found, Tensor) else np.asarray(found, dtype=float)
    wanted = np.asarray(wanted, dtype=float)
    assert found.shape == wanted.shape
    largest = max(float(np.abs(wanted).max(initial=0)), 1e-300)
    worst = float(np.abs(found - wanted).max(initial=0))
    assert worst <= tolerance * largest, f"{worst / largest:.2e} relative to {largest:.3g}"


def part(data: dict[str, np.ndarray], prefix: str) -> dict[str, Tensor]:
    """The tensors below a prefix, by the rest of their names."""
    return {n.removeprefix(prefix): torch.from_numpy(v.copy()) for n, v in data.items() if n.startswith(prefix)}


# -- merging ------------------------------------------------------------------------------------------------


def states(data) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    count = len({name.split("/")[0] for name in data if name.startswith("ft")})
    return part(data, "pre/"), [part(data, f"ft{i}/") for i in range(count)]


def same_state(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        close(found[name], tensor.numpy(), 1e-12)


def test_task_vectors_are_merged_by_size_sum_and_election(vectors):
    data = vectors("merging")
    pretrained, tuned = states(data)
    taus = [merging.task_vector(pretrained, state) for state in tuned]
    assert set(taus[0]) == set(data["vector_keys"])
    merged = None
    for after, tau in enumerate(taus, 1):
        merged = merging.largest(merged, tau)
        if f"magmax_after{after}/fc.weight" in data:
            step = merging.add_vector(pretrained, merged, 0.5)
            close(step["fc.weight"], data[f"magmax_after{after}/fc.weight"], 1e-12)
    assert merged is not None
    same_state(merging.add_vector(pretrained, merged, 0.5), part(data, "magmax/"))
    same_state(merging.add_vector(pretrained, merged, 1.0), part(data, "magmax1/"))
    same_state(merging.add_vector(pretrained, merging.summed(taus), 1 / len(taus)), part(data, "sum/"))
    close(merging.ties_of_rows(torch.from_numpy(data["ties_flat_in"])), data["ties_flat_out"], 1e-12)
    same_state(merging.add_vector(pretrained, merging.ties(taus), 0.55), part(data, "ties/"))


def test_weights_are_interpolated_and_averaged(vectors):
    data = vectors("merging")
    pretrained, tuned = states(data)
    buffers = ("running_mean", "running_var", "num_batches_tracked", "mask")
    names = [name for name in pretrained if name.split(".")[-1] not in buffers]
    found = sorted({name.split("/")[0] for name in data if name.startswith("wise_alpha")})
    assert found
    for case in found:
        weight = float(case.removeprefix("wise_alpha"))
        wanted = part(data, f"{case}/")
        mixed = merging.interpolate(pretrained, tuned[0], weight, names=names)
        same_state({n: mixed[n] for n in wanted}, wanted)
    start = {n: pretrained[n] for n in names}
    average = with_base = start
    for count, state in enumerate(tuned, 1):
        newest = {n: state[n] for n in names}
        average = merging.running_average(average, newest, count)
        with_base = merging.interpolate(start, merging.running_average(with_base, newest, count), 0.9)
    same_state(pretrained | average, part(data, "running_average/"))  # buffers stay
    same_state(pretrained | with_base, part(data, "running_wise_alpha0.9/"))


# -- RanPAC -------------------------------------------------------------------------------------------------


def test_the_ridge_is_the_one_with_the_least_error_on_what_was_held_back(vectors):
    data = vectors("ranpac_ridge")
    cases = sorted({name.split("/")[0] for name in data})
    assert cases
    for case in cases:
        features = torch.from_numpy(data[f"{case}/features"])
        targets = ridge.one_hot(torch.from_numpy(data[f"{case}/labels"]), int(data[f"{case}/n_classes"]))
        fit = int(len(features) * 0.8)
        assert fit == int(data[f"{case}/n_fit"])
        errors = ridge.errors(features, targets, RIDGES, fit=fit, expand=lambda rows: rows)
        wanted = data[f"{case}/val_mse"]
        close(errors[4:], wanted[4:], 1e-9)  # below 1e-4 official sums have fewer digits
        close(errors[:4], wanted[:4], 1e-4)
        chosen = ridge.smallest(errors, RIDGES)
        assert wanted[RIDGES.index(chosen)] <= wanted.min() * (1 + 1e-9), case


class Raw(ClipTransform):
    """Pixels in 0..1 without rounding to float32."""

    def normalize(self, pixels: Tensor) -> Tensor:
        return pixels.double() / 255


class AsRecorded(Runtime):
    """Orders and draws as the published code made them."""

    def __init__(self, orders=None, normals=None, uniforms=None) -> None:
        super().__init__(device="cpu", quiet=True)
        self.orders, self.normals = dict(orders or {}), dict(normals or {})
        self.events: list[tuple[str, dict]] = []

    def permutation(self, n: int, *key) -> Tensor:
        order = torch.from_numpy(np.asarray(self.orders[key] if key in self.orders else self.orders[key[0]][key[1]]))
        order = order[order >= 0]
        assert sorted(order.tolist()) == list(range(n)), key
        return order

    def normal(self, shape, *key, dtype=torch.float32) -> Tensor:
        drawn = torch.from_numpy(self.normals[key])
        assert tuple(drawn.shape) == tuple(shape), key
        return drawn

    def log(self, event: str, **values) -> None:
        self.events.append((event, values))

    def losses(self) -> list[float]:
        return [float(values["loss"]) for event, values in self.events if event == "step"]


def tiny_vit(vectors) -> vit.Vit:
    data = vectors("vit_state")
    state = {name: torch.from_numpy(v).double() for name, v in data.items() if not name.startswith("meta_")}
    network = weights.build(state, heads=int(data["meta_heads"]), eps=1e-6, where="vit_state")
    assert network.shape.image_size == int(data["meta_img"])
    return vit.Vit(network, transform=Raw(size=network.shape.image_size))


def class_tasks(images: dict[str, np.ndarray], order: np.ndarray, increments: np.ndarray) -> list[Task]:
    """Tasks in which labels stand in the order of arrival, and images by label, then by file."""
    new = np.argsort(order)
    tasks, first = [], 0
    for index, count in enumerate(increments.tolist()):
        splits = {}
        for split in ("train", "test"):
            labels = new[images[f"{split}_labels"]]
            chosen = [i for c in range(first, first + count) for i in np.flatnonzero(labels == c)]
            splits[split] = Examples.of(
                [example(images[f"{split}_images"][i], labels[i], f"{split} {i}") for i in chosen]
            )
        names = tuple(str(c) for c in range(first, first + count))
        tasks.append(Task(index=index, name=str(index), kind="classify", candidates=names, offset=first, **splits))
        first += count
    return tasks


def example(image: np.ndarray, label: int, name: str) -> Example:
    return Example(id=name, inputs={"image": image}, target=int(label))


def answers(method, tasks: list[Task], seen: int, size: int = 1000) -> Tensor:
    """Scores of the tests of the first tasks for all classes seen, in batches of `size`."""
    query = Query(kind="classify", candidates=tuple(str(c) for c in range(seen)), offset=0)
    predict = method.predictor(query)
    examples = [e for task in tasks for e in task.test]
    items = [method.preprocess(e, False) for e in examples]
    with torch.no_grad():
        return torch.cat([predict(default_collate(items[i : i + size])) for i in range(0, len(items), size)])


@pytest.mark.parametrize("name", ["ranpac_e2e", "ranpac_norp", "ranpac_first_session"])
def test_ranpac_task_by_task(vectors, name):
    data, images = vectors(name), vectors("ranpac_e2e")
    tuned = "petl_losses" in data
    settings: dict = {"projection_dim": int(data["M"])}
    if tuned:
        adapters = {n: v for n, v in data.items() if n.startswith("init_adapter/")}
        settings |= {"first_session": "adapter", "augment": "none", "dropout": 0.0}
        settings |= {n: data[n].item() for n in ("epochs", "lr", "weight_decay")}
        settings |= {"session_batch_size": int(data["batch_size"]), "adapter_scale": data["adapter_scale"].item()}
        settings |= {"bottleneck": next(v.shape[0] for n, v in adapters.items() if "down_proj.weight" in n)}
    method = Ranpac(Ranpac.Config(**settings), backbone=tiny_vit(vectors))
    tasks = class_tasks(images, data["class_order"], data["increments"])
    every = int(sum(data["increments"]))
    if not tuned:
        encoded = classifier.raw_image_features(method.backbone, torch.from_numpy(images["train_images"]).movedim(3, 1))
        close(encoded, images["train_features"], 1e-9)
    for task in tasks:
        t, seen = task.index, task.offset + len(task.candidates)
        runtime = AsRecorded({("holdout",): data[f"task{t}/cp_order"]})
        runtime.task = t
        if t == 0 and settings["projection_dim"]:
            runtime.normals[("projection",)] = data["W_rand"]
        elif t == 0:
            runtime.normals[("projection",)] = np.zeros((method.backbone.dim, 0))
        if tuned and t == 0:
            runtime.orders["session"] = dict(enumerate(data["petl_order"]))
            start_as_recorded(method, data)
        before = ridge.Sums(*(None if s is None else s.clone() for s in (method.sums.gram, method.sums.cross)))
        method.learn(task, runtime)
        if tuned and t == 0:
            close(torch.tensor(runtime.losses()), data["petl_losses"], 1e-6)  # logged in float32
            for block, adapter in enumerate(method.session.tuned):
                for ours, theirs in (("down", "down_proj"), ("up", "up_proj")):
                    for kind in ("weight", "bias"):
                        wanted = data[f"petl_after/convnet.blocks.{block}.adaptmlp.{theirs}.{kind}"]
                        close(getattr(getattr(adapter, ours), kind), wanted, 1e-9)
        wanted, recorded = data[f"task{t}/ridge_val_mse"], float(data[f"task{t}/ridge"])
        assert wanted[RIDGES.index(method.ridges[-1])] <= wanted.min() * (1 + 1e-4)
        if method.ridges[-1] != recorded:  # a tie: go on with theirs
            method.weights = method.sums.solve(recorded)
        for name_, tensor in (("G", method.sums.gram), ("Q", method.sums.cross)):
            if f"task{t}/{name_}" in data:
                close(ridge.widened(tensor, every) if name_ == "Q" else tensor, data[f"task{t}/{name_}"], 1e-9)
        loose = 1e-5 if recorded < 1e-4 else 1e-6
        close(method.weights.T, data[f"task{t}/W_out"], loose)
        scores = answers(method, tasks[: t + 1], seen)
        close(scores, data[f"task{t}/logits"], loose)
        assert scores.argmax(1).tolist() == data[f"task{t}/pred"].tolist()
        truth = data[f"task{t}/true"]
        assert [e.target for task_ in tasks[: t + 1] for e in task_.test] == truth.tolist()
        right = 100 * np.mean(data[f"task{t}/pred"] == truth)
        assert round(float(right), 2) == pytest.approx(float(data[f"task{t}/acc_total"]), abs=0.011)
        assert before.gram is None or before.gram.shape == method.sums.gram.shape


def start_as_recorded(method, data) -> None:
    """The session begins with the recorded adapters and head."""

    def draw(_runtime) -> None:
        for block, adapter in enumerate(method.session.tuned):
            prefix = f"init_adapter/blocks.{block}.adaptmlp."
            for ours, theirs in (("down", "down_proj"), ("up", "up_proj")):
                for kind in ("weight", "bias"):
                    tensor = getattr(getattr(adapter, ours), kind)
                    tensor.copy_(torch.from_numpy(data[f"{prefix}{theirs}.{kind}"]))

    class Head(first_session.CosineHead):
        def draw(self, _generator) -> None:
            self.weight.copy_(torch.from_numpy(data["init_fc/weight"]))

    method.session.draw, method.session.head = draw, Head


# -- prompts ------------------------------------------------------------------------------------------------


def file_tasks(data: dict[str, np.ndarray]) -> list[Task]:
    """Tasks of whole classes, their training images in file order and their tests by label."""
    tasks, first = [], 0
    for index, row in enumerate(data["task_classes"].tolist()):
        classes = [c for c in row if c >= 0]
        assert classes == list(range(first, first + len(classes)))
        splits = {}
        for split in ("train", "test"):
            labels, pictures = data[f"{split}_labels"], data[f"{split}_images"]
            chosen = [i for i in range(len(labels)) if labels[i] in classes]
            splits[split] = Examples.of([example(pictures[i], labels[i], f"{split} {i}") for i in chosen])
        names = tuple(map(str, classes))
        tasks.append(Task(index=index, name=str(index), kind="classify", candidates=names, offset=first, **splits))
        first += len(classes)
    return tasks


def set_head(method, weight: np.ndarray, bias: np.ndarray) -> None:
    """Rows of all classes, those of later tasks too."""
    method.head.load({"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)})


def learn_as_recorded(method, task: Task, data: dict[str, np.ndarray]) -> AsRecorded:
    t = task.index
    runtime = AsRecorded({"train": dict(enumerate(data[f"task{t}/order"]))})
    runtime.task = t
    gradients: list[dict[str, Tensor]] = []

    def spy(optimizer, *_args, **_kwargs) -> None:
        if not gradients:
            names = {id(p): n for n, p in [*method.prompts.named_parameters(), *method.head.named_parameters()]}
            held = [p for group in optimizer.param_groups for p in group["params"]]
            gradients.append({names[id(p)]: p.grad.clone() for p in held if p.grad is not None})

    handle = register_optimizer_step_pre_hook(spy)
    try:
        method.learn(task, runtime)
    finally:
        handle.remove()
    runtime.gradients = gradients[0] if gradients else {}
    return runtime


def by_task(method, tasks: list[Task], classes: int) -> Tensor:
    """Answers task by task, in batches inside one task."""
    return torch.cat([answers(method, [task], classes, size=method.config.batch_size) for task in tasks])


def recorded_gradient(data, tasks: list[Task]) -> int:
    """The task whose first gradient, before clipping, the file has (under the name of task 0)."""
    norm = np.sqrt(sum((v**2).sum() for n, v in data.items() if n.startswith("task0/grad_step1/")))
    return min(range(len(tasks)), key=lambda t: abs(norm - data[f"task{t}/grad_norms"][0]))


@pytest.mark.parametrize("name", ["l2p_batchwise", "l2p_masked_shared", "dualprompt_port", "dualprompt_fixed"])
def test_pools_of_prompts_task_by_task(vectors, name):
    data = vectors(name)
    cfg = {n.removeprefix("cfg_"): v for n, v in data.items() if n.startswith("cfg_")}
    settings = {
        "pool": int(cfg["size"]),
        "top_k": int(cfg["top_k"]),
        "batchwise": bool(cfg["batchwise"]),
        "batchwise_eval": bool(cfg["batchwise"]),
        "task_slots": bool(cfg["mask"]),
        "copy_prompts": bool(cfg["shared_pool"]),
        "copy_keys": bool(cfg["shared_key"]),
        "official_key_copy": True,
        "pull": float(cfg["coeff"]),
        "epochs": int(cfg["epochs"]),
        "lr": float(cfg["lr"]),
        "clip_norm": float(cfg["clip"]) or None,
        "batch_size": int(cfg["batch_size"]),
        "augment": "none",
    }
    dual = "g_layers" in cfg
    if dual:
        settings |= {
            "general_blocks": tuple(cfg["g_layers"].tolist()),
            "general_length": int(cfg["g_length"]),
            "expert_blocks": tuple(cfg["e_layers"].tolist()),
            "expert_length": int(cfg["length"]),
            "official_layout": name.endswith("port"),
        }
        method = Dualprompt(Dualprompt.Config(**settings), vit=tiny_vit(vectors))
        theirs = {"vectors": "e_prompt.prompt", "keys": "e_prompt.prompt_key", "general": "g_prompt"}
    else:
        method = L2p(L2p.Config(**settings, length=int(cfg["length"])), vit=tiny_vit(vectors))
        theirs = {"vectors": "prompt.prompt", "keys": "prompt.prompt_key"}
    with torch.no_grad():
        for ours, their in theirs.items():
            own = getattr(method.prompts, ours)
            own.copy_(torch.from_numpy(data[f"init/{their}"]).view_as(own))
    method.draw = lambda _runtime: None
    set_head(method, data["init/head.weight"], data["init/head.bias"])
    tasks, classes = file_tasks(data), len(data["init/head.bias"])
    names = {**theirs, "weight": "head.weight", "bias": "head.bias"}
    asked = torch.from_numpy(np.stack([e.inputs["image"] for task in tasks for e in task.test])).movedim(3, 1)
    close(classifier.raw_image_features(method.vit, asked), data["query_test"], 1e-9)
    accuracy = np.zeros_like(data["acc_matrix"])
    for task in tasks:
        t = task.index
        runtime = learn_as_recorded(method, task, data)
        close(torch.tensor(runtime.losses()), data[f"task{t}/losses"], 1e-6)
        if t == recorded_gradient(data, tasks):
            norm = float(data[f"task{t}/grad_norms"][0])
            clipped = max(norm / (settings["clip_norm"] or np.inf), 1.0)
            for ours, their in names.items():
                wanted = data[f"task0/grad_step1/{their}"]
                found = clipped * runtime.gradients.get(ours, torch.zeros(wanted.shape))
                close(found.reshape(wanted.shape), wanted, 1e-5)  # torch's clipping adds 1e-6 to the norm
        for ours, their in names.items():
            found = getattr(method.head if ours in ("weight", "bias") else method.prompts, ours)
            wanted = data[f"task{t}/after/{their}"]
            close(found.reshape(wanted.shape), wanted, 1e-8)
        found = by_task(method, tasks[: t + 1], classes)
        close(found, data[f"task{t}/eval_logits"], 1e-8)
        for i in range(t + 1):
            right = by_task(method, [tasks[i]], classes).argmax(1).tolist()
            accuracy[i, t] = 100 * np.mean([a == e.target for a, e in zip(right, tasks[i].test)])
        close(accuracy[:, t], data[f"task{t}/acc_column"], 1e-6)
    close(accuracy, data["acc_matrix"], 1e-6)


@pytest.mark.parametrize("name", ["coda_prompt", "coda_prompt_ortho", "coda_repo_dualprompt", "coda_repo_l2pp"])
def test_prompts_of_the_code_of_coda_prompt_task_by_task(vectors, name):
    data = vectors(name)
    size, length, last = data["prompt_param"].tolist()
    layers, general = tuple(data["e_layers"].tolist()), tuple(data.get("g_layers", np.zeros(0, int)).tolist())
    settings = {n: data[n].item() for n in ("epochs", "lr", "batch_size")} | {"augment": "none"}
    if name.startswith("coda_prompt"):
        per_task = int(size) // int(data["n_tasks"])
        settings |= {"components": per_task, "length": int(length), "blocks": layers, "orthogonal": last}
        method = CodaPrompt(CodaPrompt.Config(**settings), vit=tiny_vit(vectors))
    elif name.endswith("dualprompt"):
        settings |= {"pool": int(size), "expert_blocks": layers, "expert_length": int(length)}
        settings |= {"general_blocks": general, "general_length": int(last)}
        method = DualpromptCoda(DualpromptCoda.Config(**settings), vit=tiny_vit(vectors))
    else:
        settings |= {"pool": int(size), "length": int(length), "blocks": layers}
        settings["top_k"] = next(k for k in range(1, int(size) + 1) if fits(data, vectors, settings, k))
        method = L2pPrefix(L2pPrefix.Config(**settings), vit=tiny_vit(vectors))
    tasks = file_tasks(data)
    method.draw = lambda _runtime: None
    method.begin = lambda task, _runtime: load_prompts(method, data, f"task{task.index}/init/")
    set_head(method, data["task0/init/last.weight"], data["task0/init/last.bias"])
    every = [e for task in tasks for e in task.test]
    by_file = sorted(every, key=lambda e: int(e.id.split()[1]))
    for task in tasks:
        t, seen = task.index, task.offset + len(task.candidates)
        close(method.head.weight, data[f"task{t}/init/last.weight"], 1e-8)
        runtime = learn_as_recorded(method, task, data)
        close(torch.tensor(runtime.losses()), data[f"task{t}/losses"], 1e-6)
        for theirs in [n for n in data if n.startswith(f"task{t}/after/prompt.")]:
            found, used = prompt_of(method, theirs.split("/")[-1])
            close(found, data[theirs][: len(found)] if used else data[theirs], 1e-8)
        close(method.head.weight, data[f"task{t}/after/last.weight"], 1e-8)
        close(method.head.bias, data[f"task{t}/after/last.bias"], 1e-8)
        if t == 0:
            for theirs in [n for n in data if n.startswith("task0/grad_step1/")]:
                close_gradient(method, runtime.gradients, theirs.split("/")[-1], data[theirs])
        query = Query(kind="classify", candidates=tuple(map(str, range(seen))), offset=0)
        batch = default_collate([method.preprocess(e, False) for e in by_file])
        close(method.predictor(query)(batch), data[f"task{t}/eval_logits"], 1e-8)
        assert schedule_of(method, data, t) == pytest.approx(data[f"task{t}/lrs"].tolist())


def schedule_of(method, data, t) -> list[float]:
    """Learning rates, one a step."""
    steps = len(data[f"task{t}/losses"])
    per_epoch = steps // method.config.epochs
    factor = method.fit().schedule
    return [method.config.lr * factor(step // per_epoch, step) for step in range(steps)]


def prompt_of(method, name: str) -> tuple[Tensor, bool]:
    """The parameter that ``prompt.e_k_2`` names, and whether theirs has room for later tasks."""
    _, which, block = name.removeprefix("prompt.").split("_")
    own = {"p": "vectors", "k": "keys", "a": "attentions"}[which]
    grows = isinstance(method, CodaPrompt)
    if name.startswith("prompt.g"):
        return method.prompts["general"][block], False
    held = method.prompts["experts"] if isinstance(method, DualpromptCoda) else method.prompts
    return getattr(held[block], own), grows


def load_prompts(method, data, prefix: str) -> None:
    """The recorded start of a task: components that are not used yet are left away."""
    task = int(prefix.removeprefix("task").split("/")[0])
    for theirs in [n for n in data if n.startswith(f"{prefix}prompt.")]:
        name, values = theirs.split("/")[-1], torch.from_numpy(data[theirs])
        if isinstance(method, CodaPrompt):
            _, which, block = name.removeprefix("prompt.").split("_")
            own = {"p": "vectors", "k": "keys", "a": "attentions"}[which]
            rows = values[: (task + 1) * method.config.components].clone()
            setattr(method.prompts[block], own, torch.nn.Parameter(rows))
        else:
            with torch.no_grad():
                prompt_of(method, name)[0].copy_(values)


def close_gradient(method, gradients, name: str, wanted: np.ndarray) -> None:
    if name.startswith("last."):
        ours = name.removeprefix("last.")
    else:
        found, _ = prompt_of(method, name)
        ours = next(n for n, p in method.prompts.named_parameters() if p is found)
    found = gradients.get(ours)
    if found is None:
        found = torch.zeros(wanted.shape)
    close(found, wanted[: len(found)], 1e-8)


def fits(data, vectors, settings, top: int) -> bool:
    """Whether `top` prompts an image give the first recorded loss (the file does not say how many)."""
    method = L2pPrefix(L2pPrefix.Config(**settings | {"top_k": top, "epochs": 1}), vit=tiny_vit(vectors))
    load_prompts(method, data, "task0/init/")
    set_head(method, data["task0/init/last.weight"], data["task0/init/last.bias"])
    method.begin = method.draw = lambda *_: None
    runtime = AsRecorded({"train": dict(enumerate(data["task0/order"]))})
    runtime.task = 0
    method.learn(file_tasks(data)[0], runtime)
    return abs(runtime.losses()[0] - data["task0/losses"][0]) < 1e-5


def test_new_components_are_orthogonal_to_those_before(vectors):
    data = vectors("coda_gram_schmidt")
    names = sorted({n.rsplit("/", 1)[0] for n in data if "/task" in n})
    assert names
    per_task = int(data["pool_size"]) // int(data["n_tasks"])
    for name in names:
        first = per_task * int(name.split("task")[1])
        rows = torch.from_numpy(data[f"{name}/in"]).flatten(1)
        draws = torch.from_numpy(data[f"{name}/draws"])
        wide = name.startswith("wide_pool")
        if wide and first + per_task > rows.shape[1] and first:
            continue  # more rows than dimensions: rounding noise, and an error of ours where nothing is left
        made = orthogonal_rows(
            rows[: first + per_task], first, lambda row, first=first, draws=draws: draws[row - first]
        )
        wanted = torch.from_numpy(data[f"{name}/out"]).flatten(1)
        if not wide:
            close(made, wanted[: first + per_task].numpy(), 1e-9)
        assert made.isfinite().all()


# -- metrics ------------------------------------------------------------------------------------------------


def test_transfer_average_and_last(vectors):
    data = vectors("metrics")
    for case in sorted({n.split("/")[1] for n in data if n.startswith("mtil/")}):
        matrix = data[f"mtil/{case}/matrix"]
        found = continual.zero_shot_transfer(matrix)
        for name in ("transfer", "average", "last"):
            if f"mtil/{case}/{name}" in data:
                assert found[name] == pytest.approx(float(data[f"mtil/{case}/{name}"]), rel=1e-12)
            elif name == "transfer":
                assert found[name] is None
            for values in [n for n in data if n == f"mtil/{case}/{name}_per_task"]:
                own = [v for v in found[f"{name}_of_tasks"] if v is not None]
                assert own == pytest.approx(data[values].tolist(), rel=1e-12)
        for values in [n for n in data if n.startswith(f"mtil/{case}/order2_")]:
            assert data[values].size  # the same function on the other order, whose matrix is not in the file


def test_class_and_task_incremental_accuracy_from_one_pass(vectors):
    data = vectors("metrics")
    tasks = len(data["task_sizes"])
    ends = np.cumsum(data["task_sizes"])
    matrices = {name: np.full((tasks, tasks), np.nan) for name in ("cil", "til")}
    counts, curve = np.zeros((tasks, tasks), dtype=int), []
    for t in range(tasks):
        logits, target, of = (data[f"records/task{t}/{n}"] for n in ("logits", "target", "task"))
        seen = Query(kind="classify", candidates=tuple(map(str, range(ends[t]))), offset=0)
        made = []
        for row, label, task in zip(logits, target, of):
            own = range(int(ends[task] - data["task_sizes"][task]), int(ends[task]))
            made.append(classification.records(row[None], [example(row, label, "x")], seen, own=own)[0])
        assert [r["predicted"] for r in made] == data[f"records/task{t}/pred_cil"].tolist()
        assert [r["predicted_in_task"] for r in made] == data[f"records/task{t}/pred_til"].tolist()
        for task in range(t + 1):
            chosen = [r for r, own in zip(made, of) if own == task]
            matrices["cil"][t, task] = classification.accuracy(chosen)
            matrices["til"][t, task] = classification.accuracy_in_task(chosen)
            counts[t, task] = len(chosen)
        curve.append(classification.accuracy(made))
    assert counts[np.tril_indices(tasks)].tolist() == data["counts"][np.tril_indices(tasks)].tolist()
    for name, matrix in matrices.items():
        close(np.nan_to_num(matrix), np.nan_to_num(data[f"{name}_matrix"]), 1e-12)
        wanted = {n.split("/")[1]: data[n] for n in data if n.startswith(f"{name}/")}
        assert continual.forgetting(matrix) == pytest.approx(float(wanted["forgetting_chaudhry"]), rel=1e-12)
        assert continual.backward_transfer(matrix) == pytest.approx(float(wanted["bwt"]), rel=1e-12)
        close(continual.step_accuracies(matrix, counts=counts), wanted["curve_weighted"], 1e-12)
        summary = continual.summary(matrix, counts=counts)
        assert summary["last_of_tasks"] == pytest.approx(float(wanted["last_of_tasks"]), rel=1e-12)
        assert summary["average_of_tasks"] == pytest.approx(float(wanted["average_of_tasks"]), rel=1e-12)
    rounded = [round(value, 2) for value in curve]
    assert rounded == data["cil_total_curve"].tolist()
    assert np.mean(rounded) == pytest.approx(float(data["A_bar"]))
    assert rounded[-1] == float(data["A_B"])
    assert continual.forgetting_step_by_step(matrices["cil"]) == pytest.approx(float(data["coda_forgetting"]), rel=1e-9)


# -- CLIP ---------------------------------------------------------------------------------------------------


class Table(torch.nn.Module):
    """Stands for a CLIP whose images are their features already, in float64."""

    class transform:
        pixels = staticmethod(lambda vector: torch.from_numpy(vector))
        normalize = staticmethod(lambda pixels: pixels)

    def __init__(self, *, dim: int, projection: np.ndarray | None = None, logit_scale: float = np.log(100)) -> None:
        super().__init__()
        self.dim, self.dtype, self.device = dim, torch.float64, torch.device("cpu")
        self.scale = torch.tensor(100.0, dtype=torch.float64)
        self.model = SimpleNamespace(
            logit_scale=torch.tensor(logit_scale, dtype=torch.float64),
            vision_model=lambda pixels: SimpleNamespace(pooler_output=pixels),
        )
        if projection is not None:
            weight = torch.from_numpy(projection.T.copy())
            self.model.visual_projection = SimpleNamespace(weight=torch.nn.Parameter(weight))

    def image_features(self, pixels: Tensor) -> Tensor:
        return pixels


def rows_task(index: int, first: int, classes: int, features: np.ndarray, labels: np.ndarray, test: tuple) -> Task:
    train = Examples.of([example(f, c, f"train {i}") for i, (f, c) in enumerate(zip(features, labels))])
    tests = Examples.of([example(f, c, f"test {i}") for i, (f, c) in enumerate(zip(*test))])
    names = tuple(str(c) for c in range(first, first + classes))
    return Task(index=index, name=str(index), kind="classify", candidates=names, offset=first, train=train, test=tests)


def rail_domains(data) -> list[Task]:
    sizes = data["domain_sizes"].tolist()
    starts = np.cumsum([0, *sizes])
    tasks = []
    for d, size in enumerate(sizes):
        first = int(starts[d])
        parts = {n: data[f"domain{d}/{n}"] for n in ("train_features", "train_labels", "test_features", "test_labels")}
        shift = first if parts["train_labels"].max() < size and d else 0  # own labels, or those of all domains
        labels, test = parts["train_labels"] + shift, parts["test_labels"] + shift
        tasks.append(rows_task(d, first, size, parts["train_features"], labels, (parts["test_features"], test)))
    return tasks


@pytest.mark.parametrize("form", ["primal", "dual"])
def test_rail_domain_by_domain(vectors, monkeypatch, form):
    data = vectors("rail_primal")
    tasks, texts = rail_domains(data), torch.from_numpy(data["text_features"])
    dual = vectors("rail_dual")
    settings = {"form": form, "width": len(data["expansion_weight"])}
    if form == "primal":
        settings |= {"ridge": float(data["regularization"]), "fusion": float(data["fusion_weight"])}
    else:
        settings |= {"ridge": float(dual["lambda"]), "gamma": float(dual["gamma"])}
    method = Rail(Rail.Config(**settings), clip=Table(dim=texts.shape[1]))
    monkeypatch.setattr(method, "_draw", lambda _runtime: torch.from_numpy(data["expansion_weight"].T.copy()))
    monkeypatch.setattr(classifier, "encode_prompts", lambda _clip, prompts: texts[: len(prompts)])
    every = Query(kind="classify", candidates=tuple(str(c) for c in range(len(texts))), offset=0)
    accuracy = np.zeros((len(tasks), len(tasks)))
    for task in tasks:
        t = task.index
        runtime = AsRecorded()
        runtime.task = t
        method.learn(task, runtime)
        if form == "dual":
            if f"task{t}/alpha" in dual:
                close(method.weights, dual[f"task{t}/alpha"], 1e-9)
                unit = torch.nn.functional.normalize(torch.from_numpy(data["domain0/test_features"]), dim=1)
                close(method._hidden(unit) @ method.weights, dual[f"task{t}/domain0_outputs"], 1e-9)
            continue
        close(method.weights.T, data[f"task{t}/W"], 1e-9)
        inverse = torch.linalg.inv(method.sums.gram + settings["ridge"] * torch.eye(settings["width"]).double())
        close(inverse[: len(data[f"task{t}/R"])], data[f"task{t}/R"], 1e-9)
        predict = method.predictor(every)
        for d, other in enumerate(tasks):
            scores = predict(default_collate([method.preprocess(e, False) for e in other.test]))
            where = f"task{t}/domain{d}"
            close(scores, data[f"{where}/fused"], 1e-9)
            assert scores.argmax(1).tolist() == data[f"{where}/pred"].tolist()
            zero_shot = data[f"{where}/zero_shot_prob"]
            routed = torch.from_numpy(zero_shot.argmax(1) < method.weights.shape[1])
            assert routed.tolist() == data[f"{where}/routed"].tolist()
            close(scores[~routed], zero_shot[~routed.numpy()], 1e-9)
            accuracy[t, d] = 100 * np.mean([a == e.target for a, e in zip(scores.argmax(1).tolist(), other.test)])
    if form == "primal":
        close(accuracy, data["fusion_acc_table"], 1e-6)
        found = continual.zero_shot_transfer(accuracy)
        for name in ("average", "last"):
            assert found[name] == pytest.approx(float(data[name]), rel=1e-6)
        if (accuracy[np.triu_indices(len(tasks), 1)] != 0).all():  # the published table leaves out cells of exactly 0
            assert found["transfer"] == pytest.approx(float(data["transfer"]), rel=1e-6)


def test_bofa_task_by_task(vectors, monkeypatch):
    data = vectors("bofa")
    first, second = (torch.from_numpy(data[f"text_{n}_template"]) for n in ("first", "second"))
    sides = {"first {}": first, "second {}": second}

    def encoded(_clip, prompts) -> Tensor:
        texts = sides[prompts[0].split()[0] + " {}"]
        return torch.nn.functional.normalize(texts[[int(p.split()[1]) for p in prompts]], dim=1)

    monkeypatch.setattr(classifier, "encode_prompts", encoded)
    scale = float(data["logit_scale_raw"])
    clip = Table(dim=data["visual_proj"].shape[1], projection=data["visual_proj"], logit_scale=scale)
    config = Bofa.Config(
        templates=("first {}", "second {}"),
        rank=int(data["rank"]),
        epochs=int(data["tuned_epochs"]),
        rank_epochs=int(data["stage2_epochs"]),
        lr=float(data["lr"]),
        weight_decay=float(data["weight_decay"]),
        gaussian=float(data["stat"]),
        batch_size=int(data["batch_size"]),
        augment="none",
    )
    method = Bofa(config, clip=clip)
    classes, labels, begin, t = len(first), data["labels_train"], 0, 0
    seen_tests: list[Task] = []
    while begin < classes:
        count = int(data["init_cls"] if t == 0 else data["increment"])
        count = min(count, classes - begin)
        own = [np.isin(part, range(begin, begin + count)) for part in (labels, data["labels_test"])]
        test = (data["features_test"][own[1]], data["labels_test"][own[1]])
        task = rows_task(t, begin, count, data["features_train"][own[0]], labels[own[0]], test)
        orders = data[f"task{t}/orders"]
        epochs = orders[len(orders) - config.epochs - config.rank_epochs :]
        runtime = AsRecorded(
            {
                "projection": dict(enumerate(epochs)),
                "directions": dict(enumerate(epochs[config.epochs :])),
            }
        )
        runtime.task = t
        method.learn(task, runtime)
        begin, seen_tests = begin + count, [*seen_tests, task]
        assert method.share == pytest.approx(float(data[f"task{t}/lambda"]))
        steps = [values for event, values in runtime.events if event == "step"]
        per_epoch, wanted = -(-len(task.train) // config.batch_size), iter(data[f"task{t}/losses"].tolist())
        for number, values in enumerate(steps):
            if number // per_epoch < 6:  # theirs goes on with the task's classifier, which nothing hangs on
                own = next(wanted)
                assert float(values.get("own", own)) == pytest.approx(own, rel=1e-5)
            assert float(values.get("main", values["loss"])) == pytest.approx(next(wanted), rel=1e-5)
        assert next(wanted, None) is None
        close(method.tuned, data[f"task{t}/W_task"], 1e-8)
        close(method.fused(), data[f"task{t}/W_fusion"], 1e-8)
        close(method.means, data[f"task{t}/mu"], 1e-9)
        if f"task{t}/BA" in data:
            close(method.projections[-1] - method.start, data[f"task{t}/BA"], 1e-8)
            directions = free_directions(torch.stack(method.moments[:-1]), config.rank)
            close(directions @ directions.T, data[f"task{t}/A_projector"], 1e-8)
        weights, biases = method.gaussians.linear()
        close(weights.T, data[f"task{t}/gda_W"], 1e-8)
        close(biases, data[f"task{t}/gda_b"], 1e-8)
        close(method.gaussians.precision, data[f"task{t}/cov_inv"], 1e-8)
        scores = answers(method, seen_tests, begin)
        target = [e.target for task in seen_tests for e in task.test]
        order = np.argsort(data[f"task{t}/target"], kind="stable")  # both by class
        assert sorted(target) == data[f"task{t}/target"][order].tolist()
        ours = np.array(scores.argmax(1).tolist())[np.argsort(target, kind="stable")]
        assert ours.tolist() == data[f"task{t}/pred"][order].tolist()
        t += 1
