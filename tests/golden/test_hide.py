"""HiDe-LLaVA's layers, routing and means against the published code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from perdure.methods.hide.slots import SlotLinear, moved_mean, route


@pytest.fixture
def data(golden):
    with np.load(golden("hide") / "hide.npz", allow_pickle=False) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def close(found, wanted):
    torch.testing.assert_close(found.detach().float(), wanted.float(), rtol=1e-4, atol=1e-5)


def layer(data, slots: int) -> SlotLinear:
    base = nn.Linear(data["W"].shape[1], data["W"].shape[0], bias=False)
    base.weight.data.copy_(data["W"])
    made = SlotLinear(base, scale=float(data["scale"]), dropout=0.0)
    for a, b in zip(data["A"][:slots], data["B"][:slots]):
        made.add(len(a))
        made.a[-1].data.copy_(a)
        made.b[-1].data.copy_(b)
    return made


def test_a_task_is_learned_by_its_slot_alone_and_others_are_fused_by_their_factors(data):
    tasks = len(data["A"])
    every = layer(data, tasks)
    for t in range(tasks):
        every.learning = t
        close(every(data["x"]), data[f"train_task{t}"])
        after = layer(data, t + 1)
        after.fuse("factors")
        close(after(data["x"]), data[f"fused_after{t}"])


def test_products_have_no_terms_across_tasks(data):
    made = layer(data, len(data["A"]))
    made.fuse("products")
    wanted = data["x"] @ data["W"].T
    for a, b in zip(data["A"], data["B"]):
        wanted = wanted + data["scale"] * (data["x"] @ a.T @ b.T)
    close(made(data["x"]), wanted)


def test_each_question_is_routed_by_its_own_features(data):
    anchors = {"images": data["image_anchors"], "texts": data["text_anchors"]}
    weights = route(data["image_features"], data["text_features"], **anchors)
    close(weights, data["weights"])
    alone = [route(i[None], t[None], **anchors)[0] for i, t in zip(data["image_features"], data["text_features"])]
    close(torch.stack(alone), data["weights"])
    together = route(data["image_features"], data["text_features"], **anchors, as_one=True)
    close(together, data["weights_batch_official"].expand_as(together))
    top = layer(data, len(data["A"]))
    top.weights = data["weights"][:1].expand(len(data["x"]), -1)
    close(top(data["x"]), data["top_layer"])


def test_means_are_those_of_all_rows_and_of_the_start(data):
    for kind in ("image", "text"):
        mean, count = data[f"anchor_start_{kind}"], 1.0
        half = len(data[f"{kind}_features"]) // 2
        for rows in (data[f"{kind}_features"][:half], data[f"{kind}_features"][half:]):
            mean, count = moved_mean(mean, count, rows)
        assert count == float(data["anchor_count"])
        close(mean, data[f"anchor_{kind}"])
