"""Skipping channels gives what masking them gives."""

from __future__ import annotations

import pytest
import torch

from perdure.layers.resnet import ResNet
from perdure.methods.dynamos.skipping import PATHS, Skipping, fastest, gated_pass
from perdure.models import gated_resnet

EVERYWHERE = tuple(f"stage{s}.block{b}.conv{c}" for s in (1, 2) for b in (0, 1) for c in (1, 2))


def trained(**settings) -> ResNet:
    """A network whose batch norms have seen data and whose gates differ between images."""
    net = gated_resnet.load(gated_resnet.Config(**{"width": 8, "hidden_ratio": 2, "seed": 0} | settings))
    torch.manual_seed(0)
    for _ in range(3):
        net.train().gated(torch.rand(8, 3, 12, 10), uniforms=torch.rand(8, net.boundaries[-1]))
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.bias.uniform_(-0.3, 0.3)
                module.weight.uniform_(0.5, 1.5)
    return net.eval()


@pytest.mark.parametrize("gated", [gated_resnet.SECOND_STAGE, EVERYWHERE, ("stage2.block0.conv2",)])
@pytest.mark.parametrize("images", [1, 9])
@pytest.mark.parametrize("threshold", [0.5, 0.0, 1.01])
@pytest.mark.parametrize(("lanes", "worth"), [(1, 0.0), (4, 0.0), (2, 3e4), (16, 5e7)])
def test_equals_the_masked_network(gated, images, threshold, lanes, worth):
    net = trained(gated=gated)
    x = (
        torch.rand(images, 3, 12, 10, generator=torch.Generator().manual_seed(1))
        * torch.linspace(0.2, 3, images)[:, None, None, None]
    )
    with torch.no_grad():
        expected = net.gated(x, threshold=threshold)
    found = Skipping(net, threshold=threshold, lanes=lanes, worth=worth)(x)
    assert torch.equal(found.actions, expected.actions)
    for mine, theirs in zip(found, expected):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_masks_do_differ_between_these_images():
    net = trained()
    generator = torch.Generator().manual_seed(2)
    x = torch.rand(9, 3, 12, 10, generator=generator) * 4 * torch.rand(9, 3, 1, 1, generator=generator)
    actions = Skipping(net)(x).actions
    assert len(actions.unique(dim=0)) > 3
    assert 0.1 < actions.mean() < 0.9


def test_equal_images_share_one_pass():
    net = trained()
    x = torch.rand(1, 3, 12, 10).expand(4, -1, -1, -1)
    found = Skipping(net, lanes=1, worth=0.0)(x)
    with torch.no_grad():
        torch.testing.assert_close(found.logits, net.gated(x).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("gate", range(4))
def test_a_layer_that_is_all_off_or_all_on(gate):
    net = trained()
    x = torch.rand(3, 3, 12, 10)
    for bias in (-50.0, 50.0):
        chosen = list(net.gates().values())[gate]
        with torch.no_grad():
            chosen.bn.weight.zero_()
            chosen.bn.bias.fill_(bias)
            chosen.fc2.weight.zero_()
            chosen.fc2.bias.zero_()
            expected = net.gated(x)
        columns = slice(net.boundaries[gate], net.boundaries[gate + 1])
        assert expected.actions[:, columns].mean() == (bias > 0)
        torch.testing.assert_close(Skipping(net, lanes=1, worth=0.0)(x).logits, expected.logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("path", PATHS)
def test_every_path_gives_the_same_answers(path):
    net, x = trained(), torch.rand(9, 3, 12, 10, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        found, expected = gated_pass(net, path)(x), net.gated(x)
    assert torch.equal(found.actions, expected.actions)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-5, atol=1e-5)


class Clocked:
    """Passes that take as long as they are told, on a clock of their own."""

    def __init__(self, net: ResNet, **seconds: float) -> None:
        self.now, self.seconds = 0.0, seconds
        self.passes = {name: self.slow(name, gated_pass(net, name)) for name in PATHS}

    def slow(self, name, run):
        def call(x):
            self.now += self.seconds[name]
            return run(x)

        return call


@pytest.mark.parametrize("path", PATHS)
def test_the_path_that_takes_the_least_time_is_chosen(path):
    clocked = Clocked(trained(), **{name: 1.0 if name == path else 2.0 for name in PATHS})
    chosen, seconds = fastest(clocked.passes, torch.rand(2, 3, 12, 10), clock=lambda: clocked.now)
    assert chosen == path
    assert seconds == clocked.seconds


def test_a_path_with_other_answers_is_not_chosen_however_quick():
    clocked = Clocked(trained(), folded=1.0, skipping=2.0, dense=3.0)
    right = clocked.passes["folded"]
    clocked.passes["folded"] = lambda x: right(x)._replace(logits=right(x).logits * 1.01)
    assert fastest(clocked.passes, torch.rand(2, 3, 12, 10), clock=lambda: clocked.now)[0] == "skipping"
