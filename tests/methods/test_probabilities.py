"""What the scores of a method that classifies are: logits, or something that it turns into logits, or neither."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from perdure.calibration import probabilities
from perdure.methods.mg_clip import MgClip
from perdure.settings import registry

RANK_ALONE = {"icarl", "ranpac", "rail", "bofa"}
"""Nearest class means, whose squared distances have no scale of their own, and regressions towards 0 and 1."""
OF_IMAGES = [name for name in registry.names("methods") if registry.describe("methods", name).answers == ("classify",)]


@pytest.mark.parametrize("name", OF_IMAGES)
def test_every_method_says_what_its_scores_are(name):
    method = registry.load("methods", name)
    assert (getattr(method, "scores_are", "") == "logits" or hasattr(method, "logits_of")) != (name in RANK_ALONE)


def test_by_hand():
    logits = torch.tensor([[0.0, torch.log(torch.tensor(3.0)), -torch.inf]])
    assert probabilities(SimpleNamespace(scores_are="logits"), logits).tolist()[0] == pytest.approx([0.25, 0.75, 0])
    assert probabilities(SimpleNamespace(), logits) is None
    # the vote of MG-CLIP, 3 to 1: a share of each to the power of the logit scale
    method = SimpleNamespace(rows=torch.ones(2, 1), clip=SimpleNamespace(scale=torch.tensor(2.0)))
    method.logits_of = MgClip.logits_of.__get__(method)
    found = probabilities(method, torch.tensor([[0.25, 0.75]]))
    assert found.tolist()[0] == pytest.approx([0.1, 0.9])  # 1 : 9
    method.rows = torch.ones(0, 1)  # nothing learned: CLIP's own probabilities
    assert probabilities(method, torch.tensor([[0.25, 0.75]])).tolist()[0] == pytest.approx([0.25, 0.75])
