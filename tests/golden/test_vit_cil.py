"""Class-incremental methods on a ViT or a CLIP against the published code, one golden file after another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import default_collate

from perdure.families.vit import backbone, first_session
from perdure.layers import merging, ridge
from perdure.methods.ranpac import RIDGES, Ranpac
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


def answers(method, tasks: list[Task], seen: int) -> Tensor:
    """Scores of the tests of the first tasks for all classes seen."""
    query = Query(kind="classify", candidates=tuple(str(c) for c in range(seen)), offset=0)
    predict = method.predictor(query)
    examples = [e for task in tasks for e in task.test]
    batch = default_collate([method.preprocess(e, False) for e in examples])
    with torch.no_grad():
        return predict(batch)


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
        encoded = backbone.features(method.backbone, {"image": torch.from_numpy(images["train_images"]).movedim(3, 1)})
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
