"""The gated network and its plain relatives: worked numbers, sizes, checkpoints."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from perdure import checkpoint
from perdure.errors import DataError, RecipeError, WeightsError
from perdure.families.rehearsal import policy
from perdure.layers.gates import Gate, log_probability, sampled_actions, threshold_actions
from perdure.models import gated_resnet, mlp, resnet18


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def test_parameter_counts_are_the_published_ones():
    assert parameters(gated_resnet.load(gated_resnet.Config())) == 187_578
    assert parameters(resnet18.load(resnet18.Config(width=32, stages=(1, 2)))) == 170_410
    assert parameters(gated_resnet.load(gated_resnet.Config(gated=()))) == 170_410
    assert parameters(mlp.load(mlp.Config())) == 784 * 100 + 100 + 100 * 100 + 100 + 100 * 10 + 10


def test_the_whole_resnet18_has_its_known_size():
    # torchvision's ResNet-18 with a 3x3 stem and 10 classes: 11,173,962.
    assert parameters(resnet18.load(resnet18.Config())) == 11_173_962


def hand_made_gate() -> Gate:
    """Identity 1x1 convolution and batch norm, y = sigmoid(0) = 1/2."""
    gate = Gate(2, 2, ratio=1, temperature=0.15).eval()
    with torch.no_grad():
        gate.pw.weight.copy_(torch.eye(2)[:, :, None, None])
        gate.bn.running_var.fill_(1 - gate.bn.eps)
        for layer in (gate.fc1, gate.fc2):
            layer.weight.zero_()
            layer.bias.zero_()
    return gate


def test_a_gate_by_hand():
    x = torch.stack([torch.full((3, 3), 0.3), torch.full((3, 3), -0.3)])[None]
    gate = hand_made_gate()
    v = gate(x)
    torch.testing.assert_close(v, torch.tensor([[0.15, -0.15]]))
    p = gate.probabilities(v)
    torch.testing.assert_close(p, torch.tensor([[0.731059, 0.268941]]))
    actions = threshold_actions(p, 0.5)
    assert actions.tolist() == [[1, 0]]
    torch.testing.assert_close(log_probability(v, actions, 0.15), torch.tensor([-0.626523]))


def test_threshold_0_keeps_all_and_above_1_none():
    p = torch.tensor([[0.0, 0.4, 1.0]])
    assert threshold_actions(p, 0.0).tolist() == [[1, 1, 1]]
    assert threshold_actions(p, 1.01).tolist() == [[0, 0, 0]]


def test_sampling_compares_with_the_given_numbers():
    p, u = torch.tensor([[0.5, 0.5, 1.0, 0.0]]), torch.tensor([[0.49, 0.5, 0.999, 0.0]])
    assert sampled_actions(p, u).tolist() == [[1, 0, 1, 0]]


def test_a_gate_without_hidden_units_is_refused():
    with pytest.raises(RecipeError, match="no hidden unit"):
        gated_resnet.load(gated_resnet.Config(width=4))


def test_rewards_by_hand():
    # 10 channels, 5 kept: -(.7 - .5)^2 = -.04 where right, 500 times that where wrong.
    actions = torch.tensor([[1.0] * 5 + [0.0] * 5] * 2)
    correct = torch.tensor([True, False])
    rewards = policy.keep_rewards(actions, correct, boundaries=(0, 10), keep_ratio=0.7, penalty=-500)
    torch.testing.assert_close(rewards, torch.tensor([[-0.04], [-20.0]]))
    for row, expected in ((0, -0.24), (1, -120.0)):
        loss = policy.policy_loss(torch.tensor([[-6.0]]), rewards[row : row + 1])
        torch.testing.assert_close(loss, torch.tensor(expected))


def test_prototype_loss_by_hand():
    v = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 4.0]])
    # num = 4/2, den = (16 + 20)/2: 3/19.
    torch.testing.assert_close(policy.prototype_loss(v, torch.tensor([0, 0, 1])), torch.tensor(3 / 19))
    # One class: 1 + (4 + 16 + 20)/2.
    torch.testing.assert_close(policy.prototype_loss(v, torch.tensor([1, 1, 1])), torch.tensor(21.0))


def test_prototype_loss_is_absent_with_two_images():
    v = torch.randn(5, 4, requires_grad=True)
    two = torch.tensor([True, False, True, False, False])
    loss = policy.prototype_loss(v, torch.tensor([0, 0, 1, 1, 1]), two)
    loss.backward()
    assert loss == 0 and (v.grad == 0).all()


def test_prototype_loss_equals_the_sum_over_pairs():
    generator = torch.Generator().manual_seed(1)
    v = torch.randn(20, 8, generator=generator, dtype=torch.float64)
    labels, among = torch.arange(20) % 4, torch.arange(20) % 3 != 0
    rows = among.nonzero()[:, 0]
    pairs = [(int(i), int(j)) for i in rows for j in rows if i < j]
    same = sum((v[i] - v[j]).square().sum() / 8 for i, j in pairs if labels[i] == labels[j])
    different = sum((v[i] - v[j]).square().sum() / 8 for i, j in pairs if labels[i] != labels[j])
    found = policy.prototype_loss(v, labels, among)
    torch.testing.assert_close(found, (1 + same) / (1 + different), rtol=1e-10, atol=0)


@pytest.fixture
def net():
    return gated_resnet.load(gated_resnet.Config(width=4, hidden_ratio=2, classes=5, seed=0))


def test_all_ones_masks_equal_the_plain_path(net):
    x = torch.rand(3, 3, 8, 8)
    net.eval()
    torch.testing.assert_close(net.gated(x, threshold=0.0).logits, net(x), rtol=0, atol=0)


def test_no_channel_leaves_the_bias_of_the_head(net):
    out = net.eval().gated(torch.rand(3, 3, 8, 8), threshold=1.01)
    assert torch.equal(out.logits, net.head.bias.expand(3, -1))


def test_about_half_of_the_channels_are_kept_at_first():
    net = gated_resnet.load(gated_resnet.Config())
    out = net.train().gated(torch.rand(16, 3, 16, 16), uniforms=torch.rand(16, 256))
    assert 0.4 < out.actions.mean() < 0.6
    assert net.boundaries == (0, 64, 128, 192, 256)


def test_moments_and_map_pool_alike(net):
    x, uniforms = torch.rand(6, 3, 9, 7), torch.rand(6, 32)
    twin = gated_resnet.load(gated_resnet.Config(width=4, hidden_ratio=2, classes=5, seed=0))
    twin.set_pooling("map")
    outs = [n.double().train().gated(x.double(), uniforms=uniforms.double()) for n in (net, twin)]
    for mine, theirs in zip(*outs):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)
    for out in outs:
        (out.logits.sum() + out.policy.square().sum()).backward()
    for (name, mine), theirs in zip(net.named_parameters(), twin.parameters()):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-8, atol=1e-10, msg=name)
    for (name, mine), theirs in zip(net.named_buffers(), twin.buffers()):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12, msg=name)


def test_any_list_of_convolutions_may_be_gated():
    gated = ("stage1.block1.conv2", "stage3.block0.conv1")
    config = gated_resnet.Config(width=4, hidden_ratio=2, stages=(1, 2, 4), gated=gated)
    net = gated_resnet.load(config).eval()
    assert net.boundaries == (0, 4, 20)
    assert list(net.gates()) == ["stage1.block1.gate2", "stage3.block0.gate1"]
    assert net.gated(torch.rand(2, 3, 8, 8)).actions.shape == (2, 20)


def test_a_convolution_that_is_not_there_is_refused():
    with pytest.raises(RecipeError, match=r"no convolution 'stage9\.block0\.conv1'"):
        gated_resnet.load(gated_resnet.Config(gated=("stage9.block0.conv1",)))


def test_oblong_and_gray_images_work(net):
    net.eval()
    gray = torch.rand(2, 1, 12, 8)
    assert torch.equal(net(gray), net(gray.expand(-1, 3, -1, -1)))
    with pytest.raises(DataError, match=r"\[3, height, width\]"):
        net(torch.rand(2, 2, 8, 8))


def test_the_seed_decides_the_weights_and_leaves_the_global_generator():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    a, b, c = (gated_resnet.load(gated_resnet.Config(seed=seed)) for seed in (1, 1, 2))
    assert torch.rand(1) == expected
    assert torch.equal(a.stem.conv.weight, b.stem.conv.weight)
    assert not torch.equal(a.stem.conv.weight, c.stem.conv.weight)


def test_without_a_seed_the_weights_follow_the_global_generator():
    nets = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        nets.append(mlp.load(mlp.Config()))
    assert torch.equal(nets[0].fc1.weight, nets[1].fc1.weight)
    assert not torch.equal(nets[0].fc1.weight, nets[2].fc1.weight)


def test_normalization_is_part_of_the_network():
    plain = resnet18.load(resnet18.Config(width=4, stages=(1,), seed=0)).eval()
    config = resnet18.Config(width=4, stages=(1,), seed=0, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    normalizing = resnet18.load(config).eval()
    x = torch.rand(2, 3, 8, 8)
    mean, std = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1), torch.tensor([0.5, 0.6, 0.7]).view(3, 1, 1)
    torch.testing.assert_close(normalizing(x), plain((x - mean) / std))


def official_keys(state: dict) -> dict:
    """The state as the official code saves it: other names, and stem, stages and head twice."""
    named = {}
    for key, value in state.items():
        old = key.replace(".pw.", ".channel_net.pw_conv.").replace(".fc1.", ".channel_net.prototype.0.")
        old = old.replace(".fc2.", ".channel_net.prototype.2.").replace("shortcut.conv", "shortcut.0")
        old = old.replace("shortcut.bn", "shortcut.1")
        for gate in ("gate1", "gate2"):
            old = old.replace(f"{gate}.bn.", f"{gate}.channel_net.bn.")
        old = old.replace("stage1.block", "_features.3.").replace("stage2.block", "_features.4.")
        for ours, (first, second) in {
            "stem.conv.": ("conv1.", "_features.0."),
            "stem.bn.": ("bn1.", "_features.1."),
            "head.": ("linear.", "classifier."),
        }.items():
            if old.startswith(ours):
                named[second + old.removeprefix(ours)] = value
                old = first + old.removeprefix(ours)
        named[old] = value
    return named


def test_an_official_checkpoint_is_read(tmp_path, net):
    file = tmp_path / "task_final.pth"
    torch.save(official_keys(net.state_dict()), file)
    loaded = gated_resnet.load(gated_resnet.Config(width=4, hidden_ratio=2, classes=5, seed=9, weights=file))
    for name, value in net.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_weights_of_another_network_are_refused_by_name(tmp_path, net):
    file = tmp_path / "weights.pth"
    torch.save(net.state_dict(), file)
    with pytest.raises(WeightsError, match=r"stem\.conv\.weight is \[4, 3, 3, 3\], here \[8, 3, 3, 3\]"):
        gated_resnet.load(gated_resnet.Config(width=8, hidden_ratio=2, weights=file))


def test_a_file_that_is_no_state_dict_is_refused(tmp_path):
    file = tmp_path / "weights.pth"
    file.write_bytes(b"nothing of the kind")
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        resnet18.load(resnet18.Config(weights=file))
    torch.save({"epoch": 3}, file)
    with pytest.raises(WeightsError, match="holds something else"):
        resnet18.load(resnet18.Config(weights=file))
    with pytest.raises(WeightsError, match="no such file"):
        mlp.load(mlp.Config(weights=tmp_path / "absent.pth"))


def test_the_mlp_takes_gray_images_and_refuses_other_sizes(tmp_path):
    net = mlp.load(mlp.Config(inputs=16, hidden=5, classes=3))
    gray = torch.rand(2, 1, 4, 4)
    assert torch.equal(net(gray), net(gray.expand(-1, 3, -1, -1)))
    with pytest.raises(DataError, match="images of 25 values"):
        net(torch.rand(2, 1, 5, 5))


def test_a_state_survives_our_checkpoints(tmp_path, net):
    checkpoint.save(tmp_path / "net.safetensors", net.state_dict())
    net.load_state_dict(checkpoint.load(tmp_path / "net.safetensors"))
